"""Options, exit status, and both kinds of output."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from tests.support.canaries import CANARIES
from tests.support.ports import free_port
from tests.unit.proxy.core.conftest import tree
from valetkey.cli.doctor import examine
from valetkey.cli.doctor.clients import CLIENTS
from valetkey.cli.doctor.command import _RUNTIMES
from valetkey.cli.doctor.examine import Plan, Report
from valetkey.cli.doctor.findings import CA_UNKNOWN, CALL_DIRECT, Finding
from valetkey.cli.doctor.outcome import Call, Judged
from valetkey.cli.doctor.proxy_url import Endpoint
from valetkey.cli.doctor.runtimes import NAMES, Runtime
from valetkey.cli.doctor.sidecar import Listener
from valetkey.cli.doctor.variables import Host, Variables
from valetkey.cli.main import main

TOKEN = "caller-token-of-the-doctor"
HTTP = "http://valetkey.invalid/"
HERE = Endpoint("127.0.0.1", 7072)


def report(*found: Finding, outcome: Any = "through") -> Report:
    return Report(
        Variables({"http_proxy": f"http://u:{TOKEN}@127.0.0.1:7072"}),
        (HERE,),
        {HERE: Listener("sidecar", opens_tls=True, leaf_verifies=True)},
        None,
        (Runtime("curl", "/usr/bin/curl", "8.1"),),
        (Judged(Call("curl", HTTP), outcome, "\x1b[32mseen"),),
        found,
    )


WRONG = Finding(CALL_DIRECT, "curl", "\x1b[32mseen", "do this")
NOTE = Finding(CA_UNKNOWN, "ca", "none", "say where")


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[Result, Plan | None]]:
    """The command, with an examination that gives ``report``; what it was asked for comes back."""
    monkeypatch.delenv("VALETKEY_CONFIG", raising=False)

    def run(*arguments: object, gives: Report | None = None) -> tuple[Result, Plan | None]:
        plans: list[Plan] = []

        def fake(plan: Plan, _environ: object, _now: object) -> Report:
            plans.append(plan)
            return gives or report()

        monkeypatch.setattr(examine, "examine", fake)
        result = CliRunner().invoke(main, ["doctor", *map(str, arguments)])
        return result, plans[0] if plans else None

    return run


def test_the_choices_are_the_runtimes() -> None:
    assert _RUNTIMES == NAMES


STATUSES = [((), 0), ((NOTE,), 0), ((WRONG,), 1), ((NOTE, WRONG), 1)]


@pytest.mark.parametrize(("found", "status"), STATUSES)
@pytest.mark.parametrize("form", [(), ("--json",)])
def test_the_exit_status(
    found: tuple[Finding, ...], status: int, form: tuple[str, ...], doctor: Any
) -> None:
    result, _ = doctor(*form, gives=report(*found))
    assert result.exit_code == status


def test_the_text(doctor: Any) -> None:
    CANARIES.add(TOKEN, name="token in a proxy variable")
    result, _ = doctor(gives=report(NOTE, WRONG, outcome="direct"))
    lines = result.output.splitlines()
    at = lines.index(r"✗ doctor.call_direct  curl: \x1b[32mseen")
    assert lines[at : at + 4] == [
        r"✗ doctor.call_direct  curl: \x1b[32mseen",
        "    do this",
        "· doctor.ca_unknown  ca: none",
        "    say where",
    ]
    assert lines[-1] == "1 thing is wrong; 0 of 1 calls went through the sidecar"
    assert "http://…@127.0.0.1:7072" in result.output
    assert "around the sidecar" in result.output
    assert "a sidecar, opens TLS, its certificate verifies" in result.output
    assert TOKEN not in result.output
    assert "\x1b" not in result.output
    assert CLIENTS[0].name in result.output


def test_the_text_when_all_is_well(doctor: Any) -> None:
    result, _ = doctor("--no-clients")
    assert result.output.endswith("\nnothing is wrong; 1 of 1 calls went through the sidecar\n")
    assert CLIENTS[0].name not in result.output


def test_the_json(doctor: Any) -> None:
    result, _ = doctor("--json", gives=report(NOTE, WRONG))
    found = json.loads(result.output)
    assert found["ok"] is False
    assert found["variables"] == {"http_proxy": "http://…@127.0.0.1:7072"}
    assert found["listeners"] == [
        {"address": "127.0.0.1:7072", "state": "sidecar", "detail": "", "opens_tls": True,
         "leaf_verifies": True}
    ]  # fmt: skip
    assert found["runtimes"] == [{"name": "curl", "executable": "/usr/bin/curl", "version": "8.1"}]
    assert found["calls"] == [
        {"client": "curl", "url": HTTP, "outcome": "through", "detail": "\x1b[32mseen"}
    ]
    assert found["findings"][1] == {
        "code": "doctor.call_direct", "level": "wrong", "subject": "curl",
        "detail": "\x1b[32mseen", "action": "do this",
    }  # fmt: skip
    assert len(found["clients"]) == len(CLIENTS)
    assert found["ca"] is None
    assert TOKEN not in result.output


def test_without_options(doctor: Any) -> None:
    _, plan = doctor()
    assert plan == Plan(examine.Where(), examine.DEFAULT_URLS, NAMES, make_calls=True, timeout=10.0)


def test_options(doctor: Any, tmp_path: Path) -> None:
    ca = tmp_path / "ca.pem"  # which is not there: a finding, not a mistake in usage
    _, plan = doctor(
        "--proxy", "http://127.0.0.1:1", "--proxy", "127.0.0.1:2", "--admin", "http://h:3",
        "--ca-file", ca, "--url", "https://api.example/x", "--runtime", "git", "--runtime", "go",
        "--no-calls", "--timeout", "2.5",
    )  # fmt: skip
    assert plan == Plan(
        examine.Where(
            listeners=(Endpoint("127.0.0.1", 1), Endpoint("127.0.0.1", 2)),
            stated=True,
            admin="http://h:3",
            ca_file=ca,
        ),
        ("https://api.example/x",),
        ("git", "go"),
        make_calls=False,
        timeout=2.5,
    )


def test_settings_with_options_in_place_of_some(doctor: Any, tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(json.dumps(tree(listeners=[{"bind": "127.0.0.1:5", "mode": "forward"}])))
    _, plan = doctor("--config", file, "--no-admin")
    assert plan is not None
    assert plan.where.listeners == (Endpoint("127.0.0.1", 5),)
    assert plan.where.admin == ""
    assert Host("pay.example.com", 8443) in plan.where.hosts
    _, plan = doctor("--config", file, "--proxy", "http://127.0.0.1:6")
    assert plan is not None
    assert plan.where.listeners == (Endpoint("127.0.0.1", 6),)
    assert plan.where.hosts


def test_transparent_mode(doctor: Any, tmp_path: Path) -> None:
    file = tmp_path / "proxy.yaml"
    file.write_text(json.dumps(tree(listeners=[{"bind": "127.0.0.1:7073", "mode": "transparent"}])))
    _, plan = doctor("--transparent", "--url", "http://api.example/", "--config", file)
    assert plan is not None
    assert (plan.transparent, plan.urls) == (True, ("http://api.example/",))


USAGE = [
    ("nothing to call", ("--transparent",), "--transparent needs --url"),
    (
        "a proxy in transparent mode",
        ("--transparent", "--url", "http://h", "--proxy", "http://h:1"),
        "no --proxy",
    ),
    ("no such file", ("--config", "/nowhere"), "does not exist"),
    ("no settings", ("--config", "pyproject.toml"), "not YAML"),
    ("no URL", ("--url", "api.example"), "valetkey: api.example: not an http(s) URL"),
    ("no proxy", ("--proxy", "http://"), "valetkey: --proxy: no host"),
    ("no runtime", ("--runtime", "cobol"), "is not one of"),
    ("no time", ("--timeout", "0"), "not in the range"),
    ("both", ("--admin", "http://h", "--no-admin"), "exclude each other"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), USAGE, ids=[case[0] for case in USAGE])
def test_usage(name: str, arguments: tuple[str, ...], message: str, doctor: Any) -> None:
    result, plan = doctor(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert plan is None


def test_the_whole_command_on_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No fake: a PATH without runtimes, and no sidecar."""
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    port = free_port()
    result = CliRunner().invoke(
        main, ["doctor", "--json", "--proxy", f"http://127.0.0.1:{port}", "--no-admin"]
    )
    assert result.exit_code == 1
    codes = [each["code"] for each in json.loads(result.output)["findings"]]
    assert codes == ["doctor.proxy_unset", "doctor.listener_unreachable", "doctor.ca_unknown"]

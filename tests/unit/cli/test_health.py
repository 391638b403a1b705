"""The image's health check: whom it asks, where, and what it makes of the answer."""

from __future__ import annotations

import http.server
import json
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
from click.testing import CliRunner

from tests.support.ports import free_port
from valetkey.broker.settings import BrokerSettings
from valetkey.cli import health
from valetkey.cli.main import main
from valetkey.collector.settings import CollectorSettings
from valetkey.contracts.errors import ConfigError
from valetkey.injector.settings import WebhookSettings
from valetkey.proxy.settings import AdminSettings

EXAMPLES = Path(__file__).parents[3] / "config"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "settings.yaml"


def test_defaults_are_those_of_the_programs(file: Path) -> None:
    file.write_text("")
    said = {program: health.probes(program, file, {}) for program in health.PROGRAMS}
    fields = {
        "proxy": AdminSettings().bind,
        "broker": default(BrokerSettings, "bind"),
        "collector": default(CollectorSettings, "bind"),
        "injector": default(WebhookSettings, "admin"),
    }
    assert {program: str(address) for program, address in said.items()} == {
        program: f"http://{bind}" for program, bind in fields.items()
    }


def default(kind: Any, name: str) -> str:
    fields, defaults = kind.__struct_fields__, kind.__struct_defaults__
    return str(defaults[fields.index(name) - len(fields)])


@pytest.mark.parametrize("program", sorted(health.PROGRAMS))
def test_the_examples_name_an_address(program: str) -> None:
    assert health.probes(program, EXAMPLES / f"{program}.yaml", {}).port > 0


ADDRESSES = {
    "as it says": ("proxy", {"admin": {"bind": "127.0.0.1:1"}}, {}, "http://127.0.0.1:1"),
    "all addresses": ("proxy", {"admin": {"bind": "0.0.0.0:1"}}, {}, "http://127.0.0.1:1"),
    "all of IPv6": ("proxy", {"admin": {"bind": "[::]:1"}}, {}, "http://[::1]:1"),
    "a variable": (
        "proxy",
        {"admin": {"bind": "127.0.0.1:1"}},
        {"VALETKEY_PROXY__ADMIN": '{"bind": "127.0.0.1:2"}'},
        "http://127.0.0.1:2",
    ),
    "a certificate": ("broker", {"bind": "10.0.0.1:7", "tls": {"cert_file": "c"}}, {}, "https://10.0.0.1:7"),
    "terminated": ("collector", {"bind": "0.0.0.0:7", "tls": "terminated"}, {}, "http://127.0.0.1:7"),
    "the webhook's other port": (
        "injector",
        {"webhook": {"bind": "0.0.0.0:1", "admin": "0.0.0.0:2", "tls": {"cert_file": "c"}}},
        {},
        "http://127.0.0.1:2",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("program", "tree", "env", "where"), ADDRESSES.values(), ids=ADDRESSES)
def test_where_it_asks(file: Path, program: str, tree: Any, env: Any, where: str) -> None:
    file.write_text(json.dumps(tree))
    assert str(health.probes(program, file, env)) == where


UNUSABLE = {
    "no port": {"admin": {"bind": "127.0.0.1"}},
    "a port that is not known": {"admin": {"bind": "127.0.0.1:0"}},
    "no such port": {"admin": {"bind": "127.0.0.1:65536"}},
    "no text": {"admin": {"bind": 7071}},
    "no mapping": [],
}


@pytest.mark.parametrize("tree", UNUSABLE.values(), ids=UNUSABLE)
def test_settings_without_an_address(file: Path, tree: Any) -> None:
    file.write_text(json.dumps(tree))
    with pytest.raises(ConfigError, match=str(file)):
        health.probes("proxy", file, {})


COMMANDS = {
    "the image's": ("python3 -m valetkey.proxy --config /a", ("proxy", Path("/a"))),
    "with an init": ("/sbin/init -- python3 -m valetkey.broker --config /a", ("broker", Path("/a"))),
    "an option of the interpreter": ("python -I -m valetkey.injector --config=/a", ("injector", Path("/a"))),
    "the command": ("/opt/valetkey/bin/valetkey collector --config /a", ("collector", Path("/a"))),
    "by its script": ("python3 /opt/valetkey/bin/valetkey proxy --config /a", ("proxy", Path("/a"))),
    "the command line's module": ("python3 -m valetkey.cli proxy --config /a", ("proxy", Path("/a"))),
    "something else": ("python3 -m valetkey.cli audit verify", None),
    "no file": ("python3 -m valetkey.proxy --help", None),
    "a file that is missing": ("python3 -m valetkey.proxy --config", None),
    "another module": ("python3 -m other.proxy --config /a", None),
    "nothing": ("", None),
}  # fmt: skip


@pytest.mark.parametrize(("command", "found"), COMMANDS.values(), ids=COMMANDS)
def test_whom_it_asks(command: str, found: Any) -> None:
    # /proc/PID/cmdline ends with a zero.
    assert health.started_as([*command.split(), ""]) == found


class Probe(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        status = 200 if self.path == "/healthz" else self.server.ready  # type: ignore[attr-defined]
        body = b'{"reason": "draining\x1b[2J"}'
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def probe() -> Iterator[Any]:
    server = http.server.HTTPServer(("127.0.0.1", free_port()), Probe)
    server.ready, server.asked = 200, []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def ask(file: Path, port: int, *more: str, program: str = "proxy") -> int:
    bind = f"127.0.0.1:{port}"
    file.write_text(
        json.dumps({"admin": {"bind": bind}} if program == "proxy" else {"bind": bind, "tls": {}})
    )
    return health.main([program, "--config", str(file), *more])


def test_a_program_that_is_ready_is_well(file: Path, probe: Any) -> None:
    assert ask(file, probe.server_port) == 0
    assert probe.asked == ["/readyz"]


def test_one_that_is_not_says_why(file: Path, probe: Any, capsys: Any) -> None:
    probe.ready = 503
    assert ask(file, probe.server_port) == 1
    said = capsys.readouterr().err
    assert (
        said
        == f'http://127.0.0.1:{probe.server_port}/readyz: 503: {{"reason": "draining\\x1b[2J"}}\n'
    )
    assert ask(file, probe.server_port, "--live") == 0
    assert probe.asked[-1] == "/healthz"


def test_nobody_there(file: Path, capsys: Any) -> None:
    assert ask(file, free_port()) == 1
    assert "no answer" in capsys.readouterr().err


def test_a_certificate_is_not_looked_at(file: Path, probe: Any) -> None:
    """As by the kubelet: it is for the name that clients know."""
    issued = trustme.CA().issue_cert("broker.example")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    issued.configure_cert(context)
    probe.socket = context.wrap_socket(probe.socket, server_side=True)
    assert ask(file, probe.server_port, program="broker") == 0


def test_settings_that_can_not_be_used(file: Path, capsys: Any) -> None:
    assert health.main(["proxy", "--config", str(file)]) == 1
    assert capsys.readouterr().err.startswith(f"{file}: can't be read: ")


def test_process_1_is_looked_at(
    tmp_path: Path, file: Path, monkeypatch: Any, capsys: Any, probe: Any
) -> None:
    first = tmp_path / "cmdline"
    monkeypatch.setattr(health, "_FIRST", first)
    first.write_bytes(b"/sbin/init\0")
    assert health.main([]) == 1
    assert "process 1 is no program" in capsys.readouterr().err
    file.write_text(json.dumps({"admin": {"bind": f"127.0.0.1:{probe.server_port}"}}))
    first.write_bytes(f"python3\0-m\0valetkey.proxy\0--config\0{file}\0".encode())
    assert health.main([]) == 0


@pytest.mark.parametrize("arguments", [["proxy"], ["--config", "a"], ["other", "--config", "a"]])
def test_wrong_usage(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        health.main(arguments)
    assert ended.value.code == 2


def test_the_command_asks_too(file: Path, probe: Any) -> None:
    file.write_text(json.dumps({"admin": {"bind": f"127.0.0.1:{probe.server_port}"}}))
    run = CliRunner()
    assert run.invoke(main, ["health", "proxy", "--config", str(file)]).exit_code == 0
    probe.ready = 503
    assert run.invoke(main, ["health", "proxy", "--config", str(file)]).exit_code == 1
    assert run.invoke(main, ["health", "--live", "proxy", "--config", str(file)]).exit_code == 0
    assert run.invoke(main, ["health", "proxy"]).exit_code == 2
    assert run.invoke(main, ["health", "--config", str(file)]).exit_code == 2


def test_it_loads_little() -> None:
    code = "import sys, valetkey.cli.health; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert not {"aiohttp", "asyncio", "click", "cryptography", "sqlalchemy"} & set(
        done.stdout.split()
    )

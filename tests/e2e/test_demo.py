"""The demo: it holds, it fails when a step does not, and it can be looked at and stopped."""

from __future__ import annotations

import http.client
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from tests.support.canaries import Canaries
from tests.support.namespaces import Namespace, lacking
from valetkey.cli.demo import main, stage

COMMAND = (sys.executable, "-c", "from valetkey.cli.main import main; main()", "demo")
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """The demo from beginning to end. ``beyond``: packets that were to leave the machine."""

    done: subprocess.CompletedProcess[str]
    left: list[Path]
    beyond: int | None


BEYOND = """
table inet beyond {
    chain out {
        type filter hook output priority 0; policy accept;
        oifname != "lo" meta l4proto != ipv6-icmp counter
    }
}
"""


class Alone:
    """A network in which packets may leave, to nobody, and each is counted."""

    def __init__(self) -> None:
        self.namespace = Namespace()
        for command in (
            "ip link add way type veth peer name end",
            "ip link set end up",
            "ip addr add 192.0.2.1/24 dev way",
            "ip link set way up",
            "ip route add default via 192.0.2.254 dev way",
            "ip neigh add 192.0.2.254 lladdr 02:00:00:00:00:01 dev way",
        ):
            self.namespace.run(*command.split())
        subprocess.run(self.namespace.argv("nft", "-f", "-"), input=BEYOND, text=True, check=True)

    def beyond(self) -> int:
        listed = self.namespace.run("nft", "list", "table", "inet", "beyond").stdout
        return int(re.findall(r"counter packets (\d+)", listed)[0])


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """Once for all, in a network of its own where one can be made."""
    directory = tmp_path_factory.mktemp("demo")
    alone = None if lacking() else Alone()
    try:
        done = subprocess.run(
            alone.namespace.argv(*COMMAND) if alone else COMMAND,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
            env={**os.environ, "TMPDIR": str(directory)},
        )
        yield Run(done, list(directory.iterdir()), alone.beyond() if alone else None)
        if alone:
            seen = alone.beyond()
            alone.namespace.inside(_to_nobody)
            assert alone.beyond() > seen, "nothing would have been counted"
    finally:
        if alone:
            alone.namespace.close()


def _to_nobody() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("203.0.113.7", 9))  # RFC 5737


def test_every_step_holds_and_nothing_stays_behind(whole: Run) -> None:
    done = whole.done
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    steps = re.findall(r"^✓ (\d+)\. (.+)$", done.stdout, re.MULTILINE)
    assert [number for number, _ in steps] == [str(number) for number in range(1, 12)]
    assert "✗" not in done.stdout
    for part in ("The trail", "denied grant.scope", "dropped authorization", "for user-7"):
        assert part in done.stdout
    assert whole.left == []


def test_it_speaks_to_nobody_beyond_this_machine(whole: Run) -> None:
    """Not even a look-up of a name: docs/how-to/run-without-internet.md."""
    if whole.beyond is None:
        pytest.skip(lacking())
    assert whole.done.returncode == 0
    assert whole.beyond == 0


def test_a_step_that_does_not_hold_fails_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The agent is granted what it should not have: the demo must notice."""
    grants = [dict(grant) for grant in stage.GRANTS]
    grants[0]["scopes"] = ["tickets:read", "tickets:comment", "tickets:delete"]
    monkeypatch.setattr(stage, "GRANTS", grants)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert main.run(keep=False) == 1
    shown = capsys.readouterr().out
    assert "✗ 2. It tries to delete the ticket" in shown
    assert "✓ 1." in shown
    (directory,) = tmp_path.glob("valetkey-demo-*")
    assert f"logs and settings: {directory}" in shown
    assert (directory / "logs" / "broker.log").stat().st_size > 0


def test_a_program_that_does_not_start_is_named_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(stage, "GRANTS", [{"id": "a grant without the rest"}])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    before = psutil.Process().children()  # a server that other tests share
    assert main.run(keep=False) == 1
    assert re.search(
        r"✗ broker ended at its start: see \S+/logs/broker\.log", capsys.readouterr().out
    )
    assert psutil.Process().children() == before


class Kept:
    """A demo that was left running."""

    def __init__(self, tmp_path: Path) -> None:
        self.output = tmp_path / "output"
        with self.output.open("wb") as output:
            self.process = subprocess.Popen(
                (*COMMAND, "--keep"),
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, "TMPDIR": str(tmp_path)},
            )
        deadline = time.monotonic() + 240
        while "Ctrl-C stops it" not in self.text or "reader" not in self.text:
            assert time.monotonic() < deadline, self.text
            assert self.process.poll() is None, self.text
            time.sleep(0.05)
        assert "✗" not in self.text, self.text
        (self.directory,) = tmp_path.glob("valetkey-demo-*")

    @property
    def text(self) -> str:
        return self.output.read_text()

    def port(self, line: str) -> int:
        found = re.search(rf"^ *{line} +http://127\.0\.0\.1:(\d+)", self.text, re.MULTILINE)
        assert found, self.text
        return int(found[1])


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    demo = Kept(tmp_path)
    yield demo
    if demo.process.poll() is None:
        demo.process.send_signal(signal.SIGTERM)
        demo.process.wait(120)


def request(port: int, method: str, path: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request(method, path)
    response = connection.getresponse()
    body = response.read().decode()
    connection.close()
    return response.status, body


# What the tutorial's commands show, in its order; the first two make what `Kept` is.
TUTORIAL = (
    ("make demo", ""),
    (".venv/bin/valetkey demo --keep", ""),
    ("curl -i http", r"HTTP/1\.1 200 "),
    ("curl -i -X DELETE http", r"HTTP/1\.1 403 (.|\n)*\"code\":\"grant\.scope\""),
    (".venv/bin/valetkey audit tail", r"DELETE /api/tickets/7 .* denied grant\.scope"),
    (".venv/bin/valetkey audit verify", "the record holds"),
)


def commands_of_the_tutorial(kept: Kept) -> Iterator[tuple[str, list[str], str]]:
    """Each with what it has to show, on the demo that runs."""
    page = (ROOT / "docs/tutorial.md").read_text()
    lines = re.findall(r"^    (\S.*)$", page, re.MULTILINE)
    for line, (begins, shows) in zip(lines, TUTORIAL, strict=True):
        assert line.startswith(begins)
        if shows:
            known = line.replace("PORT", str(kept.port("sidecar")))
            words = shlex.split(known.replace("DIRECTORY", str(kept.directory)))
            yield line, [*COMMAND[:-1], *words[1:]] if "valetkey" in words[0] else words, shows


def test_what_is_kept_can_be_used_as_the_tutorial_says_and_leaks_nothing(
    kept: Kept, canaries: Canaries
) -> None:
    secrets = ("agent.token", "auditor.token", "master.key")
    for name in secrets:
        path = kept.directory / name
        raw = path.read_bytes()
        canaries.add(raw if name == "master.key" else raw.decode(), name=name, allow=[path])

    for line, words, shows in commands_of_the_tutorial(kept):
        deadline = time.monotonic() + 60
        while True:  # what is delivered to the collector takes a moment
            done = subprocess.run(
                words,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
                env={**os.environ, "COLUMNS": "200"},  # so that a row is a line
            )
            if done.returncode == 0 and re.search(shows, done.stdout):
                break
            assert time.monotonic() < deadline, f"{line}\n{done.stdout}{done.stderr}"
            time.sleep(0.2)
    sidecar = kept.port("sidecar")
    assert request(kept.port("ticket API"), "GET", "/api/tickets/7")[0] == 401

    grants = kept.directory / "config" / "grants.yaml"
    grants.write_text(
        grants.read_text().replace("- tickets:comment", "- tickets:comment\n  - tickets:delete", 1)
    )
    deadline = time.monotonic() + 60
    while request(sidecar, "DELETE", "/tickets/api/tickets/7")[0] != 200:
        assert time.monotonic() < deadline, "the changed grants file was not applied"
        time.sleep(0.1)

    page = (ROOT / "docs/reference/metrics.md").read_text().partition("## Broker")[0]
    for line in ("metrics", "broker", "collector"):
        _, metrics = request(kept.port(line), "GET", "/metrics")
        canaries.check(metrics, f"metrics of {line}")
        if line == "metrics":
            real = set(re.findall(r"^# TYPE (\S+)", metrics, re.MULTILINE))
            assert set(re.findall(r"valetkey_[a-z_]+", page)) == real

    before = len(canaries.leaks)
    canaries.check_tree(kept.directory)
    assert canaries.leaks[before:] == []

    children = psutil.Process(kept.process.pid).children(recursive=True)
    assert len(children) == 4
    kept.process.send_signal(signal.SIGINT)
    assert kept.process.wait(120) == 0, kept.text
    assert not any(child.is_running() for child in children)
    assert not kept.directory.exists()

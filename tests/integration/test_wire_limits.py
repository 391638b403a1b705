"""Limits on connections and descriptors: told clearly, counted, and nobody else starves."""

from __future__ import annotations

import os
import resource
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.recording import OK, Recording
from tests.support.sidecar import Answer, Client, Sidecar, World, lanes
from valetkey.contracts.events import TYPE_DECISION, TYPE_OUTCOME

pytest_plugins = ["tests.support.wire_fixtures"]

SOON = 15.0


def get(path: str, *lines: str, method: str = "GET") -> bytes:
    return "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""]).encode()


def hits(sidecar: Sidecar, limit: str) -> float:
    return sidecar.metric(f'valetkey_limit_hits_total{{limit="{limit}"}}')


def refused(client: Client) -> bool:
    """Whether a connection, over which nothing was sent, is told that there is no room."""
    answer = client.answer()
    assert (answer.code, answer.status, answer.closes) == ("proxy.overloaded", 503, True)
    assert client.ended(SOON)
    return True


def served(client: Client, path: str = "/lane0/") -> Answer:
    client.send(get(path))
    return client.answer()


# --- connections of one listener ------------------------------------------------------------------


@pytest.fixture
def two_listeners(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    made = wire_world.sidecar(
        "two",
        lanes(session_upstream.url, 1),
        listeners=[
            {"bind": "127.0.0.1:0", "connections": 2},
            {"bind": "127.0.0.1:0"},
            {"bind": "127.0.0.1:0", "mode": "forward", "connections": 1},
        ],
        passthrough=[
            {
                "host": "localhost",
                "ports": [session_upstream.port],
                "allow_networks": ["127.0.0.0/8", "::1/128"],
            }
        ],
    )
    yield made
    assert made.defects() == []
    made.stop()


def test_a_listener_that_is_full_leaves_the_others_alone(
    two_listeners: Sidecar, upstream: Recording
) -> None:
    full = [two_listeners.open() for _ in range(2)]
    for client in full:
        assert served(client).status == 200
    for n in range(1, 4):
        assert refused(two_listeners.open())
        assert hits(two_listeners, "listeners[].connections") == n
    assert served(two_listeners.open(1)).status == 200
    assert served(full[0]).status == 200
    full[1].close()
    upstream.wait_for(lambda: two_listeners.metric("valetkey_connections") == 2)
    assert served(two_listeners.open()).status == 200
    assert any(
        (line["event"], line["key"]) == ("limit_hit", "listeners[].connections")
        for line in two_listeners.program.log()
        if "key" in line
    )


def test_a_tunnel_is_a_connection_of_its_listener_until_it_ends(
    two_listeners: Sidecar, upstream: Recording
) -> None:
    where = f"localhost:{upstream.port}"
    tunnel = two_listeners.open(2)
    tunnel.send(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
    assert tunnel.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")
    assert refused(two_listeners.open(2))
    tunnel.send(get("/through"))
    assert tunnel.answer().body == b"ok"
    tunnel.close()
    upstream.wait_for(lambda: two_listeners.metric("valetkey_connections") == 0)
    with two_listeners.open(2) as again:
        again.send(f"CONNECT {where} HTTP/1.1\r\nHost: {where}\r\n\r\n".encode())
        assert again.until(b"\r\n\r\n").startswith(b"HTTP/1.1 200 ")


# --- descriptors ----------------------------------------------------------------------------------

DESCRIPTORS = 200


@pytest.fixture
def poor(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    """A sidecar that may open few files."""
    made = wire_world.sidecar(
        "poor",
        lanes(session_upstream.url, 4),
        spool={"dir": str(wire_world.directory / "poor" / "spool"), "segment_size": "64KiB"},
        descriptors=DESCRIPTORS,
    )
    yield made
    assert made.defects() == []
    made.stop()


def open_files(sidecar: Sidecar) -> set[int]:
    """The descriptors of the process, by number."""
    return {int(entry.name) for entry in Path(f"/proc/{sidecar.program.pid}/fd").iterdir()}


def lasting_files(sidecar: Sidecar) -> set[int]:
    """Those that are there to stay: some are open for a moment only."""
    samples = [open_files(sidecar)]
    for _ in range(5):
        time.sleep(0.01)
        samples.append(open_files(sidecar))
    return set.intersection(*samples)


def squeeze(sidecar: Sidecar) -> None:
    """Let the process open no further file from now on: connections fill what is free between."""
    deadline = time.monotonic() + SOON
    while free := set(range(max(files := lasting_files(sidecar)))) - files:
        assert time.monotonic() < deadline, free
        for _ in free:
            sidecar.open()
    allow(sidecar, max(files) + 1)


def allow(sidecar: Sidecar, limit: int) -> None:
    """Let the process open files up to that number (getrlimit(2))."""
    hard = resource.prlimit(sidecar.program.pid, resource.RLIMIT_NOFILE)[1]
    resource.prlimit(sidecar.program.pid, resource.RLIMIT_NOFILE, (limit, hard))


def processor_time(sidecar: Sidecar) -> float:
    fields = Path(f"/proc/{sidecar.program.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def admin_answers(sidecar: Sidecar) -> bool:
    with urllib.request.urlopen(f"http://127.0.0.1:{sidecar.admin}/readyz", timeout=SOON) as page:
        return bool(page.status == 200)


def test_connections_end_before_descriptors_do(
    poor: Sidecar, upstream: Recording, wire_world: World
) -> None:
    [told] = [line for line in poor.program.log() if line["event"] == "descriptors_short"]
    fit = told["count"]
    assert fit == poor.metric("valetkey_connections_limit")
    assert DESCRIPTORS // 4 < fit < DESCRIPTORS // 2
    kept = [poor.open() for _ in range(fit)]
    upstream.wait_for(lambda: poor.metric("valetkey_connections") == fit)
    for n in range(1, 4):
        assert refused(poor.open())
        assert hits(poor, "descriptors") == n
    assert len(open_files(poor)) < DESCRIPTORS * 3 // 4
    # Each of those that are in gets to a target, the record goes on over many segments, and the
    # workload's new token is read.
    before = [len(poor.events(kind)) for kind in (TYPE_DECISION, TYPE_OUTCOME)]
    for n, client in enumerate(kept):
        assert served(client, f"/lane{n % 4}/{'x' * 900}").status == 200
    after = [len(poor.events(kind)) for kind in (TYPE_DECISION, TYPE_OUTCOME)]
    assert after == [count + fit for count in before]
    wire_world.idp.token_file(
        wire_world.token_file, "spiffe://demo.example/ns/agents/sa/bot", [wire_world.url]
    )
    upstream.wait_for(
        lambda: [line["event"] for line in poor.program.log()].count("identity_read") == 2
    )
    assert admin_answers(poor)
    # And room that comes free is used.
    for client in kept[:5]:
        client.close()
    upstream.wait_for(lambda: poor.metric("valetkey_connections") == fit - 5)
    assert served(poor.open()).status == 200


def shed(client: Client) -> bool:
    """Whether a connection is ended at once. There is no time for long goodbyes: words may miss."""
    client.sock.settimeout(2.0)
    try:
        return client.rest()[:12] in {b"HTTP/1.1 503", b""}
    except TimeoutError:
        return False  # it was let in: one descriptor was free yet


def test_no_descriptor_at_all_is_told_and_does_not_spin(poor: Sidecar, upstream: Recording) -> None:
    with poor.open() as kept:
        assert served(kept, "/none").code == "target.no_match"  # it is open, and no target is
        # Limits that are lowered behind its back are what it can't have planned for.
        squeeze(poor)
        assert sum(shed(poor.open()) for _ in range(8)) >= 3
        assert served(kept).status == 503  # the broker, too, is out of reach
        waiting = [socket.create_connection(("127.0.0.1", poor.port)) for _ in range(5)]
        begun, used = time.monotonic(), processor_time(poor)
        time.sleep(0.5)
        share = (processor_time(poor) - used) / (time.monotonic() - begun)
        assert share < 0.5
        for sock in waiting:
            sock.close()
        allow(poor, DESCRIPTORS)
        assert hits(poor, "descriptors") >= 3
        upstream.wait_for(lambda: served(kept).status == 200)
    assert poor.ask(get("/lane1/")).status == 200


def test_a_call_without_a_descriptor_to_spare(poor: Sidecar, upstream: Recording) -> None:
    """The only idle connection is given up; the next call has none to give."""
    with poor.open() as one, poor.open() as two:
        go = threading.Event()
        upstream.script(lambda wire: (wire.request(), go.wait(SOON), wire.send(OK)))
        one.send(get("/lane0/"))
        upstream.wait_for(upstream._scripts.empty)
        squeeze(poor)
        two.send(get("/lane1/"))
        answer = two.answer()
        assert (answer.code, answer.status) == ("proxy.overloaded", 503)
        assert answer.values("retry-after") == ["1"]
        allow(poor, DESCRIPTORS)
        assert served(two, "/lane1/").status == 200
        go.set()
        assert one.answer().body == b"ok"
    outcomes: list[Any] = [event["data"]["unmapped"] for event in poor.events()]
    assert any(said.get("code") == "proxy.overloaded" for said in outcomes)


def test_an_idle_connection_to_a_target_is_given_up_for_a_call(
    poor: Sidecar, upstream: Recording
) -> None:
    with poor.open() as client:
        assert served(client, "/lane0/").status == 200
        [idle] = upstream.wires
        squeeze(poor)
        assert served(client, "/lane1/").status == 200
        upstream.wait_for(lambda: idle.sock.fileno() < 0)
        allow(poor, DESCRIPTORS)


# --- the admin port -------------------------------------------------------------------------------


def test_the_admin_port_can_not_be_used_up(poor: Sidecar, upstream: Recording) -> None:
    idle = [socket.create_connection(("127.0.0.1", poor.admin)) for _ in range(100)]
    assert admin_answers(poor)
    assert len(open_files(poor)) < DESCRIPTORS // 2
    assert hits(poor, "admin") > 0
    assert poor.ask(get("/lane0/")).status == 200
    for sock in idle:
        sock.close()

"""The soak's report: medians, ranges, verdicts; and what counts as held."""

from __future__ import annotations

import json
import socket
import threading
from typing import Any

import pytest

from bench import soak
from bench.crowd import Crowd
from bench.measurements import LatencyRound


def latency(p99: float, *, broken: int = 0) -> LatencyRound:
    return LatencyRound(
        row="r", round=0, rate=1000.0, calls=1000, broken=broken, p50_ms=p99 / 4, p90_ms=p99 / 2,
        p99_ms=p99, max_ms=p99 * 2, late_p50_ms=0.0, late_p99_ms=0.0, cpu_us_per_request=1.0,
    )  # fmt: skip


def a_round(before: float, beside: float, after: float, **crowd: Any) -> soak.Round:
    fared = {"idle": 5000, "slow": 200, "idle_lost": 0, "heads_ended": 7, "broken": []} | crowd
    return soak.Round(
        before=latency(before),
        beside=latency(beside),
        after=latency(after),
        idle_resident=2048,
        idle_anonymous=1024,
        idle_sockets=512,
        slow_resident=90 << 10,
        slow_sockets=300 << 10,
        crowd=fared,
    )


def test_the_ratio_is_to_both_loads_alone() -> None:
    assert a_round(1.0, 3.0, 2.0).ratio == pytest.approx(2.0)
    assert a_round(2.0, 2.0, 2.0).ratio == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("made", "held"),
    [
        (a_round(1, 1, 1), True),
        (a_round(1, 1, 1, idle_lost=1), False),
        (a_round(1, 1, 1, broken=["ended"]), False),
        (a_round(1, 9, 1), True),  # slow is not broken
    ],
)
def test_what_held(made: soak.Round, held: bool) -> None:
    assert made.held is held


def test_a_call_that_was_not_answered_did_not_hold() -> None:
    broken = latency(1.0, broken=1)
    good = a_round(1, 1, 1)
    made = soak.Round(
        before=broken, beside=good.beside, after=good.after, idle_resident=0, idle_anonymous=0,
        idle_sockets=0, slow_resident=0, slow_sockets=0, crowd=good.crowd,
    )  # fmt: skip
    assert not made.held


def test_the_report() -> None:
    rounds = [a_round(1.0, 1.5, 1.0), a_round(1.0, 3.0, 1.0, broken=["x"]), a_round(2.0, 5.0, 2.0)]
    text = soak.report(rounds, 15.0, "Measured on a machine.")
    assert "1,000 calls a second on 32 connections" in text
    assert (
        "| beside 5,000 idle and 200 slow connections | 0.75 (0.38 to 1.25) | 3.00 (1.50 to 5.00)"
        in text
    )
    assert "**2.50 ×** (1.50, 3.00, 2.50; aim: at most 2, missed)" in text
    assert "| sidecar, resident | 2.0 KiB | 90.0 KiB |" in text
    assert "1 connections that should have held were lost, and 21 slow heads" in text
    assert "Measured on a machine." in text
    assert "met)" in soak.report(rounds[:1], 15.0, "")


class Server:
    """Answers the first line of each connection with 200, and says nothing more."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.taken: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                sock, _ = self.listener.accept()
            except OSError:
                return
            self.taken.append(sock)
            threading.Thread(target=self._answer, args=(sock,), daemon=True).start()

    @staticmethod
    def _answer(sock: socket.socket) -> None:
        while data := sock.recv(4096):
            if data.startswith(b"GET /call"):
                sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    def close(self) -> None:
        self.listener.close()
        for sock in self.taken:
            sock.close()


def test_the_crowd_tells_what_became_of_it() -> None:
    server = Server()
    crowd = Crowd(server.port, idle=6, slow=3, call="/call", upload="/up", download="/down")
    try:
        crowd.gather()
        crowd.slow_down()
        crowd.keep(0.01)
        assert crowd.report().idle_lost == 0
        # An idle one that is closed, and a slow one that is told something.
        server.taken[0].shutdown(socket.SHUT_RDWR)
        upload = next(
            sock
            for sock in server.taken[6:]
            if sock.getpeername()[1] == crowd._slow[1].socket.getsockname()[1]
        )
        upload.sendall(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        crowd.keep(2.1)
        report = crowd.report()
        assert report.idle_lost == 1
        assert report.broken == ["HTTP/1.1 408 Request Timeout"]
        assert json.loads(json.dumps({"idle": report.idle, "slow": report.slow})) == {
            "idle": 6,
            "slow": 3,
        }
    finally:
        crowd.close()
        server.close()

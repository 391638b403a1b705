from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from bench.fixed_rate import Broken, content_length, percentile, run, summarise

ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


@contextmanager
def server(answer: Callable[[int], bytes]) -> Iterator[int]:
    """Answers call number n with ``answer(n)``, one at a time; empty closes the connection."""
    listener = socket.create_server(("127.0.0.1", 0))
    counter = iter(range(1_000_000))
    turn = threading.Lock()

    def talk(peer: socket.socket) -> None:
        with peer:
            while peer.recv(4096):
                with turn:
                    reply = answer(next(counter))
                if not reply:
                    return
                peer.sendall(reply)

    def accept() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=talk, args=(peer,), daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield int(listener.getsockname()[1])
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def test_counts_the_calls_after_the_warm_up() -> None:
    with server(lambda _: ANSWER) as port:
        result = run(port, REQUEST, rate=200, seconds=0.5, connections=4)
    assert (result.calls, result.broken) == (100, 0)
    assert 0 < result.p50_ms <= result.p99_ms <= result.max_ms


def test_a_stall_shows_in_every_call_that_it_delayed() -> None:
    def answer(number: int) -> bytes:
        if number == 120:  # after the warm-up of 100 calls
            time.sleep(0.25)
        return ANSWER

    with server(answer) as port:
        result = run(port, REQUEST, rate=200, seconds=0.5, connections=1)
    # 0.25 s at 200 a second delay 50 of 100 calls; a closed loop would have seen one of them.
    assert result.p90_ms > 100
    assert result.p50_ms > 1
    assert result.max_ms >= 249


def test_broken_connections_are_counted_and_replaced() -> None:
    with server(lambda number: b"" if number % 10 == 0 else ANSWER) as port:
        result = run(port, REQUEST, rate=200, seconds=0.2, connections=2)
    assert result.broken == 14
    assert result.calls > 0


def test_other_answers_are_broken_calls() -> None:
    with server(lambda _: b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n") as port:
        result = run(port, REQUEST, rate=100, seconds=0.1, connections=2)
    assert (result.calls, result.broken) == (0, 60)


@pytest.mark.parametrize(
    ("share", "value"), [(50, 50.0), (99, 99.0), (100, 100.0), (1, 1.0), (0, 1.0)]
)
def test_percentile_is_the_nearest_rank(share: float, value: float) -> None:
    assert percentile([float(n) for n in range(1, 101)], share) == value


def test_percentile_of_few() -> None:
    assert percentile([], 50) == 0.0
    assert percentile([7.0], 99) == 7.0
    assert percentile([1.0, 2.0], 99) == 2.0


def test_summary_is_in_milliseconds() -> None:
    result = summarise([0.002, 0.001], [0.0001], broken=3)
    assert (result.calls, result.broken, result.p50_ms, result.max_ms) == (2, 3, 1.0, 2.0)
    assert result.late_p99_ms == pytest.approx(0.1)


def test_content_length() -> None:
    assert content_length(b"HTTP/1.1 200 OK\r\ncontent-LENGTH: 12") == 12
    with pytest.raises(Broken):
        content_length(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked")

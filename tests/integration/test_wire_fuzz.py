"""Differential fuzzing, bounded and always the same; `make fuzz` plays new inputs for longer.

The sidecar's data path in process, with h11 as the second reader of what comes in, and h11, llhttp
at its laxest, http.server and nginx of what goes upstream (`tests.fuzz`); then a part of it through
real processes: sidecar, nginx, and what is behind.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections.abc import Iterator

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz import __main__ as long_run
from tests.fuzz.answers import POISON, STARTS, answers
from tests.fuzz.datapath import ENTRIES, OK, DataPath, cut
from tests.fuzz.nginx import NGINX, Nginx
from tests.fuzz.properties import (
    AnswerTally,
    Disagreement,
    Tally,
    check_answers,
    check_sent,
    check_stream,
)
from tests.fuzz.readers import Read, Reader, answers_by_h11, by_h11
from tests.fuzz.requests import cuts, places, streams
from tests.support.sidecar import Sidecar, World, target
from tests.support.wire_cases import MAX_FIELDS, MAX_HEAD, PASSED

pytest_plugins = ["tests.support.wire_fixtures"]

needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
STREAMS = st.sampled_from(ENTRIES).flatmap(lambda e: st.tuples(st.just(e), streams(e)))


def bounded(examples: int) -> settings:
    return settings(
        max_examples=examples,
        derandomize=True,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def path() -> Iterator[DataPath]:
    with DataPath() as made:
        yield made


@pytest.fixture(scope="module")
def nginx(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    with Nginx(tmp_path_factory.mktemp("nginx")) as made:
        yield made


def test_what_a_workload_sends_is_read_alike_or_refused(path: DataPath) -> None:
    tally = Tally()

    @bounded(700)
    @given(STREAMS, cuts())
    def run(stream: tuple[str, bytes], marks: list[int]) -> None:
        check_stream(path, stream[1], marks, stream[0], tally)

    run()
    # The inputs are worth something: many get through, and many kinds are refused.
    assert tally.forwarded > tally.inputs / 3
    assert len(tally.refused) > 10


def test_what_a_target_answers_is_passed_on_as_it_is_or_not_at_all(path: DataPath) -> None:
    tally = AnswerTally()

    @bounded(400)
    @given(st.sampled_from(STARTS), answers(), cuts())
    def run(start: str, answer: tuple[bytes, bool], marks: list[int]) -> None:
        check_answers(path, start, *answer, marks, tally)

    run()
    assert tally.passed > tally.inputs / 3
    assert min(tally.cut, tally.refused, tally.waiting) > 0


@needs_nginx
def test_what_goes_upstream_is_to_nginx_what_it_is_to_the_sidecar(
    path: DataPath, nginx: Nginx
) -> None:
    tally = Tally()
    more = {"nginx": Reader(nginx.read, nginx.ignoring)}

    @bounded(200)
    @given(STREAMS.filter(lambda stream: b"HTTP/1." in stream[1]))
    def run(stream: tuple[str, bytes]) -> None:
        check_stream(path, stream[1], [], stream[0], tally, more)

    run()
    assert tally.forwarded > 80


# --- through processes ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sidecar(wire_world: World, nginx: Nginx) -> Iterator[Sidecar]:
    made = wire_world.sidecar(
        "fuzzed",
        {"up": target(f"http://127.0.0.1:{nginx.port}", pass_headers=PASSED)},
        listeners=[{"bind": "127.0.0.1:0", "target": "up"}],
        limits={"head_size": f"{MAX_HEAD}B", "headers": MAX_FIELDS},
    )
    yield made
    assert made.defects() == []
    made.stop()


@needs_nginx
def test_a_server_behind_a_real_nginx_gets_what_h11_reads(sidecar: Sidecar, nginx: Nginx) -> None:
    arrived = 0

    @bounded(200)
    @given(streams("reverse"), cuts())
    def run(raw: bytes, marks: list[int]) -> None:
        nonlocal arrived
        nginx.settle()
        with sidecar.open() as client:
            with contextlib.suppress(OSError):  # the sidecar had closed
                for piece in cut(raw, places(raw, marks)):
                    client.send(piece)
                client.half_close()
            with contextlib.suppress(ConnectionResetError):
                client.rest()
        theirs, _ = by_h11(raw)
        said, rest, _ = answers_by_h11(
            client.recorded, iter([read.method for read in theirs] + ["GET"]), ended=True
        )
        assert rest == b""
        reads = iter(list(nginx.reads))
        for their, answer in zip(theirs, said, strict=False):
            if answer.status == 200:
                read = next(reads)
                arrived += 1
                credential = [field for field in read.fields if field[0] == "authorization"]
                assert len(credential) == 1
                check_sent(read, their, ignoring=nginx.ignoring, credential=credential[0][1])
        # What was sent and not answered any more: the client had gone, or nginx was not done.
        assert sum(1 for _ in reads) <= 1

    run()
    assert arrived > 50


# --- what the fuzzing found -----------------------------------------------------------------------


def raw(path: str, *lines: str, method: str = "GET", body: str = "") -> bytes:
    return ("\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""]) + body).encode()


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_what_was_on_its_way_before_a_call_is_not_its_answer(path: DataPath, method: str) -> None:
    """Response queue poisoning: it comes after the connection was lent again, and unasked."""

    def answer(read: Read) -> list[bytes | None]:
        return [OK, POISON] if read.target == "/1" else [OK]

    second = raw("/2", "Content-Length: 5", method=method, body="hello")
    play = path.play([raw("/1") + second], answer=answer)
    assert b"poison" not in play.said
    assert play.said.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert [read.target for read in play.reads] == ["/1", "/2"]  # never sent where it was poisoned
    assert len(play.upstreams) == 2


def test_a_call_is_not_repeated_for_that_without_end(path: DataPath) -> None:
    """A connection that speaks first, once more: that target is not one to ask again."""

    def answer(read: Read) -> list[bytes | None]:
        return [OK, POISON]

    play = path.play([raw("/1") + raw("/2") + raw("/3")], answer=answer)
    assert b"poison" not in play.said
    assert play.said.count(b"HTTP/1.1 200 OK") == 3


def test_an_end_that_was_on_its_way_costs_no_post(path: DataPath) -> None:
    """Nothing of it was sent yet, so it may be, whatever its method."""

    def answer(read: Read) -> list[bytes | None]:
        return [OK, None] if read.target == "/1" else [OK]

    second = raw("/2", "Content-Length: 5", method="POST", body="hello")
    play = path.play([raw("/1") + second], answer=answer)
    assert play.said.count(b"HTTP/1.1 200 OK") == 2


def test_a_method_may_begin_with_a_digit_in_pieces_too(path: DataPath) -> None:
    stream = raw("/1", method="1GET")
    whole = path.play([stream])
    pieces = path.play([stream[:1], stream[1:]])
    assert b"route.no_match" in whole.said
    assert b"route.no_match" in pieces.said


TRAILED = [
    b"Content-Length:\r\n", b"X-A: b\r\ncontent_length: 5\r\n", b"Transfer-Encoding: chunked\r\n",
    b"Host: other\r\n",
]  # fmt: skip


@pytest.mark.parametrize("trailer", [b"", b"X-A: b\r\n", *TRAILED])
def test_trailers_are_read_alike_or_refused_wherever_they_are_cut(
    path: DataPath, trailer: bytes
) -> None:
    """An empty length behind the last chunk: dropped by the sidecar, refused by h11."""
    body = b"0\r\n" + trailer + b"\r\n"
    head = raw("/1", "Transfer-Encoding: chunked", method="PATCH", body="5\r\nhello\r\n")
    check_stream(path, head + body, [], "reverse", Tally())
    marks = range(len(body))
    for pair in [*itertools.combinations_with_replacement(marks, 2)]:
        play = path.play([head, *cut(body, pair)])
        assert (b"request.body_malformed" in play.said) == (trailer in TRAILED)
        assert all(read.complete for read in play.reads) == (trailer not in TRAILED)


def test_a_disagreement_is_told_of_though_the_time_is_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """Made shorter, it is an input like before: neither passed over nor taken for flaky."""
    minutes, found = 0.001, []

    def check(_path: object, stream: bytes, *_more: object) -> None:
        if b"chunked" in stream:
            if not found:
                time.sleep(60 * minutes)
            found.append(stream)
            raise Disagreement(stream)

    monkeypatch.setattr(long_run, "check_stream", check)
    monkeypatch.setattr(long_run, "NGINX", None)
    with pytest.raises(Disagreement) as told:
        long_run.main(["--seed", "1", "--minutes", str(minutes)])
    assert told.value.args == (min(found, key=len),)

"""What a target answers, and what the workload gets of it, however the bytes arrive.

Each row of `tests.support.answer_cases`, in process (`tests.fuzz.datapath`): whole, byte by byte and
cut in two at every position; then whole over real sockets.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.datapath import DataPath, bytewise, cut
from tests.fuzz.properties import SECOND, SECOND_CALL
from tests.fuzz.readers import Read, answers_by_h11
from tests.support.answer_cases import ANSWER_CASES, BROKEN, AnswerCase, Passed
from tests.support.recording import Ended, Recording
from tests.support.sidecar import Answer, Sidecar, World, lanes
from tests.support.wire_cases import MAX_HEAD

pytest_plugins = ["tests.support.wire_fixtures"]

EACH = pytest.mark.parametrize("case", ANSWER_CASES, ids=[case.id for case in ANSWER_CASES])
OURS = {"content-length", "transfer-encoding", "connection", "via"}


@pytest.fixture(scope="module")
def path() -> Iterator[DataPath]:
    with DataPath() as made:
        yield made


def outcome(path: DataPath, case: AnswerCase, pieces: list[bytes]) -> Passed | str:
    """What became of the first of two calls; the second got its own answer, or none was due."""
    given: list[bytes | None] = [*pieces, None] if case.ends else list(pieces)

    def answer(read: Read) -> list[bytes | None]:
        return given if read.target == "/first" else [SECOND]

    call = f"{case.method} /first HTTP/1.1\r\nHost: h\r\n\r\n{SECOND_CALL}".encode()
    play = path.play([call], answer=answer)
    found, rest, _ = answers_by_h11(play.said, iter([case.method, "GET"]), ended=True)
    assert rest == b""
    assert b"poison" not in play.said or "within" in case.name
    first, *others = found
    if not first.complete:
        assert others == []
        return BROKEN
    assert [(other.status, other.body) for other in others] == [(200, b"second")]
    if b'"code":"' in first.body:
        return first.body.partition(b'"code":"')[2].partition(b'"')[0].decode()
    return Passed(first.body, first.status)


@EACH
def test_the_outcome_is_the_same_however_the_answer_arrives(
    case: AnswerCase, path: DataPath
) -> None:
    raw = case.raw
    expected = (
        Passed(case.then.body, case.then.status) if isinstance(case.then, Passed) else case.then
    )
    assert outcome(path, case, [raw] if raw else []) == expected
    assert outcome(path, case, bytewise(raw)) == expected
    for place in range(1, len(raw)):
        assert outcome(path, case, cut(raw, [place])) == expected, place


# --- real sockets ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording) -> Iterator[Sidecar]:
    made = wire_world.sidecar(
        "answers",
        lanes(session_upstream.url, len(ANSWER_CASES)),
        limits={"head_size": f"{MAX_HEAD}B"},
    )
    yield made
    assert made.defects() == []
    made.stop()


@EACH
def test_over_real_sockets(case: AnswerCase, sidecar: Sidecar, upstream: Recording) -> None:
    lane = sidecar.lane()
    upstream.replies(case.raw, then="close" if case.ends else "")
    with sidecar.open() as client:
        client.send(f"{case.method} {lane}/1 HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        try:
            client.seen(b"\r\n\r\n")
            while client.peek().startswith(b"HTTP/1.1 1"):
                client.until(b"\r\n\r\n")
                client.seen(b"\r\n\r\n")
            answer = client.answer(head_only=case.method == "HEAD")
        except (Ended, ConnectionResetError):
            assert case.then == BROKEN
            return
        assert case.then != BROKEN
        check(answer, case)
        client.send(f"GET {lane}/2 HTTP/1.1\r\nHost: h\r\n\r\n".encode())
        assert client.answer().body == b"ok"


def check(answer: Answer, case: AnswerCase) -> None:
    if isinstance(case.then, str):
        assert (answer.code, answer.status) == (case.then, 502)
        return
    assert (answer.status, answer.body) == (case.then.status, case.then.body)
    fields = [
        line
        for line in answer.head.decode("latin-1").split("\r\n")[1:-2]
        if line.partition(":")[0].lower() not in OURS
    ]
    assert fields == list(case.then.fields)


def test_the_table_says_each_thing_once() -> None:
    assert len({case.id for case in ANSWER_CASES}) == len(ANSWER_CASES)
    assert len({(case.method, case.raw, case.ends) for case in ANSWER_CASES}) == len(ANSWER_CASES)
    assert all(case.why for case in ANSWER_CASES)

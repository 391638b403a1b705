"""What must hold for whatever a workload sends, and for whatever a target answers."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from tests.fuzz.datapath import TOKEN, DataPath, Decision, Play, bytewise, cut
from tests.fuzz.readers import LAX, Read, Reader, answers_by_h11, by_h11
from tests.fuzz.requests import places

# Written down once more: what the sidecar takes out, in this test's own words.
_SEPARATORS: Final = re.compile(r"[^a-z0-9]")
_DROPPED: Final = frozenset({
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
    "http2-settings", "proxy",
    "authorization", "proxy-authorization", "dpop", "cookie", "x-api-key", "x-valetkey-subject",
})  # fmt: skip
_REWRITTEN: Final = frozenset(
    {"host", "via", "content-length", "transfer-encoding", "authorization"}
)
_CREDENTIALS: Final = re.compile(
    rb"(?:^|[&;])[ +]*(?:access[-_. ]token|(?:x[-_. ])?api[-_. ]?key|x[-_. ]amz[-_. ]signature)"
    rb"[ +]*(?:[=&;\[\x00]|$)",
    re.IGNORECASE,
)


@dataclass
class Tally:
    """What became of the inputs so far."""

    inputs: int = 0
    plays: int = 0
    forwarded: int = 0
    """Inputs of which a whole request went upstream."""
    requests: int = 0
    """Whole requests that went upstream, all plays together."""
    refused: Counter[str] = field(default_factory=Counter)
    """Inputs by the codes that were said to them."""
    waiting: int = 0
    """Inputs of which no request ever became whole."""


class Disagreement(AssertionError):  # noqa: N818
    """Two readers read it differently."""


def check_stream(
    path: DataPath,
    raw: bytes,
    marks: list[int],
    entry: str,
    tally: Tally,
    more: dict[str, Reader] | None = None,
) -> None:
    """Play ``raw`` whole, in pieces with and without a pause, byte by byte; compare all readings.

    ``marks`` say where it is cut (`requests.places`). ``more``: further readers of what goes upstream, beside those that are always asked.
    """
    tally.inputs += 1
    theirs, _ = by_h11(raw)
    plays = []
    # In one process, so that the second and third find what was kept of heads at the first.
    at_once = [raw] if raw else []
    pieces = cut(raw, places(raw, marks))
    ways = ((at_once, False), (pieces, False), (pieces, True), (bytewise(raw), False))
    for number, (sent, hasty) in enumerate(ways):
        play = path.play(sent, entry, fresh=number == 0, hasty=hasty)
        tally.plays += 1
        check_play(play, theirs, raw)
        plays.append(play)
    first = plays[0]
    for other in plays[1:]:
        check_same(first, other, theirs)
    for upstream in first.upstreams:
        check_readers(upstream.raw, LAX | (more or {}))
    _count(tally, plays)


def check_play(play: Play, theirs: list[Read], raw: bytes) -> None:
    """The sidecar's reading, as it decided and recorded it, against h11's of the same bytes."""
    for upstream in play.upstreams:
        reader = by_h11(upstream.raw)
        if reader[1]:
            raise Disagreement(f"h11 refuses what went upstream: {reader[1]}: {upstream.raw!r}")
    if "proxy.internal" in play.said.decode("latin-1"):
        raise Disagreement("a defect of the sidecar's own")
    sent = iter(play.reads)
    readings = iter(theirs)
    last = False
    for decision in play.decisions:
        their = next(readings, None)
        while their is not None and their.method == "CONNECT" and decision.method != "CONNECT":
            their = next(readings, None)  # opened: what was inside is what comes next
        if their is None:
            raise Disagreement(f"decided on, and no request to h11: {decision}: {raw!r}")
        if last:
            raise Disagreement(f"decided on behind a request that was the last one: {decision}")
        last = their.last
        check_decision(decision, their)
        if decision.allowed:
            read = next(sent, None)
            if read is not None:
                check_sent(read, their)
            elif their.complete and b"HTTP/1.1 400 " not in play.said:
                # Else the workload had gone, or its body turned out bad, before anything was sent.
                raise Disagreement(f"allowed, and not sent: {decision}")
    extra = next(sent, None)
    if extra is not None:
        raise Disagreement(f"sent without a decision: {extra}")


def check_decision(decision: Decision, their: Read) -> None:
    if decision.method != their.method:
        raise Disagreement(f"decided on {decision}, h11 reads {their}")
    if their.method != "CONNECT":
        path = _origin_form(their.target).partition("?")[0]
        # Denied before there was a target, a path is recorded with its prefix.
        if decision.path not in {path, path[path.find("/", 1) :], path[:1024]}:
            raise Disagreement(f"decided on {decision}, h11 reads {their}")


def check_sent(
    read: Read,
    their: Read,
    *,
    ignoring: frozenset[str] = frozenset(),
    credential: bytes | None = None,
) -> None:
    """A request as the target reads it, against the same as h11 reads it from the workload.

    ``ignoring``: fields that the target does not tell of; ``credential``: what it may carry, the
    one that `DataPath` deals in by default.
    """
    if read.method != their.method:
        raise Disagreement(f"sent as {read}, h11 reads {their}")
    wanted = _origin_form(their.target)
    if _CREDENTIALS.search(unquote_to_bytes(wanted.partition("?")[2])):
        wanted, (got, _, query) = wanted.partition("?")[0], read.target.partition("?")
        if _CREDENTIALS.search(unquote_to_bytes(query)):
            raise Disagreement(f"a credential in the query went on: {read}")
    else:
        got = read.target
    if got != wanted and f"/up{got}" != _decoded_prefix(wanted):
        raise Disagreement(f"sent as {read}, h11 reads {their}")
    if _fields(read, ignoring) != _fields(their, ignoring):
        raise Disagreement(f"sent {_fields(read)}, h11 reads {_fields(their)}")
    gone = _DROPPED - {"transfer-encoding"} - ignoring
    if [name for name, _ in read.fields if _normal(name) in gone] != ["authorization"]:
        raise Disagreement(f"what ends here went on: {read}")
    credentials = [value for name, value in read.fields if name == "authorization"]
    if credential is None:
        user = any(_normal(name) == "x-valetkey-subject" for name, _ in their.fields)
        credential = b"Bearer of-a-user" if user else f"Bearer {TOKEN}".encode()
    if credentials != [credential]:
        raise Disagreement(f"not the credential of this call: {read}")
    if their.complete != read.complete and not (their.complete and not read.complete):
        raise Disagreement(f"complete to one, not to the other: {read}, {their}")
    if read.body != their.body[: len(read.body)] or (read.complete and read.body != their.body):
        raise Disagreement(f"bodies differ: {read}, {their}")


def check_readers(raw: bytes, readers: dict[str, Reader]) -> None:
    """What went upstream over one connection, read by everybody."""
    ours, _ = by_h11(raw)
    whole = [read for read in ours if read.complete]
    if whole != ours:  # broken off: the connection was, too
        return
    for name, reader in readers.items():
        theirs, refused = reader.read(raw)
        if refused:
            raise Disagreement(f"{name} refuses it: {refused}: {raw!r}")
        if len(theirs) != len(ours):
            raise Disagreement(f"{name} reads {len(theirs)} requests, h11 {len(ours)}: {raw!r}")
        for our, their in zip(ours, theirs, strict=True):
            if our.bare(reader.ignoring) != their.bare(reader.ignoring):
                raise Disagreement(f"{name} reads {their}, h11 {our}")


def check_same(first: Play, other: Play, theirs: list[Read]) -> None:
    """The same outcome, however the bytes arrived.

    A refusal of a request with a body ends the connection where the body had not come whole, and
    what is behind it is then not looked at; nor is a part of a request of which no more will come.
    So one play may see less than the other, never something else.
    """
    # Whether CONNECT is answered with a tunnel hangs on whether the workload waits for it.
    until = next((n for n, read in enumerate(theirs) if read.method == "CONNECT"), None)
    one, two = _outcomes(first)[:until], _outcomes(other)[:until]
    shorter = min(len(one), len(two))
    for number in range(shorter):
        if one[number] != two[number]:
            body = number < len(theirs) and theirs[number].with_body
            if not (body and one[number][0] == two[number][0] == "refused"):
                raise Disagreement(f"{one[number]} at once, {two[number]} in pieces")
    if len(one) != len(two):
        ended = 0 < shorter <= len(theirs) and theirs[shorter - 1].with_body
        incomplete = shorter < len(theirs) and not theirs[shorter].complete
        if not ended and not incomplete:
            raise Disagreement(f"{one} at once, {two} in pieces")


def _outcomes(play: Play) -> list[tuple[object, ...]]:
    """For each request: what was sent, or that it was refused."""
    said = iter(play.reads)
    found: list[tuple[object, ...]] = []
    for decision in play.decisions:
        read = next(said, None) if decision.allowed else None
        if read is not None and read.complete:
            found.append(("sent", read.method, read.target, tuple(read.fields), read.body))
        else:
            found.append(("refused", decision.method, decision.path))
    return found


# --- answers --------------------------------------------------------------------------------------

VIA: Final = (b"1.0 valetkey", b"1.1 valetkey")
SECOND_CALL: Final = "GET /second HTTP/1.1\r\nHost: h\r\n\r\n"
SECOND: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecond"


@dataclass
class AnswerTally:
    """What became of the answers so far."""

    inputs: int = 0
    plays: int = 0
    passed: int = 0
    """Answers that went on whole."""
    cut: int = 0
    """Answers that began, and then were visibly broken off."""
    refused: int = 0
    waiting: int = 0


def check_answers(
    path: DataPath, start: str, raw: bytes, ends: bool, marks: list[int], tally: AnswerTally
) -> None:
    """A target answers the first of two calls with ``raw``: whole, in pieces, byte by byte.

    ``start`` are the first call's method and version; ``ends``: the target closes behind ``raw``.

    What the workload gets is that answer as h11 reads it, or an error, and for its second call the
    second answer or nothing, whatever stands in ``raw``.
    """
    tally.inputs += 1
    method, version = start.split(" ")
    body = "Content-Length: 5\r\n\r\nhello" if method == "POST" else "\r\n"
    sent = f"{method} /first {version}\r\nHost: h\r\nConnection: keep-alive\r\n{body}{SECOND_CALL}"
    results = []
    at_once = [raw] if raw else []
    for number, pieces in enumerate((at_once, cut(raw, places(raw, marks)), bytewise(raw))):
        given = [*pieces, None] if ends else pieces

        def answer(read: Read, given: list[bytes | None] = given) -> list[bytes | None]:
            return given if read.target == "/first" else [SECOND]

        play = path.play([sent.encode()], answer=answer, fresh=number == 0, patient=False)
        tally.plays += 1
        results.append(check_answer(play, method, raw, ends))
    if len(set(results)) != 1:
        raise Disagreement(f"{results} of {raw!r}")
    setattr(tally, results[0], getattr(tally, results[0]) + 1)


def check_answer(play: Play, method: str, raw: bytes, ends: bool) -> str:
    """What became of the first answer: a field of `AnswerTally`."""
    theirs, _, _ = answers_by_h11(raw, iter([method]), ended=ends)
    ours, rest, refused = answers_by_h11(play.said, iter([method, "GET"]), ended=True)
    if refused and not refused.startswith(("peer ", "can't handle event type ConnectionClosed")):
        raise Disagreement(f"h11 refuses what the workload got: {refused}: {play.said!r}")
    if rest:
        raise Disagreement(f"more than two answers: {play.said!r}")
    if len(ours) == 2 and (ours[1].status, ours[1].body) != (200, b"second"):
        raise Disagreement(f"the second call got {ours[1]}, of {raw!r}")
    if not ours:
        if theirs and theirs[0].complete:
            raise Disagreement(f"nothing came of {theirs[0]}")
        return "waiting"
    first = ours[0]
    if first.status == 502 and b"application/problem+json" in play.said:
        return "refused"
    if not theirs:
        raise Disagreement(f"passed on {first}, and no answer to h11: {raw!r}")
    their = theirs[0]
    if first.status != their.status or not their.body.startswith(first.body):
        raise Disagreement(f"passed on {first}, h11 reads {their}")
    whole = first.complete and not ((play.reset or play.left) and len(ours) == 1)
    if whole and not (their.complete and first.body == their.body):
        raise Disagreement(f"a whole answer of a broken one: {first}, {their}")
    kept = iter(their.fields)
    for name, value in first.fields:
        if name in {"content-length", "transfer-encoding", "connection"} or value in VIA:
            continue
        if (name, value) not in kept:  # in their order: the iterator moves on
            raise Disagreement(f"passed on {name}: {value!r}, h11 reads {their.fields}")
    return "passed" if whole else "cut"


def _count(tally: Tally, plays: list[Play]) -> None:
    whole = [read for play in plays for read in play.reads if read.complete]
    tally.requests += len(whole)
    codes = set(re.findall(rb'"code":"([a-z._]+)"', plays[0].said))
    if any(read.complete for read in plays[0].reads):
        tally.forwarded += 1
    elif not codes:
        tally.waiting += 1
    tally.refused.update(code.decode() for code in codes)


def _origin_form(target: str) -> str:
    if target.startswith("/") or "://" not in target:
        return target
    rest = target.partition("://")[2]
    at = next((n for n, char in enumerate(rest) if char in "/?"), len(rest))
    return rest[at:] if rest[at : at + 1] == "/" else "/" + rest[at:]


def _decoded_prefix(target: str) -> str:
    """With the first segment decoded: that is how a prefix is compared."""
    _, first, *rest = target.partition("?")[0].split("/")
    decoded = unquote_to_bytes(first).decode("latin-1")
    return "/".join(["", decoded, *rest]) + target[len(target.partition("?")[0]) :]


def _normal(name: str) -> str:
    return _SEPARATORS.sub("-", name.lower())


def _fields(read: Read, ignoring: frozenset[str] = frozenset()) -> list[tuple[str, bytes]]:
    """The fields that go on, in order, without those that the sidecar writes itself."""
    listed = {
        _normal(option.strip().decode("latin-1"))
        for name, value in read.fields
        if _normal(name) == "connection"
        for option in value.split(b",")
    }
    return [
        (name, value.strip(b" \t"))
        for name, value in read.fields
        if _normal(name) not in _DROPPED | _REWRITTEN | listed | ignoring
    ]

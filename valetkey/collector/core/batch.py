"""From the bytes of a batch to the events to store, or the reason why not.

Invariants of what comes out: every event is valid JSON in valid UTF-8 throughout (so that it can
be handed on as it is), all are of one source and one boot, sequence numbers ascend without
repeats. The bytes of each event are exactly those that arrived.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

import msgspec

from valetkey.collector.core import columns, statements
from valetkey.collector.core.columns import Columns
from valetkey.collector.core.coverage import MAX_SEQUENCE
from valetkey.collector.core.links import Link
from valetkey.collector.core.statements import Declaration, PreviousBoot
from valetkey.contracts import codes, events
from valetkey.contracts.errors import CallerError

# The most that a sidecar's settings let it send at once (proxy settings, collector.batch).
MAX_EVENTS: Final = 10_000


class Received(Link, frozen=True, gc=False):
    """One event: its place in the chain, its exact bytes, and what is kept beside them."""

    time: str
    raw: bytes
    columns: Columns
    declaration: Declaration | None = None
    previous: PreviousBoot | None = None


@dataclass(frozen=True, slots=True)
class Batch:
    """Events of one boot in ascending order. ``repeated`` counts equal copies that were dropped."""

    source: str
    boot: str
    events: tuple[Received, ...]
    repeated: int


class Contradiction(CallerError):  # noqa: N818 - reads as what it is
    """The batch itself holds two events of one id with different bytes."""

    def __init__(self, batch: Batch, seq: int, hashes: tuple[str, str]) -> None:
        super().__init__(codes.AUDIT_CONFLICT, f"{batch.boot}-{seq} twice in one batch")
        self.batch = batch
        self.seq = seq
        self.hashes = hashes


def read_batch(body: bytes) -> Batch:
    """Read a batch strictly. Raises `CallerError` (``audit.batch_invalid``, ``audit.conflict``)."""
    try:
        body.decode()
        raws = events.split_batch(body)
    except (UnicodeDecodeError, events.EventInvalid, RecursionError) as error:
        raise _invalid("not a JSON array in UTF-8") from error
    if not raws:
        raise _invalid("no event")
    if len(raws) > MAX_EVENTS:
        raise _invalid(f"more than {MAX_EVENTS} events")
    source = boot = ""
    by_seq: dict[int, Received] = {}
    twice: tuple[int, tuple[str, str]] | None = None
    for raw in raws:
        envelope, received = _read(raw)
        if not source:
            source, boot = envelope.source, envelope.boot
        elif (envelope.source, envelope.boot) != (source, boot):
            raise _invalid("events of more than one source or boot")
        earlier = by_seq.setdefault(received.seq, received)
        if earlier.hash != received.hash:
            twice = received.seq, (earlier.hash, received.hash)
    ordered = tuple(by_seq[seq] for seq in sorted(by_seq))
    batch = Batch(source, boot, ordered, len(raws) - len(ordered))
    if twice:
        raise Contradiction(batch, *twice)
    return batch


def _read(raw: bytes) -> tuple[events.Envelope, Received]:
    try:
        envelope = events.read(raw)
        # The envelope's reader skips what it does not know; what is handed on to readers must be
        # JSON to the last member.
        data = _whole(raw).get("data")
    except (events.EventInvalid, msgspec.DecodeError, RecursionError) as error:
        raise _invalid(f"not an event: {type(error).__name__}") from error
    if not isinstance(data, dict):
        raise _invalid("data is not a JSON object")
    if envelope.seq > MAX_SEQUENCE:
        raise _invalid("sequence is too large")
    return envelope, Received(
        seq=envelope.seq,
        hash=events.digest(raw),
        prevhash=envelope.prevhash,
        time=envelope.time[:64],
        raw=raw,
        columns=columns.extract(envelope.type, envelope.boot, envelope.time, data),
        declaration=statements.declaration(data) if envelope.type == events.TYPE_GAP else None,
        previous=statements.previous_boot(data) if envelope.type == events.TYPE_BOOT else None,
    )


def _whole(raw: bytes) -> dict[str, Any]:
    return msgspec.json.decode(raw, type=dict[str, Any])


def _invalid(reason: str) -> CallerError:
    return CallerError(codes.AUDIT_BATCH_INVALID, reason)

"""The record: CloudEvents 1.0.2 with OCSF API Activity data, linked by hashes.

One sidecar boot is one chain. Every event of a boot carries ``sequence`` (1, 2, 3, …) and
``prevhash``, the SHA-256 of the exact bytes of the event before it (`GENESIS` for the first), so
that the JSON text of the events is all that is needed to check them: no event can be changed,
left out or put in between without breaking a link. A cut tail breaks none; heartbeats and the
next boot's start event, which names the last sequence and hash of the boot before, show it.

A call leaves two events, ``call.decision`` before anything goes upstream and ``call.outcome``
after; a decision without outcome is a crash in between, visible as such.

Never in an event: tokens, query values, header values (Host is the exception), bodies.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import msgspec

CONTENT_TYPE_BATCH: Final = "application/cloudevents-batch+json"  # CloudEvents HTTP binding §3.3
SPEC_VERSION: Final = "1.0"
GENESIS: Final = "0" * 64

TYPE_DECISION: Final = "valetkey.call.decision.v1"
TYPE_OUTCOME: Final = "valetkey.call.outcome.v1"
TYPE_BOOT: Final = "valetkey.sidecar.boot.v1"
TYPE_HEARTBEAT: Final = "valetkey.sidecar.heartbeat.v1"
TYPE_SETTINGS: Final = "valetkey.sidecar.settings.v1"
TYPE_GAP: Final = "valetkey.record.gap.v1"

# OCSF 1.6 API Activity (class 6003, category 6): activity by HTTP method.
OCSF_VERSION: Final = "1.6.0"
OCSF_CLASS_API_ACTIVITY: Final = 6003
OCSF_ACTIVITY: Final = {
    "POST": 1,
    "GET": 2,
    "HEAD": 2,
    "OPTIONS": 2,
    "PUT": 3,
    "PATCH": 3,
    "DELETE": 4,
}
OCSF_ACTIVITY_OTHER: Final = 99
OCSF_ACTION_ALLOWED: Final = 1
OCSF_ACTION_DENIED: Final = 2
OCSF_DISPOSITION_ALLOWED: Final = 1
OCSF_DISPOSITION_BLOCKED: Final = 2

SOURCE_PREFIX: Final = "urn:valetkey:sidecar:"
INSTANCE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
BOOT: Final = re.compile(r"[0-9a-f]{16}")


class EventInvalid(Exception):  # noqa: N818
    """Bytes that are not an event of this schema."""


class Envelope(msgspec.Struct, frozen=True):
    """The members of an event that transport and proofs need. ``data`` stays raw bytes."""

    specversion: str
    id: str
    source: str
    type: str
    time: str
    boot: str
    sequence: str
    prevhash: str
    data: msgspec.Raw
    subject: str = ""
    traceparent: str = ""

    @property
    def seq(self) -> int:
        return int(self.sequence)


_ENVELOPE: Final = msgspec.json.Decoder(Envelope)
_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SEQUENCE: Final = re.compile(r"[1-9][0-9]{0,18}")


def event_id(boot: str, seq: int) -> str:
    """The ``id`` of an event: unique per source, and known before the event is written."""
    return f"{boot}-{seq}"


def read(raw: bytes | msgspec.Raw) -> Envelope:
    """Read one event strictly. Raises `EventInvalid`."""
    try:
        event = _ENVELOPE.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventInvalid(str(error)) from error
    if event.specversion != SPEC_VERSION:
        raise EventInvalid("specversion is not 1.0")
    if not event.source.startswith(SOURCE_PREFIX) or not INSTANCE.fullmatch(
        event.source.removeprefix(SOURCE_PREFIX)
    ):
        raise EventInvalid("source is not a sidecar")
    if not BOOT.fullmatch(event.boot) or not _SEQUENCE.fullmatch(event.sequence):
        raise EventInvalid("boot or sequence is malformed")
    if event.id != event_id(event.boot, event.seq):
        raise EventInvalid("id does not follow from boot and sequence")
    if not _HASH.fullmatch(event.prevhash):
        raise EventInvalid("prevhash is not a SHA-256")
    return event


def digest(raw: bytes) -> str:
    """The link to an event: hex SHA-256 over its exact bytes."""
    return hashlib.sha256(raw).hexdigest()


@dataclass(frozen=True, slots=True)
class ChainBreak:
    """Where and why a chain of events does not hold. ``seq`` is the first event affected."""

    boot: str
    seq: int
    reason: str


@dataclass(frozen=True, slots=True)
class ChainHead:
    """The end of a checked stretch: the next event must carry ``seq + 1`` and this hash."""

    boot: str
    seq: int
    hash: str


def check_chain(
    boot: str, raws: Iterable[bytes], *, after: ChainHead | None = None
) -> tuple[ChainHead, list[ChainBreak]]:
    """Check events of one boot in the order given; ``after`` continues an earlier stretch.

    Every break is reported, and checking goes on behind it, so that one changed byte is told
    apart from a cut.
    """
    head = after or ChainHead(boot, 0, GENESIS)
    breaks: list[ChainBreak] = []
    for raw in raws:
        try:
            event = read(raw)
        except EventInvalid as error:
            breaks.append(ChainBreak(boot, head.seq + 1, f"not an event: {error}"))
            head = ChainHead(boot, head.seq + 1, digest(raw))
            continue
        if event.boot != boot:
            breaks.append(ChainBreak(boot, head.seq + 1, "event of another boot"))
            continue
        if event.seq != head.seq + 1:
            breaks.append(
                ChainBreak(boot, head.seq + 1, f"sequence jumps from {head.seq} to {event.seq}")
            )
        elif event.prevhash != head.hash:
            breaks.append(
                ChainBreak(boot, head.seq, "the event was changed: the next one's link differs")
                if head.seq
                else ChainBreak(boot, event.seq, "the first event is not linked to the genesis")
            )
        head = ChainHead(boot, event.seq, digest(raw))
    return head, breaks


def split_batch(body: bytes) -> list[bytes]:
    """The exact bytes of each event in a JSON batch. Raises `EventInvalid`."""
    try:
        return [bytes(raw) for raw in _BATCH.decode(body)]
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventInvalid("not a JSON array of events") from error


_BATCH: Final = msgspec.json.Decoder(list[msgspec.Raw])


def data_of(event: Envelope) -> dict[str, Any]:
    """The OCSF payload as plain data (for queries and tables; proofs use the bytes)."""
    try:
        return msgspec.json.decode(event.data, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise EventInvalid("data is not a JSON object") from error

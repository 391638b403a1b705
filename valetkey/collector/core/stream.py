"""What of the record becomes which message, and what stream may keep it.

A message is a CloudEvent in the structured content mode of the NATS binding (§3.2): its payload is
the exact text of the event, so that hashes and links hold for who consumes it. Its subject is

    PREFIX.KIND.DECISION.SIDECAR

with ``KIND`` one of `KINDS`, ``DECISION`` ``allowed``, ``denied`` or ``none``, and the name of the
sidecar as one token. Its id (``Nats-Msg-Id``) names the sidecar as well: CloudEvents makes ``id``
unique per source only, and by another's id a sidecar could have that one's events dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from valetkey.contracts import events

CONTENT_TYPE: Final = "application/cloudevents+json"
KINDS: Final = {
    events.TYPE_DECISION: "decision",
    events.TYPE_OUTCOME: "outcome",
    events.TYPE_BOOT: "boot",
    events.TYPE_HEARTBEAT: "heartbeat",
    events.TYPE_GAP: "gap",
}
"""The token of a subject by the event's ``type``; of a type that is not known, ``other``."""

# JetStream's own default; a restart of a collector or of a server takes less.
LEAST_WINDOW: Final = 120.0
LEAST_AGE: Final = 86_400.0


class Stream(msgspec.Struct, frozen=True, kw_only=True):
    """A stream's configuration. Times in seconds, sizes in bytes; 0 or less is no limit."""

    subjects: tuple[str, ...]
    retention: str
    storage: str
    discard: str
    max_age: float
    max_msgs: int
    max_bytes: int
    max_msgs_per_subject: int
    duplicate_window: float
    no_ack: bool = False
    sealed: bool = False
    mirrored: bool = False
    transformed: bool = False
    deny_delete: bool = False
    deny_purge: bool = False


class Finding(msgspec.Struct, frozen=True):
    """Something about a stream. ``refused``: nothing is published to one that is like this."""

    refused: bool
    text: str


def subject(prefix: str, type_: str, decision: str, source: str) -> str:
    """The subject of an event, of its ``type``, ``decision`` column and ``source``."""
    return f"{prefix}.{KINDS.get(type_, 'other')}.{decision or 'none'}.{_token(source)}"


def message_id(source: str, event_id: str) -> str:
    """The ``Nats-Msg-Id`` of an event."""
    return f"{_name(source)}/{event_id}"


def findings(stream: Stream, subjects: str) -> Iterator[Finding]:
    """What is wrong with a stream for the record, ``subjects`` being what it should take."""
    if stream.subjects != (subjects,):
        yield Finding(True, f"its subjects are not {subjects} alone")
    if stream.retention != "limits":
        yield Finding(True, f"its retention is {stream.retention}: consumers would delete events")
    if stream.no_ack:
        yield Finding(True, "it acknowledges nothing (no_ack)")
    if stream.sealed:
        yield Finding(True, "it is sealed")
    if stream.mirrored:
        yield Finding(True, "it is a mirror, or has sources: others would write between events")
    if stream.transformed:
        yield Finding(True, "it changes subjects")
    if stream.max_msgs_per_subject > 0:
        yield Finding(True, "it keeps so many messages per subject, and drops others in between")
    if stream.duplicate_window < LEAST_WINDOW:
        yield Finding(False, f"its duplicate window is shorter than {LEAST_WINDOW:.0f} s")
    if stream.storage != "file":
        yield Finding(False, f"its storage is {stream.storage}: a restart empties it")
    if stream.discard == "old" and (stream.max_msgs > 0 or stream.max_bytes > 0):
        yield Finding(False, "at its limits it drops the oldest events (discard: old)")
    if 0 < stream.max_age < LEAST_AGE:
        yield Finding(False, f"it keeps events for {stream.max_age:.0f} s only (max_age)")
    if not (stream.deny_delete and stream.deny_purge):
        yield Finding(False, "messages can be deleted from it (deny_delete, deny_purge)")


def _name(source: str) -> str:
    return source.removeprefix(events.SOURCE_PREFIX)


def _token(source: str) -> str:
    """A sidecar's name has dots, which would be several tokens, or empty ones."""
    return _name(source).replace(".", "%2E")

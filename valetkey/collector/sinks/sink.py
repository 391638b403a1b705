"""What a stream is to who hands on, and why it may refuse: words that metrics and logs share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from valetkey.collector.core.stream import Stream
from valetkey.collector.store.handoffs import Waiting


class Reason(StrEnum):
    """The kinds of failures. ``docs/runbooks/ValetkeyHandoffBehind.md`` says what to do of each."""

    UNREACHABLE = "unreachable"
    UNAUTHORIZED = "unauthorized"
    PERMISSION = "permission"
    NO_JETSTREAM = "no_jetstream"
    NO_STREAM = "no_stream"
    MISCONFIGURED = "misconfigured"
    FULL = "full"
    TOO_LARGE = "too_large"
    OUT_OF_TURN = "out_of_turn"
    TIMEOUT = "timeout"
    REFUSED = "refused"
    DATABASE = "database"


class HandoffFailed(Exception):  # noqa: N818 - reads as what it is
    """``detail`` is for the log, and no secret; ``number`` is JetStream's own, where it has one."""

    def __init__(self, reason: Reason, detail: str, *, number: int = 0) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.number = number


@dataclass(frozen=True, slots=True)
class Published:
    """What became of events: the first ``count`` are in the stream, ``duplicates`` of them before.

    ``sequence`` is that of the last new one, or what it was before; ``failure`` is why the others
    are not known to be there.
    """

    count: int
    duplicates: int
    sequence: int
    failure: HandoffFailed | None = None


@dataclass(frozen=True, slots=True)
class State:
    """A stream: its configuration, the numbers of its first and last message, how many it has."""

    stream: Stream
    first: int
    last: int
    messages: int


class Sink(Protocol):
    """One connection to a stream. What asks raises `HandoffFailed`."""

    def end(self) -> HandoffFailed | None:
        """Why the connection is of no use any more, if that is known."""

    async def state(self) -> State:
        """The stream as it is now."""

    async def message(self, sequence: int) -> bytes | None:
        """The payload of a message; ``None`` where it is not there (any more)."""

    async def publish(self, waiting: Sequence[Waiting], *, after: int) -> Published:
        """Publish in this order, behind the stream's message ``after``."""

    async def close(self) -> None:
        """Let go of the connection, at once."""

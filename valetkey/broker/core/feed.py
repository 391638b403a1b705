"""The feed's rules: who sees what, and how far a stream has come.

Pure; what is stored and sent is in `store.signals`, `store.streams` and `broker.feed`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import msgspec

from valetkey.contracts.signals import EVENT_OF, EVENTS, Event, Signal, event_claims

ENABLED: Final = "enabled"
PAUSED: Final = "paused"
DISABLED: Final = "disabled"
STATUSES: Final = (ENABLED, PAUSED, DISABLED)  # SSF 1.0 §8.1.2.1

_CANONICAL: Final = msgspec.json.Encoder(order="deterministic")


def canonical_subject(subject: Any) -> str:
    """A subject identifier (RFC 9493) as text, so that equal means equal."""
    return _CANONICAL.encode(subject).decode()


@dataclass(frozen=True, slots=True)
class Published:
    """An event of the feed. ``seq`` orders all of them; ``stream`` is empty if it is for all."""

    seq: int
    jti: str
    event: Event
    published_at: float
    stream: str = ""


@dataclass(frozen=True, slots=True)
class Stream:
    """One receiver's stream: whose it is, what it wants, how far it has come.

    ``owner_key`` is the thumbprint of the proof key that it is bound to, or empty. ``excluded`` are
    subjects that the receiver does not want (`canonical_subject`). Everything up to ``position`` is
    acknowledged; it began behind ``start``.
    """

    id: str
    owner_issuer: str
    owner_subject: str
    owner_key: str
    start: int
    position: int
    description: str = ""
    events_requested: tuple[str, ...] = EVENTS
    excluded: frozenset[str] = frozenset()
    status: str = ENABLED
    status_reason: str = ""
    push_url: str = ""
    push_authorization: bytes | None = field(default=None, repr=False)
    created_at: float = 0.0
    contacted_at: float = 0.0

    @property
    def events_delivered(self) -> tuple[str, ...]:
        return tuple(name for name in EVENTS if name in self.events_requested)


@dataclass(frozen=True, slots=True)
class Audience:
    """Who may see which event.

    A sidecar (any workload with a stream of its own) sees every identifier that ended, since it
    can't be known who holds what rests on it; a subject only if it is itself or a user: other
    workloads are no concern of its. Where the broker takes its own tokens as subject tokens
    (``chained``), a workload can be the subject of another's credential, so there it sees all. That
    is where it trusts itself as an issuer, and where it issues transaction tokens: those are
    replaced by whoever presents one.

    ``receivers`` are the (issuer, subject) that settings name; those see all that they asked for.
    """

    issuer: str
    workload_issuers: frozenset[str]
    receivers: frozenset[tuple[str, str]] = frozenset()
    chained: bool = False

    def is_receiver(self, stream: Stream) -> bool:
        return (stream.owner_issuer, stream.owner_subject) in self.receivers

    def concerns(self, published: Published, stream: Stream) -> bool:
        """Whether the event goes to the stream."""
        if published.stream:
            return published.stream == stream.id
        signal = published.event
        if not isinstance(signal, Signal):
            return False
        if self.is_receiver(stream):
            if EVENT_OF[signal.kind] not in stream.events_requested:
                return False
            if not stream.excluded:
                return True
            claims = event_claims(signal, issuer=self.issuer, with_reason=False)
            return canonical_subject(claims["sub_id"]) not in stream.excluded
        return not self._is_of_one(signal) or (
            (signal.issuer, signal.value) == (stream.owner_issuer, stream.owner_subject)
        )

    def owners(self, published: Published) -> frozenset[tuple[str, str]] | None:
        """The (issuer, subject) whose streams alone it can go to; ``None``: anybody's."""
        signal = published.event
        if published.stream or not isinstance(signal, Signal) or not self._is_of_one(signal):
            return None
        return self.receivers | {(signal.issuer, signal.value)}

    def _is_of_one(self, signal: Signal) -> bool:
        """Whether no other workload than its subject is told."""
        return (
            signal.kind == "subject" and not self.chained and signal.issuer in self.workload_issuers
        )


@dataclass(frozen=True, slots=True)
class Progress:
    """A stream and whether it has everything that an incident told it, since when."""

    stream: str
    subject: str
    description: str
    acknowledged_at: float | None


def progress(
    told: Iterable[Published],
    streams: Iterable[Stream],
    acks: dict[tuple[int, str], float],
    audience: Audience,
) -> list[Progress]:
    """Of each stream that is concerned: when the last of what it was told was acknowledged.

    ``acks`` are times by (seq, stream). A stream that began later knew it from the start.
    """
    told = list(told)
    found = []
    for stream in streams:
        seqs = [p.seq for p in told if p.seq > stream.start and audience.concerns(p, stream)]
        if not seqs:
            continue
        times = [acks.get((seq, stream.id)) for seq in seqs]
        known = [time for time in times if time is not None]
        done = max(known) if len(known) == len(times) else None
        found.append(Progress(stream.id, stream.owner_subject, stream.description, done))
    return found


class Cursor:
    """How far one stream has come, while it is followed here.

    What is acknowledged beyond a gap counts once the gap is closed; until then it is remembered
    only here, and may be sent again after a restart (RFC 8936 §2.4 lets a transmitter do that).
    """

    __slots__ = ("beyond", "position")

    def __init__(self, position: int) -> None:
        self.position = position
        self.beyond: set[int] = set()

    def settle(self, seqs: Iterable[int]) -> None:
        """These are acknowledged, or given up."""
        self.beyond.update(seq for seq in seqs if seq > self.position)

    def advance(self, concerning: Sequence[int], head: int) -> bool:
        """Move up to the first that is not settled. True if that changed the position.

        ``concerning`` are the numbers behind the position, in order, that the stream was to get;
        ``head`` is the number up to which they are complete.
        """
        before = self.position
        position = max(head, before)
        for seq in concerning:
            if seq > before and seq not in self.beyond:
                position = seq - 1
                break
        self.position = max(position, before)
        self.beyond = {seq for seq in self.beyond if seq > self.position}
        return self.position > before

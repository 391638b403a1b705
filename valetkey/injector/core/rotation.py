"""When the injector's own CA and leaf are made anew, so that at no moment a handshake fails.

An API server trusts what the webhook configurations say, and hears of a change some time after it
was written. So a new CA is written there beside the old one first, signs only when it has been
there for ``overlap``, and the old one stays for as long after. Each step is one change of one
Secret; which replica makes it does not matter.

Invariant: what signed the leaf that is served has been trusted for ``overlap``, but for the very
first CA, or one that comes when all is lost: until that is trusted, the injector is not ready.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

import msgspec

# Of a lifetime: when what has it is replaced.
_CA_AT = 0.5
_LEAF_AT = 2 / 3


class Authority(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A CA: certificate and key as PEM, times in Unix seconds.

    ``announced``: when it was seen in all webhook configurations. ``retired``: when another began
    to sign.
    """

    certificate: str
    key: str
    made: float
    expires: float
    announced: float | None = None
    retired: float | None = None

    def __repr__(self) -> str:
        return f"Authority(made={self.made}, expires={self.expires})"


class Leaf(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is served: certificate and key as PEM, the names that it is for."""

    certificate: str
    key: str
    names: tuple[str, ...]
    made: float
    expires: float

    def __repr__(self) -> str:
        return f"Leaf(names={self.names}, made={self.made}, expires={self.expires})"


class State(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the replicas share. The first authority signs."""

    authorities: tuple[Authority, ...]
    leaf: Leaf

    @property
    def bundle(self) -> str:
        """All that is to be trusted, in an order that a switch leaves as it is."""
        ordered = sorted(self.authorities, key=lambda each: each.made)
        return "".join(each.certificate for each in ordered)

    @property
    def coming(self) -> Authority | None:
        """The one that is to sign next."""
        return next((each for each in self.authorities[1:] if each.retired is None), None)


@dataclass(frozen=True, slots=True)
class Times:
    """Seconds."""

    ca: float
    leaf: float
    overlap: float


class Step(Enum):
    """What is to be done next."""

    NOTHING = "nothing"
    BEGIN = "begin"
    PREPARE = "prepare"
    MARK = "mark"
    SWITCH = "switch"
    DROP = "drop"
    RENEW = "renew"


def due(state: State | None, names: Sequence[str], times: Times, now: float) -> Step:
    """The next step. ``state`` was announced: all webhook configurations have its bundle."""
    if state is None or now >= min(state.authorities[0].expires, state.leaf.expires):
        return Step.BEGIN
    signing, coming = state.authorities[0], state.coming
    if coming is not None and coming.announced is None:
        return Step.MARK
    if coming is not None and coming.announced is not None:
        if now >= coming.announced + times.overlap:
            return Step.SWITCH
    elif now >= signing.made + times.ca * _CA_AT:
        return Step.PREPARE
    if any(_is_over(each, times, now) for each in state.authorities):
        return Step.DROP
    leaf = state.leaf
    if now >= leaf.made + (leaf.expires - leaf.made) * _LEAF_AT or leaf.names != tuple(names):
        return Step.RENEW
    return Step.NOTHING


def prepared(state: State, coming: Authority) -> State:
    """With a CA that is to sign one day."""
    return msgspec.structs.replace(state, authorities=(*state.authorities, coming))


def marked(state: State, now: float) -> State:
    """With the coming CA seen in all configurations."""
    return msgspec.structs.replace(
        state,
        authorities=tuple(
            msgspec.structs.replace(each, announced=now) if each == state.coming else each
            for each in state.authorities
        ),
    )


def switched(state: State, leaf: Leaf, now: float) -> State:
    """With the coming CA as the one that signs, and its first leaf."""
    coming = state.coming
    assert coming is not None, "SWITCH comes after PREPARE and MARK"
    others = (each for each in state.authorities if each != coming)
    retired = (
        msgspec.structs.replace(each, retired=now) if each.retired is None else each
        for each in others
    )
    return State((coming, *retired), leaf)


def dropped(state: State, times: Times, now: float) -> State:
    """Without those that have been retired for long enough."""
    left = tuple(each for each in state.authorities if not _is_over(each, times, now))
    return msgspec.structs.replace(state, authorities=left)


def _is_over(authority: Authority, times: Times, now: float) -> bool:
    return authority.retired is not None and now >= authority.retired + times.overlap

"""DPoP nonces of a broker's replicas, without a table of them (RFC 9449 §8).

A nonce is a MAC over what it says and the number of a time window, under a key that the replicas
have in common. So it is good for one to two windows. There are three kinds:

- *own*: the replica process that gave it takes it, and no other does. Proofs that carry one are
  remembered in that process alone, and every proof from before a restart, which the process no
  longer knows, fails on its nonce.
- *shared*: every replica takes it. Proofs that carry one are used up where all replicas look.
- *standby*: as a shared one. It comes beside an own one, for a client that follows the feed, and
  is for the request that comes after a connection failed: when a replica ends, all its sidecars
  come to another one at once, and none of them has to be refused first.

Which memory a proof is used up in depends on its nonce, and so on the proof alone: none counts
twice, wherever it is shown.

A client repeats a refused request once with the nonce of the refusal (RFC 9449 §8), and the
repetition may get to any replica: so a refusal gives a shared one. What was accepted brings an own
one, which costs nothing; but a client that was seen at two replicas gets shared ones for `SPREAD`.
Who showed a standby one is not such a client: it is here because it could not stay there.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final, Literal

from valetkey.contracts.jose import TokenInvalid, b64url, b64url_decode

WINDOW: Final = 60.0
# How many windows long a client that changes replicas is not tried with an own nonce again.
SPREAD: Final = 15
_MAC: Final = 16
_REPLICA: Final = 8
_UNTIL: Final = 4
_LENGTH: Final = 1 + _REPLICA + _UNTIL + _MAC
Kind = Literal["own", "shared", "standby"]
_KINDS: Final[dict[bytes, Kind]] = {b"o": "own", b"s": "shared", b"b": "standby"}
_LETTERS: Final[dict[Kind, bytes]] = {kind: letter for letter, kind in _KINDS.items()}


@dataclass(frozen=True, slots=True)
class _Said:
    """What a nonce says: which replica gave it, and until which window the client is spread."""

    kind: Kind
    replica: bytes
    until: int


class Nonces:
    """``key`` has at least 32 bytes; ``replica``, 8 of them, are of this process alone.

    With ``alone`` there are no other replicas: all nonces are own ones, and ``key`` may be random.
    """

    __slots__ = ("_alone", "_key", "_replica")

    def __init__(self, key: bytes, *, replica: bytes, alone: bool) -> None:
        if len(key) < 32:
            raise ValueError("the nonce key is too short")
        if len(replica) != _REPLICA:
            raise ValueError(f"a replica is named by {_REPLICA} bytes")
        self._key = key
        self._replica = replica
        self._alone = alone

    def kind(self, nonce: str, now: float) -> Kind | None:
        """Which kind it is of, if it is taken here at ``now`` (seconds since the epoch)."""
        said = self._read(nonce, now)
        if said is None or (said.kind == "own" and said.replica != self._replica):
            return None
        return None if said.kind != "own" and self._alone else said.kind

    def is_shared(self, nonce: str) -> bool:
        """Whether all replicas take a nonce that was taken here, however long ago that was."""
        return b64url_decode(nonce)[:1] != _LETTERS["own"]

    def next(self, shown: str, now: float, *, refused: bool) -> str:
        """The nonce to answer with where ``shown`` came, perhaps empty; ``refused``: for it."""
        window = _window(now)
        said = None if self._alone else self._read(shown, now)
        if refused:
            return self._make("own" if self._alone else "shared", window, 0)
        if said is not None and said.kind == "shared":
            until = said.until if said.replica == self._replica else window + SPREAD
            if until > window:
                return self._make("shared", window, until)
        return self._make("own", window, 0)

    def standby(self, now: float) -> str:
        """One to keep for when this replica is gone; empty where there is no other."""
        return "" if self._alone else self._make("standby", _window(now), 0)

    def _make(self, kind: Kind, window: int, until: int) -> str:
        said = _LETTERS[kind] + self._replica + until.to_bytes(_UNTIL)
        return b64url(said + self._mac(said, window))

    def _read(self, nonce: str, now: float) -> _Said | None:
        try:
            raw = b64url_decode(nonce)
        except TokenInvalid:
            return None
        said, mac = raw[:-_MAC], raw[-_MAC:]
        if len(raw) != _LENGTH:
            return None
        window = _window(now)
        # The one to come: another replica's clock may be a little ahead.
        macs = (self._mac(said, window + away) for away in (0, -1, 1))
        kind = _KINDS.get(said[:1])
        if kind is None or not any(hmac.compare_digest(mac, right) for right in macs):
            return None
        return _Said(kind, said[1 : 1 + _REPLICA], int.from_bytes(said[-_UNTIL:]))

    def _mac(self, said: bytes, window: int) -> bytes:
        text = said + window.to_bytes(8, signed=True)
        return hmac.digest(self._key, text, hashlib.sha256)[:_MAC]


def _window(now: float) -> int:
    return int(now // WINDOW)

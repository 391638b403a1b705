"""Places in status lists (draft-ietf-oauth-status-list), and the tokens that have them.

Invariants:

- A token's place is stored before the token is given out: no token points at a place that nobody
  keeps.
- Each replica fills lists of its own, so that no two ever give out the same place, and in random
  order: neighbours in a list are no neighbours in time.
- Only what decides about a token is kept, and only until it expires.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec
from sqlalchemy import delete, insert, select

from valetkey.broker.core.status_list import SIZE, Place
from valetkey.broker.store.database import Database
from valetkey.broker.store.revocations import token_value
from valetkey.broker.store.schema import STATUS_ENTRIES
from valetkey.contracts import jose

# A list is filled for this long at most, so that it can be forgotten with the last of its tokens.
_FILLED: Final = 900.0
_KEPT: Final = frozenset({
    "iss", "sub", "aud", "client_id", "client_iss", "client_epoch", "sub_iss", "epoch", "iat",
    "exp", "jti", "txn", "grants", "cnf",
})  # fmt: skip


@dataclass(frozen=True, slots=True)
class Entry:
    """A token by its place. ``hashed`` is what stands for it where it is revoked by its hash."""

    index: int
    kid: str
    hashed: str
    claims: Mapping[str, Any]


class Statuses:
    """``clock`` gives seconds since the epoch, ``timer`` those of a clock that nobody sets."""

    def __init__(
        self, database: Database, *, clock: Callable[[], float], timer: Callable[[], float]
    ) -> None:
        self._database = database
        self._clock = clock
        self._timer = timer
        self._list = ""
        self._free: list[int] = []
        self._until = 0.0

    def place(self) -> Place:
        """The next place; from memory, for this replica alone."""
        if not self._free or self._timer() >= self._until:
            self._list = secrets.token_urlsafe(12)
            self._free = list(range(SIZE))
            secrets.SystemRandom().shuffle(self._free)
            self._until = self._timer() + _FILLED
        return Place(self._list, self._free.pop())

    async def keep(self, place: Place, compact: str) -> None:
        """Store what decides about a token that has just been made. Raises `StoreError`."""
        token = jose.parse(compact)
        claims = token.unverified_claims
        row = {
            "list": place.list,
            "idx": place.index,
            "kid": token.unverified_header["kid"],
            "hashed": token_value(compact),
            "claims": msgspec.json.encode(
                {name: claims[name] for name in _KEPT if name in claims}
            ).decode(),
            "expires_at": float(claims["exp"]),
        }
        async with self._database.write() as connection:
            await connection.execute(insert(STATUS_ENTRIES).values(row))

    async def entries(self, list_: str) -> list[Entry]:
        """The tokens of a list that have not expired, and maybe some that have."""
        query = select(STATUS_ENTRIES).where(STATUS_ENTRIES.c.list == list_)
        async with self._database.read() as connection:
            return [
                Entry(row.idx, row.kid, row.hashed, msgspec.json.decode(row.claims))
                for row in await connection.execute(query)
            ]

    async def sweep(self) -> None:
        expired = delete(STATUS_ENTRIES).where(STATUS_ENTRIES.c.expires_at <= self._clock())
        async with self._database.write() as connection:
            await connection.execute(expired)

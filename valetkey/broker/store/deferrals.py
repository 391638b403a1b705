"""Deferral codes: what a client polls with while people decide.

Invariants:

- The code itself is kept nowhere: the database has its SHA-256 (it is random, so that is enough).
- A code is good for the client that got it and for its proof key, and is redeemed once: by the
  transaction that takes a use of the approval, or not at all.
- With it is kept what was verified when the client asked, sealed; never a token.
"""

from __future__ import annotations

import hashlib
import secrets
from typing import Final, NamedTuple

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.approvals import Identity
from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import DEFERRALS
from valetkey.broker.store.sealing import SealBroken, Sealer
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.secret import Secret

# draft-ietf-oauth-deferred-token-response: at least 128 bits; ours have 256.
_CODE_BYTES: Final = 32
# RFC 8628 §3.5: five seconds more after each `slow_down`.
SLOWER_BY: Final = 5.0
# Clients that keep the interval by their own clock must not be told to slow down for its jitter.
_TOLERANCE: Final = 0.25
_D: Final = DEFERRALS.c


class Polled(NamedTuple):
    """A code that is this client's and has neither expired nor been redeemed.

    ``interval`` is in seconds; ``too_soon`` says that it was not kept. ``request`` is what
    `Deferrals.issue` was given.
    """

    id: bytes
    approval: str
    request: bytes
    expires_at: float
    interval: float
    too_soon: bool


class Deferrals:
    """``interval`` is what clients are asked to keep between polls, in seconds."""

    def __init__(self, database: Database, sealer: Sealer, *, interval: float) -> None:
        self._database = database
        self._sealer = sealer
        self._interval = interval

    async def issue(
        self,
        approval: str,
        client: Identity,
        thumbprint: str,
        request: bytes,
        *,
        expires_at: float,
        now: float,
    ) -> tuple[Secret, float]:
        """A new code, and the interval in seconds. Raises `StoreError`."""
        code = secrets.token_urlsafe(_CODE_BYTES)
        id_ = _id(code)
        row = {
            "id": id_,
            "approval": approval,
            "client_issuer": client.issuer,
            "client_subject": client.subject,
            "thumbprint": thumbprint,
            "request": self._sealer.seal(request, kid=deferral_kid(id_)),
            "expires_at": expires_at,
            "interval": self._interval,
            "polled_at": now,
            "redeemed_at": None,
        }
        async with self._database.write() as connection:
            await connection.execute(insert(DEFERRALS).values(row))
        return Secret(code), self._interval

    async def poll(self, code: str, client: Identity, thumbprint: str, *, now: float) -> Polled:
        """Look at a code, and remember that it was looked at.

        Raises `CallerError` for a code that is not (or no longer) good for this client: it is not
        told which of the two; `StoreError`.
        """
        async with self._database.write() as connection:
            query = select(DEFERRALS).where(_D.id == _id(code)).with_for_update()
            row = (await connection.execute(query)).mappings().first()
            if (
                row is None
                or (row["client_issuer"], row["client_subject"]) != client
                or row["thumbprint"] != thumbprint
                or row["redeemed_at"] is not None
            ):
                raise CallerError(codes.APPROVAL_CODE, "unknown, redeemed or another client's")
            if now >= row["expires_at"]:
                raise CallerError(codes.APPROVAL_EXPIRED, "the code has expired")
            too_soon = now < row["polled_at"] + row["interval"] - _TOLERANCE
            interval = row["interval"] + (SLOWER_BY if too_soon else 0.0)
            seen = update(DEFERRALS).where(_D.id == row["id"])
            await connection.execute(seen.values(polled_at=now, interval=interval))
        try:
            request = self._sealer.open(row["request"], kid=deferral_kid(row["id"]))
        except SealBroken as error:
            raise CallerError(codes.APPROVAL_CODE, "sealed under another master key") from error
        return Polled(row["id"], row["approval"], request, row["expires_at"], interval, too_soon)

    @staticmethod
    async def redeem(connection: AsyncConnection, id_: bytes, *, now: float) -> bool:
        """Whether this transaction is the one that redeems the code."""
        statement = (
            update(DEFERRALS)
            .where(_D.id == id_, _D.redeemed_at.is_(None), _D.expires_at > now)
            .values(redeemed_at=now)
        )
        return bool((await connection.execute(statement)).rowcount)

    async def sweep(self, now: float) -> None:
        """Forget expired codes."""
        async with self._database.write() as connection:
            await connection.execute(delete(DEFERRALS).where(_D.expires_at <= now))


def deferral_kid(id_: bytes) -> str:
    return f"deferral:{id_.hex()}"


def _id(code: str) -> bytes:
    return hashlib.sha256(code.encode()).digest()

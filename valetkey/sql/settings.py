"""How long broker and collector wait for PostgreSQL."""

from __future__ import annotations

from typing import Final

from valetkey.contracts.settings import Duration, Settings, duration

_LONGEST: Final = 300.0


class PostgresSettings(Settings, frozen=True, kw_only=True):
    """How long PostgreSQL is waited for; SQLite needs none of this.

    ``connect`` is for a new connection, ``acquire`` for one of the pool when all are taken.
    PostgreSQL ends a ``statement`` that takes longer, one that has waited so long for a ``lock``,
    and the session of who does nothing for as long as ``idle_in_transaction`` while others may
    wait for what it holds. Whatever ends, the request fails with 503. Migrations, and ``valetkey
    reseal``, take as long as they take. ``session_limits: false`` leaves the last three to the
    server, for a pooler that refuses such parameters: set them there on the role.
    """

    connect: Duration = duration(5)
    acquire: Duration = duration(5)
    statement: Duration = duration(10)
    lock: Duration = duration(5)
    idle_in_transaction: Duration = duration(10)
    session_limits: bool = True

    def __post_init__(self) -> None:
        for name in ("connect", "acquire", "statement", "lock", "idle_in_transaction"):
            if not 0.1 <= getattr(self, name) <= _LONGEST:
                raise ValueError(f"{name} is between 100ms and 5m")
        if self.lock > self.statement:
            raise ValueError("lock is longer than statement, which would end first")

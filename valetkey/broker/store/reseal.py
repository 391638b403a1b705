"""Another master key: every sealed value is opened under the old one and sealed under the new.

Invariants:

- All of it is one transaction: whatever ends the process, either all values are as they were or
  all are sealed under the new key.
- Nothing else is changed: what was revoked, contained, granted and recorded stays as it was.
- It runs where no broker does. One that ran on would go on sealing under the old key, which the
  new one can't open: with SQLite another process that has the file open is refused, with
  PostgreSQL any other session of the database.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Table, bindparam, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.alone import Reasons, Refused, alone, connected
from valetkey.broker.store.database import MIGRATIONS
from valetkey.broker.store.deferrals import deferral_kid
from valetkey.broker.store.schema import DEFERRALS, FEED_STREAMS, SIGNING_KEYS
from valetkey.broker.store.sealing import SealBroken, Sealer
from valetkey.contracts import codes
from valetkey.sql.settings import PostgresSettings

_PAGE: Final = 500


class Sealed(NamedTuple):
    """A column with sealed values, and what each is sealed for (`Sealer`'s ``kid``)."""

    table: Table
    id: Column[Any]
    value: Column[Any]
    kid: Callable[[Any], str]


SEALED: Final = (
    Sealed(SIGNING_KEYS, SIGNING_KEYS.c.kid, SIGNING_KEYS.c.sealed, str),
    Sealed(FEED_STREAMS, FEED_STREAMS.c.id, FEED_STREAMS.c.push_authorization, str),
    Sealed(DEFERRALS, DEFERRALS.c.id, DEFERRALS.c.request, deferral_kid),
)


class Resealed(NamedTuple):
    """How many values of a table were sealed anew, and how many were under the new key before."""

    table: str
    changed: int
    already: int


REASONS: Final = Reasons(
    no_database=codes.RESEAL_NO_DATABASE, in_use=codes.RESEAL_IN_USE, database=codes.RESEAL_DATABASE
)


async def reseal(
    url: str,
    old: Sealer,
    new: Sealer,
    *,
    dry_run: bool,
    limits: PostgresSettings,
) -> list[Resealed]:
    """Seal all that is sealed in the database ``url`` under ``new``; ``dry_run``: see that it goes.

    Values that ``new`` opens stay as they are, so that it may be repeated. Raises `ConfigError`;
    of these `Refused` where the database, or a value in it, is not as it must be.
    """
    async with connected(url, limits, REASONS, read=dry_run) as connection:
        if not dry_run:
            await alone(connection, REASONS, [each.table for each in SEALED])
        await connection.run_sync(_check_revision)
        found = [await _table(connection, each, old, new, dry_run) for each in SEALED]
        if not dry_run:
            await connection.commit()
        return found


def _check_revision(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    newest = ScriptDirectory.from_config(config).get_current_head()
    there = MigrationContext.configure(connection).get_current_revision()
    if there != newest:
        raise Refused(
            codes.RESEAL_OTHER_VERSION,
            f"the database is at revision {there or 'none'}, this program at {newest}: use the "
            "version whose broker ran last",
        )


async def _table(
    connection: AsyncConnection, sealed: Sealed, old: Sealer, new: Sealer, dry_run: bool
) -> Resealed:
    changed = already = 0
    write = (
        update(sealed.table)
        .where(sealed.id == bindparam("row_id"))
        .values({sealed.value: bindparam("row_value")})
    )
    query = select(sealed.id, sealed.value).where(sealed.value.is_not(None)).order_by(sealed.id)
    last = None
    while True:
        page = query.limit(_PAGE) if last is None else query.where(sealed.id > last).limit(_PAGE)
        rows = (await connection.execute(page)).all()
        if not rows:
            return Resealed(sealed.table.name, changed, already)
        values = []
        for id_, value in rows:
            kid = sealed.kid(id_)
            clear = _open(old, value, kid)
            if clear is not None:
                values.append({"row_id": id_, "row_value": new.seal(clear, kid=kid)})
            elif _open(new, value, kid) is not None:
                already += 1
            else:
                raise Refused(
                    codes.RESEAL_WRONG_KEY,
                    f"{sealed.table.name} {kid} opens under neither key: another old key, or the "
                    "database was changed",
                )
        if values and not dry_run:
            await connection.execute(write, values)
        changed += len(values)
        last = rows[-1][0]


def _open(sealer: Sealer, value: bytes, kid: str) -> bytes | None:
    try:
        return sealer.open(value, kid=kid)
    except SealBroken:
        return None

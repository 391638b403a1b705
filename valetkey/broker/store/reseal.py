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
from pathlib import Path
from typing import Any, Final, NamedTuple

import asyncpg
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Column, Connection, Table, bindparam, select, text, update
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, OperationalError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.database_settings import PostgresSettings
from valetkey.broker.store.database import MIGRATIONS, READ, make_engine
from valetkey.broker.store.deferrals import deferral_kid
from valetkey.broker.store.schema import DEFERRALS, FEED_STREAMS, SIGNING_KEYS
from valetkey.broker.store.sealing import SealBroken, Sealer
from valetkey.contracts import codes
from valetkey.contracts.codes import CommandCode
from valetkey.contracts.errors import ConfigError

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


class ResealRefused(ConfigError):  # noqa: N818 - reads as what it is
    """Nothing was changed. ``code`` says why, the message about what."""

    def __init__(self, code: CommandCode, message: str) -> None:
        super().__init__(f"{code.name}: {message}; nothing was changed")
        self.code = code


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
    of these `ResealRefused` where the database, or a value in it, is not as it must be.
    """
    try:
        parsed = make_url(url)
    except ArgumentError as error:
        raise ConfigError("database is not an SQLAlchemy URL") from error
    engine = make_engine(parsed, limits)
    there = engine.dialect.name != "sqlite" or Path(parsed.database or "").is_file()  # noqa: ASYNC240 - before there is anything to wait for
    if not there:
        await engine.dispose()  # to open it would make it
        raise ResealRefused(codes.RESEAL_NO_DATABASE, f"{parsed.database}: there is no such file")
    try:
        async with engine.connect() as connection:
            if dry_run:
                await connection.execution_options(**{READ: True})
            else:
                await _alone(connection)
            await connection.run_sync(_check_revision)
            found = [await _table(connection, each, old, new, dry_run) for each in SEALED]
            if not dry_run:
                await connection.commit()
            return found
    except OperationalError as error:
        if "locked" in str(error.orig):
            raise ResealRefused(codes.RESEAL_IN_USE, _IN_USE) from error
        raise _unavailable(error, parsed.database) from error
    except (SQLAlchemyError, OSError, asyncpg.PostgresError) as error:
        raise _unavailable(error, parsed.database) from error
    finally:
        await engine.dispose()


_IN_USE: Final = "the database is in use: stop every broker, and end what else has it open"


async def _alone(connection: AsyncConnection) -> None:
    """Begin the transaction, with nobody else in the database. Raises `ResealRefused`."""
    if connection.dialect.name == "sqlite":
        await connection.run_sync(_lock_file)
        return
    await _nobody_else(connection)
    # A broker that starts in between waits here, and finds all under the new key.
    tables = ", ".join(each.table.name for each in SEALED)
    await connection.execute(text(f"LOCK TABLE {tables} IN ACCESS EXCLUSIVE MODE"))
    await _nobody_else(connection)


def _lock_file(connection: Connection) -> None:
    """A connection to a database in WAL mode holds a lock on the file for as long as it is open.

    Idle or not; so the exclusive one is only had where there is no other (sqlite.org/wal.html).
    """
    cursor = connection.connection.cursor()
    try:
        # secure_delete: the values under the old key do not stay in pages that are free.
        for pragma in ("busy_timeout=1000", "secure_delete=ON", "locking_mode=EXCLUSIVE"):
            cursor.execute(f"PRAGMA {pragma}")
    finally:
        cursor.close()


async def _nobody_else(connection: AsyncConnection) -> None:
    others = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND usesysid IS NOT NULL AND pid <> pg_backend_pid()"
    )
    if sessions := (await connection.execute(others)).scalar_one():
        raise ResealRefused(codes.RESEAL_IN_USE, f"{_IN_USE} (other sessions: {sessions})")


def _check_revision(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    newest = ScriptDirectory.from_config(config).get_current_head()
    there = MigrationContext.configure(connection).get_current_revision()
    if there != newest:
        raise ResealRefused(
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
                raise ResealRefused(
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


def _unavailable(error: Exception, name: str | None) -> ResealRefused:
    # The database's own message may quote a row; its type says enough.
    kind = type(error).__name__
    return ResealRefused(codes.RESEAL_DATABASE, f"database {name} can't be used ({kind})")

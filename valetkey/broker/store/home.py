"""Where a database is: one that was copied to elsewhere is known as a copy, and not believed.

A copy has forgotten whatever was revoked after it was made. So a broker notes in the database which
place it is in, and does not start on one that stands in another: what was put back from a backup
has to be declared (`store.restored`) first.

The place is the file itself for SQLite (its inode, and when that was made: numbers are given
again), the cluster and the database's own number in it for PostgreSQL. A copy, a dump that is read
back, another volume or cluster are another place; a file that is renamed stays what it is. What is
not known: a snapshot of the whole volume, or of the cluster's files, which brings all this along,
and a copy that was written over the file that was there.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from pathlib import Path
from typing import Final

from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.store.database import Database
from valetkey.broker.store.schema import HOME
from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError

_ONLY: Final = 1
# Stands for what could not be asked. Another kernel, or another right, may tell it one day: that is
# no other place.
_UNKNOWN: Final = "-"
# statx(2), linux/stat.h: the whole structure, and where in it these are.
_AT_FDCWD: Final = -100
_BASIC_AND_BIRTH: Final = 0x7FF | 0x800
_BIRTH: Final = 0x800
_STATX_SIZE: Final = 256
_MASK_AT: Final = 0
_BIRTH_AT: Final = 80
_CLUSTER: Final = "SELECT system_identifier FROM pg_control_system()"
_DATABASE: Final = "SELECT oid FROM pg_database WHERE datname = current_database()"


async def settle(database: Database, *, now: float) -> None:
    """Note where the database is, once and for all. Raises `ConfigError` where it was elsewhere.

    ``now`` is in seconds since the epoch. Raises `StoreError`.
    """
    place = await place_of(database)
    async with database.write_in_turn() as connection:
        row = {"only": _ONLY, "place": place, "since": now}
        await connection.execute(database.insert(HOME).values(row).on_conflict_do_nothing())
        noted = (await connection.execute(select(HOME.c.place))).scalar_one()
    if not is_same(noted, place):
        code = codes.RESTORED_UNDECLARED
        raise ConfigError(f"{code.name}: {code.help}")


def is_same(noted: str, here: str) -> bool:
    """Whether two places are one, as far as both are known."""
    pairs = list(zip(noted.split(" "), here.split(" "), strict=False))
    return noted.count(" ") == here.count(" ") and all(
        one == other or _UNKNOWN in (one, other) for one, other in pairs
    )


async def move(connection: AsyncConnection, database: Database, place: str, *, now: float) -> None:
    """Note that it is at home in ``place`` from now on, within a transaction of the caller's."""
    row = {"only": _ONLY, "place": place, "since": now}
    home = database.insert(HOME).values(row)
    home = home.on_conflict_do_update(
        index_elements=[HOME.c.only], set_={"place": place, "since": now}
    )
    await connection.execute(home)


async def place_of(database: Database) -> str:
    """Where the database is. Raises `StoreError`."""
    if not database.postgres:
        return await asyncio.to_thread(_file, Path(database.engine.url.database or ""))
    async with database.read() as connection:
        number = (await connection.execute(text(_DATABASE))).scalar_one()
    try:
        async with database.engine.connect() as connection:
            cluster = (await connection.execute(text(_CLUSTER))).scalar_one()
    except DBAPIError:  # a service that lets nobody ask: what is left tells most copies apart
        cluster = _UNKNOWN
    return f"cluster {cluster} database {number}"


def _file(path: Path) -> str:
    return f"file {path.stat().st_ino} {_born(path)}"


def _born(path: Path) -> str:
    """When the inode was made, as its file system has it; `_UNKNOWN` where nobody says."""
    stated = path.stat()
    if (birth := getattr(stated, "st_birthtime", None)) is not None:  # macOS, BSD
        return str(birth)
    try:
        statx = ctypes.CDLL(None, use_errno=True).statx
    except AttributeError:  # a C library without it
        return _UNKNOWN
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if statx(_AT_FDCWD, os.fsencode(path), 0, _BASIC_AND_BIRTH, found) != 0:
        return _UNKNOWN
    (mask,) = struct.unpack_from("=I", found, _MASK_AT)
    if not mask & _BIRTH:
        return _UNKNOWN
    seconds, nanoseconds = struct.unpack_from("=qI", found, _BIRTH_AT)
    return f"{seconds}.{nanoseconds:09}"

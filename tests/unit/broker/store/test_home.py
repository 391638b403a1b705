"""A database that was copied is known as a copy, and one that stays is not taken for one."""

from __future__ import annotations

import ctypes
import shutil
import time
from pathlib import Path

import pytest

from tests.support.postgres import Postgres
from valetkey.broker.store.database import Database
from valetkey.broker.store.home import _born, is_same, move, place_of, settle
from valetkey.contracts.errors import ConfigError


def sqlite(file: Path) -> str:
    return f"sqlite+aiosqlite:///{file}"


async def settled(url: str) -> None:
    database = await Database.open(url)
    try:
        await settle(database, now=1.0)
    finally:
        await database.close()


async def test_a_file_that_stays_or_is_renamed_is_at_home(tmp_path: Path) -> None:
    file = tmp_path / "broker.db"
    for _ in range(3):
        await settled(sqlite(file))
    file.rename(tmp_path / "other.db")
    await settled(sqlite(tmp_path / "other.db"))


async def test_a_copy_is_not_even_in_the_place_of_the_former(tmp_path: Path) -> None:
    """File systems give an inode's number again as soon as it is free."""
    file, copy = tmp_path / "broker.db", tmp_path / "copy.db"
    await settled(sqlite(file))
    shutil.copy(file, copy)
    with pytest.raises(ConfigError, match=r"restored\.undeclared"):
        await settled(sqlite(copy))
    file.unlink()
    shutil.copy(copy, file)
    with pytest.raises(ConfigError, match=r"restored\.undeclared"):
        await settled(sqlite(file))
    here = await place(sqlite(file))
    database = await Database.open(sqlite(file))
    async with database.write() as connection:
        await move(connection, database, here, now=2.0)
    await database.close()
    await settled(sqlite(file))


async def place(url: str) -> str:
    database = await Database.open(url)
    try:
        return await place_of(database)
    finally:
        await database.close()


async def test_a_database_of_postgresql_has_its_place(postgres: Postgres) -> None:
    url = postgres.database()
    await settled(url)
    await settled(url)
    copy = postgres.database(template=url.rpartition("/")[2])
    with pytest.raises(ConfigError, match=r"restored\.undeclared"):
        await settled(copy)
    word, cluster, *_ = (await place(url)).split()
    assert word == "cluster"
    assert cluster.isdigit(), "whoever may not ask has the database's number alone"


def test_where_no_birth_is_told_the_number_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, before = tmp_path / "x", time.time()
    file.write_text("x")
    # A file system's clock may be a tick behind.
    assert before - 1 < float(_born(file)) <= file.stat().st_ctime
    monkeypatch.setattr(ctypes, "CDLL", lambda *_, **__: object())
    assert _born(file) == "-"


def test_what_was_not_known_is_no_other_place() -> None:
    assert is_same("file 7 1.5", "file 7 1.5")
    assert is_same("file 7 -", "file 7 1.5")
    assert is_same("cluster 9 database 5", "cluster - database 5")
    for other in ("file 8 1.5", "file 7 1.6", "file 7", "cluster 7 database 1.5", "file 8 -"):
        assert not is_same("file 7 1.5", other), other

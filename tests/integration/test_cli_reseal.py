"""Another master key: what was contained stays so, what was signed still verifies."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import LargeBinary, insert, select

from tests.integration.broker_support import BOT, IDP, Served, World, serving
from tests.integration.test_broker_containment import active, code_of, issue
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.broker.core.approvals import Identity
from valetkey.broker.store.deferrals import Deferrals
from valetkey.broker.store.reseal import SEALED
from valetkey.broker.store.schema import ADMIN_ACTIONS, FEED_STREAMS, INCIDENTS, METADATA
from valetkey.broker.store.sealing import SealBroken, Sealer
from valetkey.contracts.errors import ConfigError

PUSH_AUTHORIZATION = b"Bearer kept-for-the-receiver"
CLIENT = Identity(IDP, BOT)


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    overrides: dict[str, Any] = {}
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        overrides["database"] = server.database()
    return World(tmp_path, free_url(), overrides=overrides)


def new_key(world: World) -> Path:
    file = world.root / "master.key.new"
    file.write_bytes(secrets.token_bytes(32))
    file.chmod(0o600)
    CANARIES.add(file.read_bytes(), name="new master key", allow=[file, world.root / "master.key"])
    return file


def command(world: World, *arguments: object) -> list[str]:
    return [
        sys.executable, "-m", "valetkey.cli", "reseal",
        "--config", str(world.root / "broker.yaml"), *map(str, arguments),
    ]  # fmt: skip


async def reseal(world: World, *arguments: object) -> tuple[int, str]:
    """Exit status, and everything that was said."""
    process = await asyncio.create_subprocess_exec(
        *command(world, *arguments), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


async def open_incident(broker: Served) -> None:
    body = {"subject": {"issuer": IDP, "subject": BOT}, "reason": "the pod was entered"}
    status, document, _ = await broker.manage("POST", "/v1/incidents", body)
    assert status == 201, document


async def keep_a_secret_of_each_kind(broker: Served) -> str:
    """A deferral and a stream that is pushed to; the deferral's code."""
    base = broker.broker.base
    now = base.clock()
    deferrals = Deferrals(base.database, base.sealer, interval=5)
    code, _ = await deferrals.issue("a1", CLIENT, "", b"{}", expires_at=now + 600, now=now)
    row: dict[str, Any] = {
        column.name: 0 if column.type.python_type in {int, float} else ""
        for column in FEED_STREAMS.c
        if not isinstance(column.type, LargeBinary)
    }
    row |= {
        "id": "s1",
        "push_authorization": base.sealer.seal(PUSH_AUTHORIZATION, kid="s1"),
        "contacted_at": now,
        "created_at": now,
        "events_requested": "[]",
        "excluded": "[]",
        "status": "paused",
    }
    async with base.database.write() as connection:
        await connection.execute(insert(FEED_STREAMS).values(row))
    return code.reveal()


async def kept(broker: Served) -> list[Any]:
    """The incidents (how far they are goes on by itself), and what administrators did."""
    told = {"contained_at", "attested_at"}
    incidents = select(*(column for column in INCIDENTS.c if column.name not in told))
    async with broker.broker.base.database.read() as connection:
        return [
            (await connection.execute(query)).all() for query in (incidents, select(ADMIN_ACTIONS))
        ]


async def test_another_master_key_undoes_no_containment(world: World) -> None:
    async with serving(world) as broker:
        stolen = world.workload()
        token = (await issue(broker, world.form(stolen)))["access_token"]
        world.clock.advance(10)
        code = await keep_a_secret_of_each_kind(broker)
        await open_incident(broker)
        _, jwks, _ = await broker.get("/jwks")
        before = await kept(broker)
    assert before[0]
    assert before[1]
    file = await asyncio.to_thread(new_key, world)
    status, said = await reseal(world, "--new-key", file, "--dry-run")
    assert status == 0, said
    assert said.splitlines() == [
        "signing_keys: 1 to seal",
        "feed_streams: 1 to seal",
        "deferrals: 1 to seal",
        "nothing was changed (dry run)",
    ]
    status, said = await reseal(world, "--new-key", file)
    assert status == 0, said
    assert said.startswith("signing_keys: 1 sealed\nfeed_streams: 1 sealed\ndeferrals: 1 sealed\n")
    with pytest.raises(ConfigError, match="does not open with this master key"):
        async with serving(world):
            pass
    old = world.root / "master.key.old"
    (world.root / "master.key").rename(old)
    CANARIES.add(await asyncio.to_thread(old.read_bytes), name="old master key", allow=[old])
    file.rename(world.root / "master.key")
    async with serving(world) as broker:
        assert (await broker.get("/jwks"))[1] == jwks
        assert await kept(broker) == before
        assert await code_of(broker, world.form(stolen)) == "subject.contained"
        assert not await active(broker, token)
        base = broker.broker.base
        polled = await Deferrals(base.database, base.sealer, interval=5).poll(
            code, CLIENT, "", now=base.clock()
        )
        assert polled.request == b"{}"
        async with base.database.read() as connection:
            [value] = (await connection.execute(select(FEED_STREAMS.c.push_authorization))).one()
        assert base.sealer.open(value, kid="s1") == PUSH_AUTHORIZATION
    # Once more is no mistake: nothing is left to do.
    status, said = await reseal(world, "--old-key", old, "--new-key", world.root / "master.key")
    assert status == 0
    assert said.startswith("signing_keys: 0 sealed, 1 were under the new key already\n")


async def test_a_token_verifies_under_the_new_master_key(world: World) -> None:
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
    file = await asyncio.to_thread(new_key, world)
    status, said = await reseal(world, "--new-key", file)
    assert status == 0, said
    file.rename(world.root / "master.key")
    async with serving(world) as broker:
        assert await active(broker, token)


async def test_a_running_broker_refuses_it(world: World) -> None:
    async with serving(world) as broker:
        await issue(broker, world.form(world.workload()))
        file = await asyncio.to_thread(new_key, world)
        status, said = await reseal(world, "--new-key", file)
        assert (status, "reseal.in_use" in said) == (2, True), said
        assert "nothing was changed" in said
        assert (await reseal(world, "--new-key", file, "--dry-run"))[0] == 0
    async with serving(world):
        pass  # under the old key still


async def test_what_can_t_be_is_said(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    file = await asyncio.to_thread(new_key, world)
    world.write()
    assert "reseal.no_database" in (await reseal(world, "--new-key", file))[1]
    assert not (tmp_path / "broker.db").exists()
    async with serving(world):
        pass
    status, said = await reseal(world, "--new-key", world.root / "master.key")
    assert (status, "reseal.same_key" in said) == (2, True)
    other = tmp_path / "other.key"
    other.write_bytes(secrets.token_bytes(32))
    other.chmod(0o600)
    status, said = await reseal(world, "--new-key", file, "--old-key", other)
    assert (status, "reseal.wrong_key" in said) == (2, True)
    other.chmod(0o644)
    status, said = await reseal(world, "--new-key", other)
    assert (status, "chmod 0600" in said) == (2, True)
    database = sqlite3.connect(tmp_path / "broker.db")
    database.execute("UPDATE alembic_version SET version_num = '0001'")
    database.commit()
    database.close()
    status, said = await reseal(world, "--new-key", file)
    assert (status, "reseal.other_version" in said) == (2, True)


async def test_killed_in_the_middle_everything_is_under_the_old_key(tmp_path: Path) -> None:
    """With so many values that the transaction has to write before its commit."""
    world = World(tmp_path, free_url())
    async with serving(world):
        pass
    old = await asyncio.to_thread(Sealer.from_file, tmp_path / "master.key")
    file = await asyncio.to_thread(new_key, world)
    database = sqlite3.connect(tmp_path / "broker.db")
    ids = [number.to_bytes(32) for number in range(1, 40_001)]
    database.executemany(
        "INSERT INTO deferrals (id, approval, client_issuer, client_subject, thumbprint, request,"
        " expires_at, interval, polled_at) VALUES (?, '', '', '', '', ?, 9e9, 5, 0)",
        [(id_, old.seal(b"x" * 200, kid=f"deferral:{id_.hex()}")) for id_ in ids],
    )
    database.commit()
    database.close()
    log = tmp_path / "broker.db-wal"
    process = await asyncio.create_subprocess_exec(*command(world, "--new-key", file))
    deadline = time.monotonic() + 30
    while not (log.exists() and log.stat().st_size > 1 << 20):
        assert process.returncode is None, "it was done before it was killed"
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    assert await process.wait() == -signal.SIGKILL
    async with serving(world):  # opens its signing keys
        pass
    database = sqlite3.connect(tmp_path / "broker.db")
    rows = database.execute("SELECT id, request FROM deferrals").fetchall()
    database.close()
    assert len(rows) == len(ids)
    for id_, value in rows:
        assert old.open(value, kid=f"deferral:{id_.hex()}") == b"x" * 200
    status, said = await reseal(world, "--new-key", file)
    assert status == 0, said
    new = await asyncio.to_thread(Sealer.from_file, file)
    database = sqlite3.connect(tmp_path / "broker.db")
    for id_, value in database.execute("SELECT id, request FROM deferrals"):
        assert new.open(value, kid=f"deferral:{id_.hex()}") == b"x" * 200
        with pytest.raises(SealBroken):
            old.open(value, kid=f"deferral:{id_.hex()}")
    database.close()


def test_every_sealed_column_is_resealed() -> None:
    """A column of bytes is a digest that is named here, or is sealed anew."""
    digests = {
        "used_assertions.id", "seen_keys.id", "deferrals.id", "windows.announcement",
        "incidents.open_key",
    }  # fmt: skip
    binary = {
        f"{table.name}.{column.name}"
        for table in METADATA.tables.values()
        for column in table.c
        if isinstance(column.type, LargeBinary)
    }
    assert binary - digests == {f"{each.table.name}.{each.value.name}" for each in SEALED}

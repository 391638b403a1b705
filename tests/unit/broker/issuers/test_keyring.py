"""The ring: made once, stored sealed, refused when it can't be read."""

from __future__ import annotations

import json
from typing import Any

import pytest
from sqlalchemy import text

from tests.integration.broker_support import Clock
from valetkey.broker.core.rotation import Schedule
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.keys import SigningKeyStore
from valetkey.broker.store.sealing import Sealer
from valetkey.contracts.errors import ConfigError

SCHEDULE = Schedule(rotate_every=1000, publish_before=100, overlap=50)


def ring(
    database: Database, clock: Clock, *, ttl: float = 120, master: bytes = b"m" * 32
) -> KeyRing:
    return KeyRing(
        SigningKeyStore(database, Changes(database)),
        Sealer(master),
        SCHEDULE,
        longest_ttl=ttl,
        clock=clock,
    )


def kids(of: KeyRing) -> list[str]:
    return [key["kid"] for key in json.loads(of.published().document)["keys"]]


async def change(database: Database, statement: str, **values: Any) -> None:
    async with database.write() as connection:
        await connection.execute(text(statement), values)


async def test_the_first_key_signs_at_once_and_is_kept(database: Database) -> None:
    clock = Clock(10_000)
    first = ring(database, clock)
    await first.load()
    assert kids(first) == [first.signer().times.kid]
    second = ring(database, clock)
    await second.load()
    assert kids(second) == kids(first)
    clock.advance(30)
    assert second.signing_age() == 30
    assert second.signing_due() == 10_000 + SCHEDULE.rotate_every


async def test_what_is_due_lies_in_the_past_where_no_key_was_made(database: Database) -> None:
    clock = Clock(10_000)
    keys = ring(database, clock)
    await keys.load()
    clock.advance(SCHEDULE.rotate_every + 1)  # nobody rotated
    assert keys.signing_due() == clock() - 1
    await keys.rotate()
    clock.advance(SCHEDULE.publish_before)
    assert keys.signing_due() == clock() + SCHEDULE.rotate_every


async def test_rotating_twice_makes_one_key(database: Database) -> None:
    clock = Clock(10_000)
    keys = ring(database, clock)
    await keys.load()
    before = keys.published()
    clock.advance(900)
    await keys.rotate()
    await keys.rotate()
    assert len(kids(keys)) == 2
    assert keys.published().etag != before.etag
    unchanged = keys.published()
    await keys.rotate()
    assert keys.published() is unchanged


async def test_a_longer_ttl_keeps_the_old_key_longer(database: Database) -> None:
    """Settings grow the ttl at a restart: tokens under the old key may live that long."""
    clock = Clock(10_000)
    await ring(database, clock, ttl=120).load()
    keys = ring(database, clock, ttl=600)
    await keys.load()
    clock.advance(1000)
    await keys.rotate()
    clock.advance(100)
    await keys.rotate()  # the second key signs from here on
    first = kids(keys)[0]
    clock.advance(600 + 50 - 1)
    await keys.rotate()
    assert first in kids(keys)
    clock.advance(1)
    await keys.rotate()
    assert first not in kids(keys)


async def test_a_shorter_ttl_does_not_drop_it_sooner(database: Database) -> None:
    clock = Clock(10_000)
    await ring(database, clock, ttl=600).load()
    keys = ring(database, clock, ttl=60)
    await keys.load()
    first = kids(keys)[0]
    clock.advance(900)
    await keys.rotate()
    clock.advance(100 + 600 + 49)
    await keys.rotate()
    assert first in kids(keys)


@pytest.mark.parametrize(
    ("name", "statement", "message"),
    [
        ("sealed value changed", "UPDATE signing_keys SET sealed = zeroblob(200)", "does not open"),
        ("row renamed", "UPDATE signing_keys SET kid = 'other'", "does not open"),
        (
            "public half swapped",
            """UPDATE signing_keys SET public_jwk = replace(public_jwk, '"x":"', '"x":"A')""",
            "public and private half differ",
        ),
    ],
)
async def test_a_tampered_row_stops_the_start(
    database: Database, name: str, statement: str, message: str
) -> None:
    clock = Clock(10_000)
    await ring(database, clock).load()
    await change(database, statement)
    with pytest.raises(ConfigError, match=message):
        await ring(database, clock).load()


async def test_another_master_key_makes_no_new_key(database: Database) -> None:
    clock = Clock(10_000)
    await ring(database, clock).load()
    with pytest.raises(ConfigError, match="does not open with this master key"):
        await ring(database, clock, master=b"n" * 32).load()
    assert len(await SigningKeyStore(database, Changes(database)).all()) == 1


async def test_the_key_set_is_public(database: Database) -> None:
    keys = ring(database, Clock(10_000))
    await keys.load()
    (key,) = json.loads(keys.published().document)["keys"]
    assert set(key) == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    assert keys.published().keys.get(key["kid"]) is not None


async def test_the_key_that_signs_is_replaced_at_once(database: Database) -> None:
    clock = Clock(10_000)
    keys, other = ring(database, clock), ring(database, clock)
    await keys.load()
    await other.load()
    leaked = keys.signer().times.kid
    clock.advance(5)
    successor = await keys.replace(leaked)
    assert successor == keys.signer().times.kid != leaked
    assert not keys.holds(leaked)
    assert kids(keys) == [successor]
    assert await keys.replace(leaked) == successor, "done already"
    assert await other.replace(leaked) == successor, "by another replica"
    assert kids(other) == [successor]


async def test_a_key_that_does_not_sign_is_only_dropped(database: Database) -> None:
    clock = Clock(10_000)
    keys = ring(database, clock)
    await keys.load()
    signing = keys.signer().times.kid
    clock.advance(950)
    await keys.rotate()
    (upcoming,) = set(kids(keys)) - {signing}
    assert await keys.replace(upcoming) == signing
    assert kids(keys) == [signing]
    await keys.rotate()
    assert len(kids(keys)) == 2, "the schedule makes another one in its place"

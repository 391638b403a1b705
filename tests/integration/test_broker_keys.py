"""Signing keys: published before they sign, kept while tokens live, the same after a restart."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.integration.broker_support import Served, World, serving
from tests.support.ports import free_url
from valetkey.contracts.errors import ConfigError

KEYS = {"keys": {"rotate_every": "1h", "publish_before": "5m", "overlap": "1m"}}
TTL = 120  # the longest of the targets


async def published(broker: Served) -> list[str]:
    _, raw, headers = await broker.get("/jwks")
    assert headers["Cache-Control"] == "public, max-age=150"
    return [key["kid"] for key in json.loads(raw)["keys"]]


async def issue(broker: Served) -> tuple[str, str]:
    """A token, and the key that signed it."""
    world = broker.world
    status, body, _ = await broker.exchange(world.form(world.workload()))
    assert status == 200, body
    token = body["access_token"]
    return token, jwt.get_unverified_header(token)["kid"]


async def holds(broker: Served, token: str) -> bool:
    _, raw, _ = await broker.get("/jwks")
    keys = {key["kid"]: jwt.PyJWK(key) for key in json.loads(raw)["keys"]}
    kid = jwt.get_unverified_header(token)["kid"]
    options: Any = {"verify_aud": False, "verify_exp": False, "verify_iat": False}
    return kid in keys and bool(jwt.decode(token, keys[kid], algorithms=["ES256"], options=options))


async def at(broker: Served, seconds: float, begin: float) -> None:
    """Move the clock to ``begin + seconds`` and let the schedule run."""
    broker.world.clock.now = begin + seconds
    await broker.broker.base.ring.rotate()


async def test_rotation_with_overlap(tmp_path: Path) -> None:
    world = World(tmp_path, free_url(), overrides=KEYS)
    begin = world.clock.now
    async with serving(world) as broker:
        _, first = await issue(broker)
        assert await published(broker) == [first]

        await at(broker, 3300 - 1, begin)
        assert await published(broker) == [first], "not yet time to publish the next key"

        await at(broker, 3300, begin)
        kids = await published(broker)
        assert kids[0] == first
        assert len(kids) == 2
        assert (await issue(broker))[1] == first, "published, but it does not sign yet"

        await at(broker, 3600 - 1, begin)
        last, kid = await issue(broker)
        assert kid == first

        await at(broker, 3600, begin)
        assert (await issue(broker))[1] == kids[1]
        assert await published(broker) == kids, "both: tokens under the old key still live"
        assert await holds(broker, last)

        await at(broker, 3600 + TTL + 60 - 1, begin)
        assert await published(broker) == kids
        assert await holds(broker, last)

        await at(broker, 3600 + TTL + 60, begin)
        assert await published(broker) == kids[1:]


async def test_the_signer_changes_on_time_without_a_tick(tmp_path: Path) -> None:
    """The moment is the clock's, not that of the next look at the schedule."""
    world = World(tmp_path, free_url(), overrides=KEYS)
    begin = world.clock.now
    async with serving(world) as broker:
        await at(broker, 3300, begin)
        second = (await published(broker))[1]
        world.clock.now = begin + 3600
        assert (await issue(broker))[1] == second


async def test_a_restart_keeps_keys_and_schedule(tmp_path: Path) -> None:
    world = World(tmp_path, free_url(), overrides=KEYS)
    begin = world.clock.now
    async with serving(world) as broker:
        await at(broker, 3300, begin)
        kids = await published(broker)
        token, _ = await issue(broker)
    async with serving(world) as broker:
        assert await published(broker) == kids
        assert (await issue(broker))[1] == kids[0]
        assert await holds(broker, token)
        await at(broker, 3600, begin)
        assert (await issue(broker))[1] == kids[1]


async def test_after_a_long_stop_the_next_key_still_waits_its_publication(tmp_path: Path) -> None:
    world = World(tmp_path, free_url(), overrides=KEYS)
    async with serving(world) as broker:
        _, first = await issue(broker)
    world.clock.advance(7 * 86_400)
    begin = world.clock.now
    async with serving(world) as broker:
        assert len(await published(broker)) == 2
        assert (await issue(broker))[1] == first
        await at(broker, 300, begin)
        assert (await issue(broker))[1] != first


async def test_another_master_key_stops_the_start_and_changes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        kids = [key["kid"] for key in json.loads((await broker.get("/jwks"))[1])["keys"]]
    right = (tmp_path / "master.key").read_bytes()
    (tmp_path / "master.key").write_bytes(b"another master key of good length")
    with pytest.raises(ConfigError, match="does not open with this master key"):
        async with serving(world):
            pass
    (tmp_path / "master.key").write_bytes(right)
    async with serving(world) as broker:
        assert [key["kid"] for key in json.loads((await broker.get("/jwks"))[1])["keys"]] == kids


async def test_private_keys_are_nowhere_on_disk(tmp_path: Path) -> None:
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        private = broker.broker.base.ring.signer().private
        scalar = private.private_numbers().private_value.to_bytes(32)
        encoded = private.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
        for path in tmp_path.rglob("broker.db*"):
            content = path.read_bytes()
            assert scalar not in content
            assert encoded not in content
        assert scalar.hex() not in repr(broker.broker.base.ring.signer())

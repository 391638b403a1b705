"""The grants file changes: a good one is in force at once, a bad one changes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.broker_support import (
    BOT,
    GRANTS,
    IDP,
    Served,
    World,
    serving,
)
from tests.support.ports import free_url
from tests.support.waiting import until
from valetkey.contracts.errors import ConfigError

WIDER = [*GRANTS, {
    "id": "bot-deletes", "workload": BOT, "issuer": IDP, "target": "tickets",
    "scopes": ["tickets:delete"],
}]  # fmt: skip


async def code(broker: Served, scope: str) -> str:
    world = broker.world
    _, body, _ = await broker.exchange(world.form(world.workload(), scope=scope))
    return str(body.get("code", "issued"))


async def metric(broker: Served, name: str) -> float:
    _, raw, _ = await broker.get("/metrics")
    return next(
        float(line.split()[-1]) for line in raw.decode().splitlines() if line.startswith(name + " ")
    )


async def test_a_new_grant_counts_and_a_removed_one_does_not(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        assert await code(broker, "tickets:delete") == "grant.scope"
        before = broker.broker.base.policies.current.digest
        world.write_grants(WIDER)
        await broker.broker.base.policies.reload()
        assert await code(broker, "tickets:delete") == "issued"
        assert broker.broker.base.policies.current.digest != before
        world.write_grants(GRANTS[1:])
        await broker.broker.base.policies.reload()
        assert await code(broker, "tickets:read") == "grant.missing"
        assert await metric(broker, 'valetkey_broker_grants_reload_total{result="ok"}') == 2
        assert await metric(broker, "valetkey_broker_grants") == len(GRANTS) - 1


async def test_the_file_is_watched(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        world.write_grants(WIDER)

        async def seen() -> bool:
            return await code(broker, "tickets:delete") == "issued"

        await until(seen, "the new grant counts")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("not yaml", "grants: ["),
        ("no grants", "grants: []"),
        ("empty file", ""),
        ("unknown key", "grants: [{id: a, wrkload: x}]"),
        ("unknown target", json.dumps({"grants": [{**GRANTS[0], "target": "nowhere"}]})),
        ("unknown issuer", json.dumps({"grants": [{**GRANTS[0], "issuer": "https://x"}]})),
        ("id twice", json.dumps({"grants": [GRANTS[0], GRANTS[0]]})),
        ("no scopes", json.dumps({"grants": [{**GRANTS[0], "scopes": []}]})),
        ("no conditions", json.dumps({"grants": [{**GRANTS[0], "conditions": []}]})),
        ("star in a segment", json.dumps({"grants": [{**GRANTS[0], "workload": "spiffe://a/b*"}]})),
        ("two stars", json.dumps({"grants": [{**GRANTS[0], "workload": "spiffe://a/*/*"}]})),
    ],
)
async def test_a_bad_file_keeps_the_last_good_one(tmp_path: Path, name: str, text: str) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        digest = broker.broker.base.policies.current.digest
        new = tmp_path / "grants.yaml.new"
        new.write_text(text)
        new.rename(tmp_path / "grants.yaml")
        # The file is watched as well: whoever sees it first counts it, and nobody twice.
        await broker.broker.base.policies.reload()
        assert broker.broker.base.policies.current.digest == digest, name
        assert await code(broker, "tickets:read") == "issued"
        status, raw, _ = await broker.get("/readyz")
        assert status == 200, "the last good grants are in force: traffic may come"
        assert json.loads(raw)["grants"].startswith("stale")
        assert await metric(broker, "valetkey_broker_grants_reload_failing") == 1
        assert await metric(broker, 'valetkey_broker_grants_reload_total{result="failed"}') == 1
        world.write_grants(WIDER)
        await broker.broker.base.policies.reload()
        assert json.loads((await broker.get("/readyz"))[1])["grants"] == "ok"
        assert await metric(broker, "valetkey_broker_grants_reload_failing") == 0


async def test_a_vanished_file_keeps_the_last_good_one(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        (tmp_path / "grants.yaml").unlink()
        await broker.broker.base.policies.reload()
        assert broker.broker.base.policies.error
        assert await code(broker, "tickets:read") == "issued"
        # Looked at again and again, the same bad state is counted once.
        await broker.broker.base.policies.reload()
        assert await metric(broker, 'valetkey_broker_grants_reload_total{result="failed"}') == 1
        world.write_grants(GRANTS)
        await broker.broker.base.policies.reload()
        assert not broker.broker.base.policies.error


async def test_a_bad_file_at_the_start_stops_it(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    world.write()
    (tmp_path / "grants.yaml").write_text("grants: [{id: a}]")
    with pytest.raises(ConfigError, match=r"grants\.yaml:1: grants\.0"):
        async with serving(world):
            pass

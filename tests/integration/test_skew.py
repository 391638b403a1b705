"""Programs of two versions side by side, as the page on upgrades says: what is not known is passed over.

What a sidecar that names fewer restrictions does not get: test_broker_capabilities.py. What becomes
of an event that a sidecar does not know: tests/unit/proxy/test_feed.py.
"""

from __future__ import annotations

import ast
import json
from pathlib import Path

import aiohttp
import msgspec
import pytest

from tests.integration.broker_support import World, serving
from tests.support.chain import Chain, batch, decision_data
from tests.support.collector import CollectorBench
from tests.support.ports import free_url
from valetkey.broker.store.database import MIGRATIONS as OF_BROKER
from valetkey.collector.store.database import _MIGRATIONS as OF_COLLECTOR
from valetkey.contracts.oauth import TokenResponse

# From here on brokers of two versions run over one database. Those before are older than replicas.
_REPLICAS = 5
_ADDS = {"create_table", "create_index", "add_column", "f", "execute", "get_bind"}


async def test_a_newer_sidecar_is_understood(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.workload())
        form |= {"capabilities": form["capabilities"] + " of_tomorrow", "of_tomorrow": "x"}
        status, body, _ = await broker.exchange(form)
        assert status == 200, body


def test_a_newer_broker_is_understood() -> None:
    answer = {
        "access_token": "t",
        "issued_token_type": "urn:ietf:params:oauth:token-type:access_token",
        "token_type": "Bearer",
        "expires_in": 120,
        "of_tomorrow": {"x": 1},
    }
    read = msgspec.json.decode(json.dumps(answer), type=TokenResponse)
    assert read.expires_in == 120


async def test_events_of_tomorrow_are_kept_as_they_are(tmp_path: Path) -> None:
    chain = Chain()
    chain.decision(**decision_data(of_tomorrow={"x": 1}))
    chain.add("valetkey.call.of_tomorrow.v7", {"x": 1})
    bench = CollectorBench(tmp_path)
    async with bench.program() as program, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{await program.listening()}/v1/events"
        body = batch(chain.events)
        async with session.post(url, data=body, headers=bench.sidecar()) as response:
            assert (await response.json())["acked"] == len(chain.events)
        async with session.get(f"{url}?raw=1", headers=bench.reader()) as response:
            kept = [entry["raw"] for entry in (await response.json())["events"]]
    assert kept == [raw.decode() for raw in chain.events]


@pytest.mark.parametrize("versions", [OF_BROKER, OF_COLLECTOR], ids=["broker", "collector"])
def test_migrations_only_add(versions: Path) -> None:
    """So the brokers of before go on meanwhile: nothing that they read or write is taken or renamed."""
    found = 0
    for path in sorted((versions / "versions").glob("[0-9]*.py")):
        if versions is OF_BROKER and int(path.name[:4]) < _REPLICAS:
            continue
        tree = ast.parse(path.read_text())
        [upgrade] = [
            node
            for node in tree.body
            if isinstance(node, ast.FunctionDef) and node.name == "upgrade"
        ]
        calls = [node for node in ast.walk(upgrade) if isinstance(node, ast.Call)]
        for call in calls:
            name = call.func.attr if isinstance(call.func, ast.Attribute) else ""
            owner = call.func.value if isinstance(call.func, ast.Attribute) else None
            if not (isinstance(owner, ast.Name) and owner.id == "op"):
                continue
            assert name in _ADDS, (path.name, name)
            found += 1
            if name == "add_column":
                column = ast.unparse(call)
                assert "nullable=True" in column or "server_default=" in column, column
    assert found > 3

"""Two layers of settings in a running sidecar, as the kubelet exchanges their files."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.config_map import ConfigMapVolume
from tests.support.fleet import Fleet
from tests.support.procs import Program
from valetkey.contracts import events
from valetkey.proxy.settings_file import MOST

READ = {"within": "read"}
WRITE = {"within": "write"}


class Cluster(Fleet):
    """A sidecar whose files are two ConfigMaps: the operator's, and the namespace owner's."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.operators = ConfigMapVolume(directory / "operator")
        self.owners = ConfigMapVolume(directory / "owner")
        self.config = self.operators / "proxy.yaml"
        self.sidecar = Program.of("proxy", self.config, directory / "run")
        self.sidecar_changes["owner"] = {"file": str(self.owners / "routes.yaml")}

    def write(self) -> None:
        self.operators.write(proxy__yaml=json.dumps(self.tree()))

    def own(self, *routes: dict[str, Any], **more: Any) -> str:
        """Put an owner's file there; its digest."""
        text = json.dumps({"routes": routes, **more})
        self.owners.write(routes__yaml=text)
        return hashlib.sha256(text.encode()).hexdigest()

    async def answers(self, method: str = "GET", path: str = "/api/1", code: str = "") -> None:
        """Wait until the call is answered so; an empty code: until it comes through."""
        seen = None

        async def so() -> bool:
            nonlocal seen
            status, body = await self.call(path, method)
            seen = body.get("code", "") if status != 200 else ""
            return seen == code

        await self.until(so, f"{method} {path} to get {code or 'through'}, not {seen}")

    async def refused(self, layer: str, count: int = 1) -> str:
        """Wait until the layer's file is refused; what ``/readyz`` says of it."""

        async def refused() -> bool:
            return await self.metric("valetkey_config_rejected", layer=layer) == count

        await self.until(refused, f"{layer} {count}")
        status, ready = await self.readyz()
        assert status == 200, "what is in force goes on"
        return str(ready["rejected_config"])

    async def of_settings(self) -> list[dict[str, Any]]:
        """What is on record about settings."""
        found = await self.spooled(events.TYPE_SETTINGS)
        return [event["data"]["unmapped"] for event in found]


@pytest.fixture
def cluster(tmp_path: Path) -> Cluster:
    return Cluster(tmp_path)


@asynccontextmanager
async def calling(cluster: Cluster, path: str) -> AsyncIterator[list[int]]:
    """Calls one after the other, all the while; their statuses."""
    statuses: list[int] = []

    async def call() -> None:
        while True:
            statuses.append((await cluster.call(path))[0])

    tasks = [asyncio.ensure_future(call()) for _ in range(4)]
    try:
        yield statuses
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_files_are_exchanged_under_load_and_no_call_is_lost(cluster: Cluster) -> None:
    cluster.own(READ)
    async with cluster.running(collector=False), calling(cluster, "/api/1") as statuses:
        await cluster.answers("POST", code="route.no_match")
        for _ in range(2):
            cluster.own(READ, WRITE)
            await cluster.answers("POST")
            cluster.routes[1]["scopes"] = ["t:write", "t:read"]
            cluster.write()
            cluster.own(READ)
            await cluster.answers("POST", code="route.no_match")
        assert len(statuses) > 50
        assert set(statuses) == {200}
        assert await cluster.metric("valetkey_config_rejected") == 0


BAD: dict[str, tuple[dict[str, str], str, str]] = {
    "no YAML": ({"routes__yaml": "{"}, "settings.invalid", "not YAML"),
    "an unknown key": ({"routes__yaml": '{"rutes": []}'}, "settings.invalid", "rutes"),
    "the broker": ({"routes__yaml": '{"routes": [{"within": "read"}], "broker": {}}'}, "settings.invalid", "broker"),
    "empty": ({"routes__yaml": ""}, "settings.invalid", "routes"),
    "anchors of anchors": ({"routes__yaml": "a: &a [x,x,x,x,x,x,x,x,x]\n" + "\n".join(f"{n}: &{n} [*{m},*{m},*{m},*{m},*{m},*{m},*{m}]" for m, n in zip("abcdefghi", "bcdefghij", strict=True))}, "settings.invalid", "too much"),
    "no such key": ({"other__yaml": '{"routes": [{"within": "read"}]}'}, "settings.unreadable", "routes.yaml"),
    "too large": ({"routes__yaml": " " * (MOST + 1)}, "settings.too_large", "4 MiB"),
    "wider": ({"routes__yaml": '{"routes": [{"within": "write"}, {"within": "read", "scopes": ["t:admin"]}]}'}, "settings.widens", "routes.1 (within 'read'): routes.1.scopes: 'read' has no t:admin"),
}  # fmt: skip


async def test_what_is_bad_keeps_what_was_good_and_says_so(cluster: Cluster) -> None:
    good = cluster.own(READ)
    async with cluster.running(collector=False):
        await cluster.answers("POST", code="route.no_match")
        for name, (keys, code, said) in BAD.items():
            cluster.owners.write(**keys)

            async def so(code: str = code) -> bool:
                return (await cluster.of_settings())[-1:] != [] and (await cluster.of_settings())[
                    -1
                ].get("code") == code

            await cluster.until(so, name)
            assert said in await cluster.refused("owner"), name
            recorded = (await cluster.of_settings())[-1]
            assert recorded["result"] == "rejected", name
            assert recorded["layer"] == "owner", name
            assert recorded["files"]["owner"] == good, name
            assert (await cluster.call("/api/1"))[0] == 200, name
            assert (await cluster.call("/api/1", "POST"))[1]["code"] == "route.no_match", name
            # Which is not said to have been mended by a look at what did not change.
            good = cluster.own(READ, {"within": "gap", "scopes": ["t:read"], "match": {"path": f"/gap/{len(name)}"}})  # fmt: skip
            assert await cluster.refused("owner", 0) == "", name
        assert {"rutes", "t:admin"}.isdisjoint(json.dumps(await cluster.spooled()))


async def test_what_the_operator_takes_away_is_gone_whatever_the_owner_says(
    cluster: Cluster,
) -> None:
    cluster.own(READ, {"within": "write", "scopes": ["t:write"]})
    async with cluster.running(collector=False):
        await cluster.answers("POST")
        cluster.owners.write(routes__yaml="{")  # which is no way to keep what one has
        await cluster.refused("owner")
        cluster.routes[1]["scopes"] = ["t:read"]
        cluster.write()
        await cluster.answers("POST", code="route.no_match")
        assert (await cluster.call("/api/1"))[0] == 200
        assert await cluster.metric("valetkey_config_withheld_routes") == 1
        ready = (await cluster.readyz())[1]
        assert "routes.1.scopes: 'write' has no t:write" in ready["withheld_routes"]
        # The same after a restart, with a file that can be read.
        cluster.own(READ, {"within": "write", "scopes": ["t:write"]})
        await cluster.refused("owner", 0)
        assert await cluster.metric("valetkey_config_withheld_routes") == 1
        await cluster.sidecar.stop()
        cluster.sidecar.start()
        await cluster.up()
        await cluster.answers("POST", code="route.no_match")
        assert (await cluster.call("/api/1"))[0] == 200
        assert await cluster.metric("valetkey_config_withheld_routes") == 1
        # And what an operator's bad file holds up is not the owner's.
        cluster.operators.write(proxy__yaml="{")
        await cluster.refused("operator")
        cluster.own(READ, WRITE)
        await cluster.answers("POST")
        assert await cluster.metric("valetkey_config_withheld_routes") == 0
        assert "operator" in await cluster.refused("operator")


@pytest.mark.parametrize("keys", [{"routes__yaml": "{"}, {"other": ""}], ids=["bad", "missing"])
async def test_with_no_good_file_of_the_owner_nothing_leaves_until_there_is_one(
    cluster: Cluster, keys: dict[str, str]
) -> None:
    cluster.owners.write(**keys)
    async with cluster.running(collector=False, sidecar=False):
        cluster.sidecar.start()

        async def says() -> bool:
            try:
                status, ready = await cluster.readyz()
            except OSError:
                return False
            return status == 503 and "routes.yaml" in json.dumps(ready)

        await cluster.until(says, "not ready, and why")
        status, problem = await cluster.call("/api/1")
        assert (status, problem["code"]) == (503, "settings.owner_unusable")
        assert cluster.received == []
        cluster.own(READ)
        await cluster.answers()
        assert (await cluster.readyz())[0] == 200
        assert (await cluster.call("/api/1", "POST"))[1]["code"] == "route.no_match"
        results = [each["result"] for each in await cluster.of_settings()]
        assert results == ["rejected", "applied"]


async def test_the_collector_takes_what_is_said_of_settings(cluster: Cluster) -> None:
    first = cluster.own(READ)
    async with cluster.running():
        second = cluster.own(READ, WRITE)
        await cluster.answers("POST")
        await cluster.delivered()
        (applied,) = cluster.events(events.TYPE_SETTINGS)
        assert applied["data"]["unmapped"]["files"]["owner"] == second != first
        boot = cluster.events(events.TYPE_BOOT)[0]["data"]["unmapped"]
        digest = applied["data"]["unmapped"]["policy_digest"]
        assert digest == (await cluster.readyz())[1]["policy_digest"] != boot["policy_digest"]
        verified = await cluster.verify()
        assert verified.exit_code == 0, verified.output

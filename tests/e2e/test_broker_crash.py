"""kill -9 of a broker that mints, revokes and rotates its keys: what it acknowledged stands.

Clients exchange self-signed assertions and revoke some of the tokens; keys rotate every two
seconds. After the last restart every acknowledged token verifies with the published keys, every
acknowledged revocation holds, no assertion that was accepted is accepted again, and no token that
nobody revoked has become inactive.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.integration.broker_support import TICKETS, Served, World
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.procs import Program
from valetkey.contracts import oauth

_CLIENTS = 4
_ROTATION = {"rotate_every": "2s", "publish_before": "500ms", "overlap": "1s"}


@dataclass
class Issued:
    token: str
    assertion: str
    revoked: bool | None = False
    """``None``: asked for, but never acknowledged."""


@dataclass
class Load:
    """Clients that never pause; what is not acknowledged is neither done nor undone."""

    served: Served
    issued: list[Issued] = field(default_factory=list)
    stopped: bool = False
    refused: list[tuple[int, Any]] = field(default_factory=list)

    async def client(self) -> None:
        while not self.stopped:
            try:
                await self._step()
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.01)  # it is being started again

    async def more(self, count: int) -> None:
        wanted = len(self.issued) + count
        async with asyncio.timeout(60):
            while len(self.issued) < wanted:
                await asyncio.sleep(0.005)

    async def revoked(self, issued: Issued) -> bool:
        """Whether the broker says that the token does not count."""
        status, answer, _ = await self.served.post(self._about(issued), path="/introspect")
        assert status == 200, answer
        return not answer["active"]

    async def _step(self) -> None:
        world = self.served.world
        assertion = world.assertion()
        status, body, _ = await self.served.post(world.form(assertion))
        if status != 200:
            self.refused.append((status, body))
            return
        issued = Issued(body["access_token"], assertion)
        self.issued.append(issued)
        if random.random() < 0.3:
            issued.revoked = None
            status, body, _ = await self.served.post(self._about(issued), path="/revoke")
            if status == 200:
                issued.revoked = True
            else:
                self.refused.append((status, body))

    def _about(self, issued: Issued) -> dict[str, str]:
        return {
            "token": issued.token,
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self.served.world.assertion(),
        }


@pytest.fixture(params=["sqlite", "postgres"])
def overrides(request: pytest.FixtureRequest) -> dict[str, Any]:
    chosen: dict[str, Any] = {"keys": _ROTATION, "log_level": "info"}
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        chosen["database"] = postgres.database()
    return chosen


@asynccontextmanager
async def loaded(world: World, program: Program) -> AsyncIterator[Load]:
    async with aiohttp.ClientSession() as client:
        load = Load(Served(world, None, client))  # type: ignore[arg-type]
        clients = [asyncio.create_task(load.client()) for _ in range(_CLIENTS)]
        try:
            yield load
        finally:
            load.stopped = True
            await asyncio.gather(*clients)


@pytest.mark.timeout(900)
async def test_what_was_acknowledged_stands(
    tmp_path: Path, overrides: dict[str, Any], kills: int
) -> None:
    world = World(tmp_path / "world", free_url(), clock=time.time, overrides=overrides)  # type: ignore[arg-type]
    world.overrides["bind"] = world.url.removeprefix("http://")
    program = Program.of("broker", world.write(), tmp_path / "run")
    async with program, loaded(world, program) as load:
        for _ in range(kills):
            await load.more(random.randint(10, 60))
            await asyncio.sleep(random.uniform(0, 0.05))  # any moment, not always the same one
            program.kill()
            program.start()
            await program.listening()
        await load.more(20)
        load.stopped = True
        report = await check(load)
    print(f"{kills} kills, {report}")


async def check(load: Load) -> str:
    _, raw, _ = await load.served.get("/jwks")
    keys = {key["kid"]: jwt.PyJWK(key) for key in json.loads(raw)["keys"]}
    now = time.time()
    used_keys = set()
    for issued in load.issued:
        kid = jwt.get_unverified_header(issued.token)["kid"]
        used_keys.add(kid)
        # Also those that have expired by now: the key outlives every token under it.
        claims = jwt.decode(
            issued.token,
            keys[kid],
            algorithms=["ES256"],
            audience=TICKETS,
            options={"verify_exp": False},
        )
        if claims["exp"] <= now + 5 or issued.revoked is None:
            continue
        assert await load.revoked(issued) is issued.revoked
    for issued in random.sample(load.issued, min(40, len(load.issued))):
        form = load.served.world.form(issued.assertion)
        status, body, _ = await load.served.post(form)
        # Expired by now, or remembered: never a second token.
        assert status == 401, body
        assert body["code"] in {"actor.replayed", "actor.invalid"}, body
    faults = [body for status, body in load.refused if status != 503]
    assert not faults, faults[:3]
    revoked = sum(issued.revoked is True for issued in load.issued)
    assert revoked
    assert len(used_keys) > 1, "no rotation happened under load"
    return (
        f"{len(load.issued)} tokens acknowledged, {revoked} revocations, {len(used_keys)} keys, "
        f"{len(load.refused)} answered with 503"
    )

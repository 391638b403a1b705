"""kill -9 of a broker that mints, revokes and rotates its keys: what it acknowledged stands.

Clients exchange self-signed assertions and revoke some of the tokens; keys rotate every two
seconds. After the last restart every acknowledged token verifies with the published keys, every
acknowledged revocation holds, no assertion that was accepted is accepted again, and no token that
nobody revoked has become inactive.
"""

from __future__ import annotations

import json
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.integration.broker_support import TICKETS, Served, World
from tests.support import crash
from tests.support.procs import Program
from valetkey.contracts import oauth

_CLIENTS = 4
_ROTATION = {"rotate_every": "2s", "publish_before": "500ms", "overlap": "1s"}
_ROTATED = 5.0


@dataclass
class Issued:
    token: str
    assertion: str
    revoked: bool | None = False
    """``None``: asked for, but never acknowledged."""


class Load(crash.Load):
    """Clients get tokens, and give every third back."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.served = served
        self.issued: list[Issued] = []
        self.refused: list[tuple[int, Any]] = []

    @property
    def acknowledged(self) -> int:
        return len(self.issued)

    async def revoked(self, issued: Issued) -> bool:
        """Whether the broker says that the token does not count."""
        status, answer, _ = await self.served.post(self._about(issued), path="/introspect")
        assert status == 200, answer
        return not answer["active"]

    async def step(self) -> None:
        world = self.served.world
        assertion = world.assertion()
        status, body, _ = await self.served.post(world.form(assertion))
        if status != 200:
            self.refused.append((status, body))
            return
        issued = Issued(body["access_token"], assertion)
        self.issued.append(issued)
        if len(self.issued) % 3 == 0:
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


@pytest.mark.timeout(900)
async def test_what_was_acknowledged_stands(tmp_path: Path, world: World, kills: int) -> None:
    world.overrides["keys"] = _ROTATION
    program = Program.of("broker", world.write(), tmp_path / "run")
    async with program, aiohttp.ClientSession() as client:
        load = Load(Served(world, None, client))  # type: ignore[arg-type]
        async with load.clients(_CLIENTS):
            begun = time.monotonic()
            await crash.kill_again_and_again(
                program, load, kills, after=(10, 60), within=0.05, ready=program.listening
            )
            # However quick that was: two keys at least have signed.
            while time.monotonic() - begun < _ROTATED:
                await load.more(1)
        report = await check(load)
    print(f"{kills} kills, {report}")


async def check(load: Load) -> str:
    _, raw, _ = await load.served.get("/jwks")
    keys = {key["kid"]: jwt.PyJWK(key) for key in json.loads(raw)["keys"]}
    used_keys = set()
    for issued in load.issued:
        kid = jwt.get_unverified_header(issued.token)["kid"]
        used_keys.add(kid)
        said = jwt.decode(issued.token, options={"verify_signature": False})
        if kid not in keys and said["exp"] <= time.time():
            continue  # a key outlives every token under it, and goes then
        claims = jwt.decode(
            issued.token,
            keys[kid],
            algorithms=["ES256"],
            audience=TICKETS,
            options={"verify_exp": False},
        )
        if claims["exp"] <= time.time() + 5 or issued.revoked is None:
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

"""kill -9 of a broker while people approve and workloads use it: nothing acknowledged is lost.

Nor is anything half done: each vote has the record of who cast it and the notice of what came of
it, no approval gave more tokens than people said, and no code was redeemed twice.
"""

from __future__ import annotations

import asyncio
import base64
import itertools
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.integration.approvals_support import APPROVALS, CLOSING, closing
from tests.integration.broker_support import GRANTS, Served, World
from tests.support import crash
from tests.support.procs import Program
from tests.support.waiting import until
from valetkey.contracts import oauth

_CLIENTS = 3
_USES = 2
_EXPECTED = {
    "approval.required", "approval.pending", "approval.slow_down", "approval.code_invalid",
    "approval.closed", "approval.voted", "service.unavailable",
}  # fmt: skip


class Load(crash.Load):
    """Workloads that ask and use, people who decide, a receiver that is told."""

    def __init__(self, served: Served) -> None:
        super().__init__()
        self.served = served
        self.approved: set[str] = set()
        self.denied: set[str] = set()
        self.issued: Counter[str] = Counter()
        self.redeemed: Counter[str] = Counter()
        self.told: set[tuple[str, str]] = set()
        self.faults: list[Any] = []
        self._numbers = itertools.count()

    @property
    def acknowledged(self) -> int:
        return len(self.approved)

    async def hear(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.told.add((body["type"], body["data"]["id"]))
        return web.Response(status=204)

    async def step(self) -> None:
        """A request is made, decided, and used twice as often as it may be, by two ways."""
        number = next(self._numbers)
        path = f"/api/tickets/{number}/close"
        answer = await self._exchange(path, completion_mode=oauth.COMPLETION_DEFERRED)
        approval, code = answer.get("approval_id", ""), answer.get("deferral_code", "")
        if not code:
            return
        if number % 5 == 4:
            if await self._decide(approval, "deny", {"reason": "no"}):
                self.denied.add(approval)
            return
        if await self._decide(approval, "approve", {"reason": "ok", "uses": _USES}):
            self.approved.add(approval)
        await asyncio.gather(*(self._poll(code, approval) for _ in range(2)))
        for _ in range(_USES + 1):
            answer = await self._exchange(path)
            if "access_token" in answer:
                self.issued[answer["approval"]] += 1

    async def _exchange(self, path: str, **more: Any) -> dict[str, Any]:
        world = self.served.world
        form = world.form(world.workload(), **closing(path), **more)
        return self._known((await self.served.exchange(form))[1])

    async def _poll(self, code: str, approval: str) -> None:
        form = {
            "grant_type": oauth.GRANT_DEFERRED,
            "deferral_code": code,
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self.served.world.workload(),
        }
        answer = self._known((await self.served.exchange(form))[1])
        if "access_token" in answer:
            self.redeemed[code] += 1
            self.issued[approval] += 1

    async def _decide(self, approval: str, verdict: str, body: Any) -> bool:
        token = self.served.world.admin("olga", role="approver")
        path = f"/v1/approvals/{approval}/{verdict}"
        status, answer, _ = await self.served.manage("POST", path, body, token=token)
        self._known(answer)
        return status == 200

    def _known(self, answer: dict[str, Any]) -> dict[str, Any]:
        if "code" in answer and answer["code"] not in _EXPECTED:
            self.faults.append(answer)
        return answer


@pytest.mark.timeout(600)
async def test_what_was_acknowledged_stands_and_nothing_is_half_done(
    tmp_path: Path, world: World, kills: int
) -> None:
    secret = tmp_path / "webhook.secret"
    secret.write_bytes(b"whsec_" + base64.b64encode(b"x" * 32))
    secret.chmod(0o600)
    async with aiohttp.ClientSession() as client:
        load = Load(Served(world, None, client))  # type: ignore[arg-type]
        app = web.Application()
        app.router.add_post("/", load.hear)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        hook = f"http://127.0.0.1:{runner.addresses[0][1]}/"
        webhook = {"name": "ops", "url": hook, "secret_file": str(secret)}
        fast = {"rate": 1000, "burst": 1000}
        world.overrides |= {
            "limits": {"admin": fast, "exchanges": fast},
            "approvals": {**APPROVALS, "open": 10_000, "notices": {"webhooks": [webhook]}},
        }
        world.root.mkdir()
        world.write_grants([*GRANTS, CLOSING])
        program = Program.of("broker", world.write(), tmp_path / "run")
        async with program:
            async with load.clients(_CLIENTS):
                await crash.kill_again_and_again(
                    program, load, kills, after=(2, 6), within=0.05, ready=program.listening
                )
            report = await check(load)
        await runner.cleanup()
    print(f"{kills} kills, {report}")


async def check(load: Load) -> str:
    stored = {item["id"]: item for item in await load.served.items("/v1/approvals")}
    assert not load.faults, load.faults[:3]
    approved = {name for name, item in stored.items() if item["state"] in {"approved", "used"}}
    denied = {name for name, item in stored.items() if item["state"] == "denied"}
    assert load.approved <= approved, "acknowledged and lost"
    assert load.denied <= denied, "acknowledged and lost"
    # Done wholly or not at all: with each vote its record, in both directions.
    actions = await load.served.items("/v1/admin/actions")
    for verdict, found in (("approve", approved), ("deny", denied)):
        recorded = [each["subject"] for each in actions if each["action"] == f"approval.{verdict}"]
        assert Counter(recorded) == Counter(found)
        assert all(len(stored[name]["votes"]) == 1 for name in found)
    _, verdict, _ = await load.served.manage("GET", "/v1/admin/actions/verify")
    assert verdict["broken_at"] is None
    assert not set(load.issued) - approved
    for name in approved:
        # A use may be spent on a token that nobody got; there is never a token without a use.
        assert load.issued[name] <= stored[name]["used"] <= _USES, name
    assert all(count == 1 for count in load.redeemed.values())
    # And all of it is told: a claim of a broker that died is free again after two minutes, so what
    # it was telling just then is not waited for.
    told = {("approval.requested", name) for name in stored}
    told |= {("approval.approved", name) for name in approved}
    told |= {("approval.denied", name) for name in denied}
    await until(lambda: len(told - load.told) <= len(told) // 10, "notices", 60)
    spent = sum(stored[name]["used"] for name in approved) - sum(load.issued.values())
    return (
        f"{len(load.approved)} approvals acknowledged, {len(approved)} stored, {len(load.denied)} "
        f"denials, {sum(load.issued.values())} tokens, {spent} uses spent without one, "
        f"{len(load.told)} of {len(told)} notices"
    )

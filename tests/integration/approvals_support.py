"""A world in which closing a ticket takes people, and what tests ask of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.integration.broker_support import (
    BOT,
    GRANTS,
    IDP,
    TICKETS,
    Served,
    World,
    details,
    serving,
)
from tests.support.ports import free_url
from valetkey.contracts import oauth

CLOSING: dict[str, Any] = {
    "id": "bot-closes",
    "workload": BOT,
    "issuer": IDP,
    "target": "tickets",
    "scopes": ["tickets:close"],
    "on_behalf_of": "users",
    "approval": {"quorum": 1},
}
APPROVALS: dict[str, Any] = {"deferred": True, "interval": "1s", "expires": "10m", "valid": "30m"}


def closing(path: str = "/api/tickets/7/close", **more: Any) -> dict[str, Any]:
    """What a form asks for that closes a ticket."""
    return {
        "scope": "tickets:close",
        "authorization_details": details(path, "POST", audience=TICKETS, exact=True),
        **more,
    }


def world_of(root: Path, *, rule: dict[str, Any] | None = None, **overrides: Any) -> World:
    """``rule`` is the grant's ``approval``; ``approvals`` among the overrides adds settings."""
    approvals = {**APPROVALS, **overrides.pop("approvals", {})}
    world = World(root, free_url(), overrides={"approvals": approvals, **overrides})
    root.mkdir(parents=True, exist_ok=True)
    world.write_grants([*GRANTS, {**CLOSING, "approval": rule or {"quorum": 1}}])
    return world


class Desk:
    """A broker seen from both sides: the workload that asks, and the people who decide."""

    def __init__(self, served: Served) -> None:
        self.served = served
        self.world = served.world

    async def ask(self, *, user: str = "", **changes: Any) -> tuple[int, dict[str, Any]]:
        """A plain exchange for closing; with ``deferred`` one that takes a deferral."""
        if changes.pop("deferred", False):
            changes["completion_mode"] = oauth.COMPLETION_DEFERRED
        token = changes.pop("token", "") or self.world.workload()
        asked = closing(**changes)
        form = (
            self.world.user_form(token, user, **asked) if user else self.world.form(token, **asked)
        )
        status, body, _ = await self.served.exchange(form)
        return status, body

    async def poll(self, code: str, *, token: str = "") -> tuple[int, dict[str, Any]]:
        form = {
            "grant_type": oauth.GRANT_DEFERRED,
            "deferral_code": code,
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": token or self.world.workload(),
        }
        status, body, _ = await self.served.exchange(form)
        return status, body

    async def decide(
        self, approval: str, verdict: str, *, by: str = "olga", role: str = "approver", **said: Any
    ) -> tuple[int, dict[str, Any]]:
        claims = said.pop("claims", {})
        token = self.world.admin(by, role=role, **claims)
        status, body, _ = await self.served.manage(
            "POST",
            f"/v1/approvals/{approval}/{verdict}",
            {"reason": "as agreed", **said},
            token=token,
        )
        return status, body

    async def approve(self, approval: str, **more: Any) -> tuple[int, dict[str, Any]]:
        return await self.decide(approval, "approve", **more)

    async def show(self, approval: str) -> dict[str, Any]:
        status, body, _ = await self.served.manage(
            "GET", f"/v1/approvals/{approval}", token=self.world.admin("vera", role="viewer")
        )
        assert status == 200, body
        document: dict[str, Any] = body
        return document

    async def opened(self, **changes: Any) -> str:
        """The id of a request that is put before people."""
        status, body = await self.ask(**changes)
        assert (status, body["code"]) == (400, "approval.required"), body
        return str(body["approval_id"])


@asynccontextmanager
async def desk(world: World, where: str = "") -> AsyncIterator[Desk]:
    async with serving(world, where) as served:
        yield Desk(served)

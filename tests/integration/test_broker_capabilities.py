"""A caller that does not say that it enforces a restriction gets no credential that needs it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.integration.broker_support import (
    BOT,
    GRANTS,
    IDP,
    World,
    details,
    serving,
)
from tests.support.ports import free_url

CALLS = "https://mcp.example.com"


async def test_withheld_where_nobody_would_enforce_it(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    targets = world.document()["targets"]
    world.overrides["targets"] = {
        **targets,
        "mcp": {"audience": CALLS, "credential": "bearer"},
        "strict": {"audience": "https://s", "credential": "bearer", "requires": ["feed"]},
    }
    grant: dict[str, Any] = {"workload": BOT, "issuer": IDP, "scopes": ["use"]}
    condition = {"methods": ["POST"], "path": "/mcp", "mcp": {"methods": ["tools/call"]}}
    world.write_grants(
        [
            *GRANTS,
            {"id": "mcp", "target": "mcp", **grant, "conditions": [condition]},
            {"id": "strict", "target": "strict", **grant},
            {"id": "asked", "target": "files", **grant, "approval": {"quorum": 1}},
        ]
    )
    calls = details("/mcp", "POST", audience=CALLS, mcp={"methods": ["tools/call"]})
    async with serving(world) as served:

        async def got(capabilities: str | None, **changes: Any) -> str:
            form = world.form(world.workload(), scope="use", capabilities=capabilities, **changes)
            status, body, _ = await served.exchange(form)
            return "issued" if status == 200 else str(body["code"])

        mcp = {"audience": CALLS, "authorization_details": calls}
        strict = {"audience": "https://s"}
        asked = {"audience": "https://files.example.com"}
        for capabilities in (None, "", "dpop", "of_tomorrow"):
            for changes in (mcp, strict, asked):
                assert await got(capabilities, **changes) == "exchange.capability", changes
        assert await got("mcp_filter", **mcp) == "issued"
        assert await got("dpop feed", **strict) == "issued"
        assert await got("single_use", **asked) == "approval.required"
        assert await got("MCP", **mcp) == "service.bad_request"
        # Nobody was asked of what could not have been given.
        token = world.admin(role="approver")
        _, listed, _ = await served.manage("GET", "/v1/approvals", token=token)
        assert len(listed["items"]) == 1

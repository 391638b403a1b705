"""``valetkey approvals``: what people see and do, and what a terminal must not be made to do."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from tests.integration.approvals_support import desk, world_of
from tests.support.canaries import CANARIES
from valetkey.cli.main import main
from valetkey.contracts.times import rfc3339


async def test_from_list_to_revoke(tmp_path: Path) -> None:
    world = world_of(tmp_path, rule={"quorum": 2})
    token_file = tmp_path / "approver.token"
    CANARIES.allow(token_file)

    async def run(by: str, *arguments: str, role: str = "approver") -> Result:
        token_file.write_text(world.admin(by, role=role))
        return await asyncio.to_thread(
            CliRunner().invoke,
            main,
            ["approvals", *arguments],
            env={"VALETKEY_BROKER_URL": world.url, "VALETKEY_TOKEN_FILE": str(token_file)},
        )

    async with desk(world) as at:
        user = world.user("alice\x1b[2K\u202eevil")
        purpose = "so that {it} looks [bold]approved[/bold] ✓"
        approval = await at.opened(user=user, purpose=purpose)

        listed = await run("vera", "list", "--state", "pending", role="viewer")
        assert listed.exit_code == 0, listed.output
        assert approval in listed.output
        assert "/api/tickets/7/close" in listed.output

        shown = await run("vera", "show", approval, role="viewer")
        assert shown.exit_code == 0
        for output in (listed.output, shown.output):
            assert not {"\x1b", "\u202e"} & set(output)
        facts, _, said = shown.output.partition("UNTRUSTED, written by the side that asks:\n")
        assert said == f"> {purpose}\n"
        assert "looks" not in facts
        assert r"acting for    alice\x1b[2K\x202eevil of https://users.demo.example" in facts
        assert "approvers     2" in facts

        first = await run("olga", "approve", approval, "--reason", "asked", "--uses", "3")
        assert first.output == f"{approval} is pending: 1 more must approve\n"
        again = await run("olga", "approve", approval, "--reason", "asked")
        assert (again.exit_code, "approval.voted" in again.output) == (1, True)
        until = rfc3339(world.clock() + 600)
        second = await run("otto", "approve", approval, "--reason", "ok", "--until", until)
        assert second.output == f"{approval} is approved\n"
        document: dict[str, Any] = json.loads(
            (await run("olga", "show", approval, "--json")).output
        )
        assert (document["uses_left"], document["until"]) == (3, until)
        assert "uses left     3" in (await run("olga", "show", approval)).output
        revoked = await run("olga", "revoke", approval, "--reason", "mistake")
        assert revoked.output == f"{approval} is revoked\n"

        world.clock.advance(1)
        other = await at.opened(path="/api/tickets/8/close")
        refused = await run("vera", "deny", other, "--reason", "no", role="viewer")
        assert (refused.exit_code, "service.forbidden" in refused.output) == (1, True)
        denied = await run("olga", "deny", other, "--reason", "no")
        assert denied.output == f"{other} is denied\n"
        everything = json.loads((await run("olga", "list", "--json")).output)
        assert [item["state"] for item in everything] == ["denied", "revoked"]
        for bad in ("../admin/actions", "apr_x?state=1", "apr_ä", ""):
            assert (await run("olga", "show", bad)).exit_code == 2

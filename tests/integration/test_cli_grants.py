"""``valetkey grants`` and ``valetkey windows`` against a broker that listens."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest_asyncio
from click.testing import CliRunner, Result

from tests.integration.broker_support import BOT, IDP, Served, World, serving
from tests.integration.test_broker_grants_api import code
from tests.integration.test_broker_windows import deployment
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from valetkey.cli.main import main

Run = Callable[..., Awaitable[Result]]
GRANT = (
    "--workload", BOT, "--issuer", IDP, "--target", "tickets", "--scope", "tickets:delete",
    "--reason", "clean up",
)  # fmt: skip


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(World(tmp_path / "world", free_url())) as served:
        yield served


@pytest_asyncio.fixture
async def run(broker: Served, tmp_path: Path) -> Run:
    token_file = tmp_path / "operator.token"
    token_file.write_text(broker.world.admin())
    CANARIES.allow(token_file)

    async def invoke(*arguments: str, token: str = "") -> Result:
        env = {"VALETKEY_BROKER_URL": broker.world.url}
        env |= {"VALETKEY_TOKEN": token} if token else {"VALETKEY_TOKEN_FILE": str(token_file)}
        return await asyncio.to_thread(CliRunner().invoke, main, arguments, env=env)

    return invoke


async def test_a_grant_from_options_to_its_end(broker: Served, run: Run) -> None:
    made = await run("grants", "create", "--id", "jit", "--for", "1h", "--max-uses", "3", *GRANT)
    assert made.exit_code == 0, made.output
    assert "active" in made.output
    assert await code(broker) == "issued"
    listed = await run("grants", "list", "--target", "tickets", "--json")
    assert [each["id"] for each in json.loads(listed.output)] == [
        "bot-tickets",
        "jit",
        "report-tickets",
    ]
    shown = json.loads((await run("grants", "show", "jit", "--json")).output)
    assert (shown["uses"], shown["max_uses"], shown["created_by"]) == (1, 3, "olga")
    ended = await run("grants", "revoke", "jit", "--reason", "done")
    assert (ended.exit_code, "revoked" in ended.output) == (0, True)
    assert await code(broker) == "grant.ended"


async def test_a_grant_from_a_file_with_options_over_it(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "grant.yaml"
    file.write_text(
        f"id: filed\nworkload: {BOT}\nissuer: {IDP}\ntarget: tickets\nscopes: [tickets:merge]\n"
        "not_after: 2100-01-01T00:00:00Z\nreason: because\n"
        "conditions:\n  - {methods: [POST], path: '/api/tickets/{id}/merge'}\n"
    )
    first = await run("grants", "create", "--file", str(file), "--json")
    assert first.exit_code == 0, first.output
    document = json.loads(first.output)
    assert document["not_after"] == "2100-01-01T00:00:00Z"
    assert document["conditions"] == [{"methods": ["POST"], "path": "/api/tickets/{id}/merge"}]
    again = await run("grants", "create", "--file", str(file))
    assert again.exit_code == 0, "the same grant again"
    other = await run("grants", "create", "--file", str(file), "--scope", "tickets:read")
    assert (other.exit_code, "grant.conflict" in other.output) == (1, True)


async def test_what_goes_wrong_is_said_in_one_line(run: Run, tmp_path: Path) -> None:
    several = tmp_path / "several.yaml"
    several.write_text("grants: []\n")
    for arguments, status, message in (
        (("grants", "create", *GRANT[:-2]), 1, "reason is missing"),
        (("grants", "create", "--for", "soon", *GRANT), 2, "such as 30m or 2h"),
        (("grants", "create", "--not-after", "tomorrow", *GRANT), 1, "RFC3339"),
        (("grants", "create", "--file", str(several)), 2, "write one grant"),
        (("grants", "show", "none"), 1, "grant.unknown"),
        (("grants", "revoke", "bot-files", "--reason", "x"), 1, "grant.of_file"),
        (("windows", "show", "win:0"), 1, "window.unknown"),
        (("grants", "list", "--broker", "http://127.0.0.1:9"), 2, "can't be reached"),
    ):
        done = await run(*arguments)
        assert (done.exit_code, done.output.count("\n")) == (status, 1), (arguments, done.output)
        assert message in done.output, done.output


async def test_no_token_is_said(broker: Served) -> None:
    env = {"VALETKEY_BROKER_URL": broker.world.url}
    done = await asyncio.to_thread(CliRunner().invoke, main, ["grants", "list"], env=env)
    assert done.exit_code == 2
    assert "give --token-file, or the token in VALETKEY_TOKEN" in done.output


async def test_a_job_opens_and_closes_its_window(broker: Served, run: Run, tmp_path: Path) -> None:
    file = tmp_path / "deploy.json"
    file.write_text(json.dumps(deployment()))  # JSON is YAML too
    assert (await run("grants", "create", "--file", str(file))).exit_code == 0
    token = broker.world.job()
    opened = await run("windows", "open", "deploy", "--duration", "5m", "--json", token=token)
    assert opened.exit_code == 0, opened.output
    window = json.loads(opened.output)["id"]
    assert await code(broker) == "issued"
    listed = await run("windows", "list", "--state", "open")
    assert window in listed.output
    closed = await run("windows", "close", window, token=token)
    assert (closed.exit_code, "the deployment ended" in closed.output) == (0, True)
    assert await code(broker) == "grant.outside_window"
    other = json.loads(
        (await run("windows", "open", "deploy", "--json", token=broker.world.job())).output
    )
    ended = await run("windows", "revoke", other["id"], "--reason", "stuck")
    assert (ended.exit_code, "stuck" in ended.output) == (0, True)
    denied = await run("windows", "open", "bot-files", token=token)
    assert (denied.exit_code, "window.denied" in denied.output) == (1, True)

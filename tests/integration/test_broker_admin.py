"""The admin API: who may use it, what it is told, how often."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.integration.broker_support import OPERATIONS, Clock, Issuer, World, serving
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from valetkey.cli.main import main


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, free_url())


async def test_who_am_i(world: World) -> None:
    async with serving(world) as broker:
        status, body, headers = await broker.manage("GET", "/v1/admin/whoami")
    assert status == 200
    assert body == {"issuer": OPERATIONS, "subject": "olga", "roles": ["operator", "viewer"]}
    assert headers["Cache-Control"] == "no-store"


def _tokens(world: World) -> dict[str, str]:
    stranger = Issuer(OPERATIONS)
    now = world.clock()
    return {
        "a workload's": world.workload(),
        "a user's": world.user(),
        "another audience": world.admin(aud="https://elsewhere"),
        "an audience list": world.admin(aud=[world.url]),
        "expired": world.admin(ttl=-600),
        "another key": stranger.token("olga", world.url, now=now, groups=["admins"]),
        "no signature": world.admin().rpartition(".")[0] + ".",
        "no token": "x",
    }


async def test_tokens_that_are_refused(world: World) -> None:
    async with serving(world) as broker:
        for name, token in _tokens(world).items():
            status, body, headers = await broker.manage("GET", "/v1/admin/whoami", token=token)
            assert (status, body["code"]) == (401, "service.unauthenticated"), name
            assert headers["WWW-Authenticate"] == "Bearer", name
            assert "reason" not in body, name


@pytest.mark.parametrize(
    "header", [None, "Basic YTpi", "Bearer", "Bearer  ", "Bearer a b", "DPoP {token}", "{token}"]
)
async def test_headers_that_are_refused(world: World, header: str | None) -> None:
    async with serving(world) as broker:
        value = (header or "").format(token=world.admin())
        headers = {"Authorization": value} if header is not None else {}
        async with broker.client.get(world.url + "/v1/admin/whoami", headers=headers) as response:
            assert response.status == 401


async def test_two_headers_are_one_too_many(world: World) -> None:
    async with serving(world) as broker:
        headers = [("Authorization", f"Bearer {world.admin()}")] * 2
        async with broker.client.get(world.url + "/v1/admin/whoami", headers=headers) as response:
            assert response.status == 401


async def test_nobody_administers_without_settings(world: World) -> None:
    world.overrides["admin"] = None
    async with serving(world) as broker:
        status, body, _ = await broker.manage("GET", "/v1/admin/whoami")
    assert (status, body["code"]) == (401, "service.unauthenticated")


@pytest.mark.parametrize("role", ["provisioner", "nobody"])
async def test_a_role_that_does_not_read(world: World, role: str) -> None:
    async with serving(world) as broker:
        token = world.admin(role=role)
        status, body, _ = await broker.manage("GET", "/v1/admin/actions", token=token)
    assert (status, body["code"]) == (403, "service.forbidden")


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("limit=0", "limit must be between 1 and 500"),
        ("limit=501", "limit must be between 1 and 500"),
        ("limit=１", "limit must be between 1 and 500"),
        ("limit=", "limit must be between 1 and 500"),
        ("limit=000000001999", "limit must be between 1 and 500"),
        ("limit=0500", "limit must be between 1 and 500"),
        (f"limit=000000001{'0' * 4991}", "limit must be between 1 and 500"),
        ("limit=1&limit=2", "parameter 'limit' is given twice"),
        ("page=2", "unknown parameter 'page'"),
        ("after=x", "after is not the next of a page"),
        ("after=%00", "after is not the next of a page"),
        (f"after=1{'0' * 18}", "after is not the next of a page"),
    ],
)
async def test_queries_that_are_refused(world: World, query: str, reason: str) -> None:
    async with serving(world) as broker:
        status, body, _ = await broker.manage("GET", f"/v1/admin/actions?{query}")
    assert (status, body["code"], body["reason"]) == (400, "service.bad_request", reason)


async def test_no_page_begins_at_a_nul(world: World) -> None:
    async with serving(world) as broker:
        status, body, _ = await broker.manage("GET", "/v1/grants?after=%00")
    assert (status, body.get("reason")) == (400, "after is not the next of a page")


async def test_too_often(world: World) -> None:
    world.overrides["limits"] = {"admin": {"rate": 1, "burst": 3}}
    async with serving(world) as broker:
        token = world.admin()
        for _ in range(3):
            assert (await broker.manage("GET", "/v1/admin/whoami", token=token))[0] == 200
        status, body, headers = await broker.manage("GET", "/v1/admin/whoami", token=token)
        assert (status, body["code"], headers["Retry-After"]) == (429, "service.rate_limited", "1")
        other = world.admin("paul")
        assert (await broker.manage("GET", "/v1/admin/whoami", token=other))[0] == 200
        world.clock.advance(1)
        assert (await broker.manage("GET", "/v1/admin/whoami", token=token))[0] == 200


async def test_exchanges_too_often(world: World) -> None:
    world.overrides["limits"] = {"exchanges": {"rate": 1, "burst": 2}}
    async with serving(world) as broker:
        for _ in range(2):
            assert (await broker.post(world.form(world.assertion())))[0] == 200
        status, body, headers = await broker.post(world.form(world.assertion()))
        assert (status, body["error"], body["code"]) == (
            429,
            "temporarily_unavailable",
            "service.rate_limited",
        )
        assert headers["Retry-After"] == "1"
        # Another workload is not held back by it.
        assert (await broker.exchange(world.form(world.workload())))[0] == 200


async def _record(broker: Any, count: int) -> None:
    base = broker.broker.base
    for number in range(count):
        async with base.database.write() as connection:
            await base.actions.record(
                connection, actor="test", action="a", subject=f"s{number}", reason="\x1b[31mred"
            )


async def test_actions_in_pages(world: World) -> None:
    async with serving(world) as broker:
        await _record(broker, 5)
        seen: list[str] = []
        path = "/v1/admin/actions?limit=2"
        after = ""
        while True:
            _, body, _ = await broker.manage("GET", path + (f"&after={after}" if after else ""))
            seen += [item["subject"] for item in body["items"]]
            after = body.get("next", "")
            if not after:
                break
        assert seen == ["s4", "s3", "s2", "s1", "s0"]
        _, verdict, _ = await broker.manage("GET", "/v1/admin/actions/verify")
        assert (verdict["count"], verdict["broken_at"]) == (5, None)


async def test_the_command_line(world: World, tmp_path: Path) -> None:
    token_file = tmp_path / "token"

    def log_in(role: str) -> None:
        token = world.admin(role=role)
        CANARIES.add(token, name="token of an administrator", allow=[token_file])
        token_file.write_text(token)

    log_in("operator")

    async def run(*arguments: str, env: dict[str, str] | None = None) -> Any:
        return await asyncio.to_thread(
            CliRunner().invoke,
            main,
            list(arguments),
            env={
                "VALETKEY_BROKER_URL": world.url,
                "VALETKEY_TOKEN_FILE": str(token_file),
                **(env or {}),
            },
        )

    async with serving(world) as broker:
        await _record(broker, 3)
        result = await run("admin", "whoami")
        assert (result.exit_code, "operator" in result.output) == (0, True), result.output
        result = await run("admin", "actions", "--json", "--limit", "2")
        assert [item["subject"] for item in json.loads(result.output)] == ["s2", "s1"]
        result = await run("admin", "actions")
        assert "\x1b" not in result.output, "what others wrote does not reach the terminal as it is"
        assert r"\x1b[31mred" in result.output
        assert (await run("admin", "verify")).exit_code == 0
        log_in("nobody")
        result = await run("admin", "actions")
        assert (result.exit_code, "service.forbidden" in result.output) == (1, True)
    result = await run("admin", "whoami")
    assert (result.exit_code, "can't be reached" in result.output) == (2, True)
    result = await run("admin", "whoami", env={"VALETKEY_BROKER_URL": "http://broker.example"})
    assert (result.exit_code, "loopback" in result.output) == (2, True)


@pytest.mark.parametrize("set_by", [3600.0, -3600.0])
async def test_a_clock_that_is_set_neither_lets_callers_go_nor_blocks_them(
    tmp_path: Path, set_by: float
) -> None:
    world = World(tmp_path, free_url(), overrides={"limits": {"admin": {"rate": 1, "burst": 3}}})
    timer = Clock(1000.0)
    async with serving(world, timer=timer) as served:

        async def asked() -> int:
            return int((await served.manage("GET", "/v1/grants"))[0])

        assert [await asked() for _ in range(4)] == [200, 200, 200, 429]
        world.clock.advance(set_by)
        assert await asked() == 429
        timer.advance(1)
        assert await asked() == 200

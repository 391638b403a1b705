"""Grants made by API: roles, idempotency, lists, revocation, times, uses. On both databases."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.broker_support import (
    BOT,
    CI,
    GRANTS,
    IDP,
    READER,
    TICKETS,
    Clock,
    Served,
    World,
    claims_of,
    serving,
)
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.contracts import oauth
from valetkey.contracts.errors import ConfigError


@pytest.fixture(params=["sqlite", "postgres"])
def world(tmp_path: Path, request: pytest.FixtureRequest) -> World:
    # Whole seconds: a time as text is then the very time.
    world = World(tmp_path, free_url(), Clock(float(int(time.time()))))
    if request.param == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        world.overrides["database"] = server.database()
    return world


@pytest_asyncio.fixture
async def broker(world: World) -> AsyncIterator[Served]:
    async with serving(world) as served:
        yield served


def written(name: str = "jit-1", **changes: Any) -> dict[str, Any]:
    """A grant for something that no grant of the file gives."""
    document = {
        "id": name,
        "workload": BOT,
        "issuer": IDP,
        "target": "tickets",
        "scopes": ["tickets:delete"],
        "reason": "duplicates to be cleaned up",
        "ticket": "OPS-7",
        "owner": "support",
        **changes,
    }
    return {key: value for key, value in document.items() if value is not None}


def rfc3339(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


async def create(broker: Served, **changes: Any) -> dict[str, Any]:
    status, body, _ = await broker.manage("POST", "/v1/grants", written(**changes))
    assert status == 201, body
    document: dict[str, Any] = body
    return document


async def revoke(broker: Served, grant_id: str = "jit-1") -> dict[str, Any]:
    path = f"/v1/grants/{grant_id}/revoke"
    status, body, _ = await broker.manage("POST", path, {"reason": "done"})
    assert status == 200, body
    document: dict[str, Any] = body
    return document


async def asked(
    broker: Served, scope: str = "tickets:delete", workload: str = BOT
) -> dict[str, Any]:
    world = broker.world
    _, body, _ = await broker.exchange(world.form(world.workload(workload), scope=scope))
    document: dict[str, Any] = body
    return document


async def code(broker: Served, **how: Any) -> str:
    return str((await asked(broker, **how)).get("code", "issued"))


async def is_active(broker: Served, token: str) -> bool:
    form = {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": broker.world.workload(),
    }
    status, body, _ = await broker.exchange(form, path="/introspect")
    assert status == 200, body
    return bool(body["active"])


async def listed(broker: Served, query: str = "", token: str = "") -> list[str]:
    status, body, _ = await broker.manage("GET", f"/v1/grants?{query}", token=token)
    assert status == 200, body
    return [item["id"] for item in body["items"]]


# --- made, seen, revoked --------------------------------------------------------------------------


async def test_a_token_of_an_uncounted_grant_may_be_kept(broker: Served) -> None:
    await create(broker)
    assert "single_use" not in await asked(broker)


async def test_made_used_and_revoked(broker: Served) -> None:
    assert await code(broker) == "grant.scope"
    made = await create(broker)
    assert made["source"] == "api"
    assert made["state"] == "active"
    assert (made["created_by"], made["reason"]) == ("olga", "duplicates to be cleaned up")
    issued = await asked(broker)
    assert issued["grants"] == ["jit-1"]
    assert claims_of(issued["access_token"])["grants"] == ["jit-1"]
    assert await is_active(broker, issued["access_token"])
    ended = await revoke(broker)
    assert (ended["state"], ended["revoked_by"], ended["revoked_reason"]) == (
        "revoked",
        "olga",
        "done",
    )
    assert await code(broker) == "grant.ended"
    assert not await is_active(broker, issued["access_token"])


async def test_it_is_not_in_the_digest_of_the_policy(broker: Served) -> None:
    before = (await asked(broker, "tickets:read"))["policy_digest"]
    await create(broker)
    assert (await asked(broker))["policy_digest"] == before


async def test_every_change_is_on_record_with_who_and_why(broker: Served) -> None:
    await create(broker)
    await revoke(broker)
    await revoke(broker)  # changes nothing, so there is nothing to record
    _, actions, _ = await broker.manage("GET", "/v1/admin/actions")
    told = [(each["action"], each["subject"], each["reason"]) for each in actions["items"]]
    assert told == [
        ("grant.revoke", "grant:jit-1", "done"),
        ("grant.create", "grant:jit-1", "duplicates to be cleaned up"),
    ]
    assert {each["actor"] for each in actions["items"]} == {"olga"}
    assert actions["items"][1]["details"] == written()
    _, verdict, _ = await broker.manage("GET", "/v1/admin/actions/verify")
    assert verdict["broken_at"] is None


async def test_sidecars_are_told_of_an_end(broker: Served) -> None:
    await create(broker)
    await revoke(broker)
    (published,) = await broker.broker.base.signals.newest(10)
    assert (published.event.kind, published.event.value) == ("grant", "jit-1")  # type: ignore[union-attr]


async def test_the_same_again_is_the_same(broker: Served) -> None:
    body = written(not_after="2100-01-01T00:00:00+00:00", ttl="60s")
    first = await broker.manage("POST", "/v1/grants", body)
    respelled = body | {"not_after": "2100-01-01T02:00:00+02:00", "ttl": "1m"}
    second = await broker.manage("POST", "/v1/grants", respelled)
    assert (first[0], second[0]) == (201, 200)
    assert first[1] == second[1]
    assert first[2]["Location"] == "/v1/grants/jit-1"
    status, answer, _ = await broker.manage("POST", "/v1/grants", body | {"scopes": ["other"]})
    assert (status, answer["code"]) == (409, "grant.conflict")
    _, actions, _ = await broker.manage("GET", "/v1/admin/actions")
    assert len(actions["items"]) == 1


async def test_who_may_not(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        for role in ("viewer", "approver", "provisioner"):
            token = world.admin(role=role)
            for path, body in (
                ("/v1/grants", written()),
                ("/v1/grants/jit-1/revoke", {"reason": "x"}),
            ):
                status, answer, _ = await broker.manage("POST", path, body, token=token)
                assert (status, answer["code"]) == (403, "service.forbidden"), (role, path)
        assert (await broker.manage("GET", "/v1/grants/jit-1"))[0] == 404


NO_GRANTS: list[tuple[str, dict[str, Any], str]] = [
    ("no reason", {"reason": None}, "reason is missing"),
    ("unknown field", {"approve": 1}, "unknown field `approve`"),
    ("unknown target", {"target": "x"}, "no target 'x'"),
    ("unknown issuer", {"issuer": CI}, "trust for workloads"),
    ("not a time", {"not_after": "tomorrow"}, "RFC3339"),
    ("without an offset", {"not_after": "2100-01-01T00:00:00"}, "timezone"),
    ("in the past", {"not_after": "2000-01-01T00:00:00Z"}, "in the past"),
    ("no scopes", {"scopes": []}, "non-empty list of scope tokens"),
    ("no uses", {"max_uses": 0}, "at least 1"),
    ("no id", {"id": None}, "missing required field `id`"),
    ("no such id", {"id": "Jit 1"}, "id must be"),
    ("a window without use", {"window": {"opened_by": [], "longest": "1h"}}, "opened_by"),
]


async def test_what_is_no_grant(tmp_path: Path) -> None:
    async with serving(World(tmp_path, free_url())) as broker:
        for name, change, reason in NO_GRANTS:
            status, body, _ = await broker.manage("POST", "/v1/grants", written(**change))
            assert (status, body["code"]) == (400, "service.bad_request"), name
            assert reason in body["reason"], name


async def test_grants_of_the_file_are_shown_and_stay(broker: Served) -> None:
    status, body, _ = await broker.manage("GET", "/v1/grants/bot-files")
    assert status == 200
    assert (body["source"], body["state"], body["ttl"]) == ("file", "active", "30s")
    status, body, _ = await broker.manage("POST", "/v1/grants/bot-files/revoke", {"reason": "x"})
    assert (status, body["code"]) == (409, "grant.of_file")
    status, body, _ = await broker.manage("POST", "/v1/grants", written(id="bot-files"))
    assert (status, body["code"]) == (409, "grant.conflict")


async def test_what_there_is_not(broker: Served) -> None:
    for method, path, body in (
        ("GET", "/v1/grants/none", None),
        ("POST", "/v1/grants/none/revoke", {"reason": "x"}),
    ):
        status, answer, _ = await broker.manage(method, path, body)
        assert (status, answer["code"]) == (404, "grant.unknown")
    for body in ({}, {"reason": ""}, {"reason": "  "}, {"reason": "a\nb"}):
        status, answer, _ = await broker.manage("POST", "/v1/grants/none/revoke", body)
        assert (status, answer["code"]) == (400, "service.bad_request"), body


# --- lists ----------------------------------------------------------------------------------------


async def test_lists_and_their_filters(world: World, broker: Served) -> None:
    now = world.clock()
    await create(broker, id="a-active", max_uses=5)
    await create(broker, id="b-pending", not_before=rfc3339(now + 60))
    await create(broker, id="c-expired", not_after=rfc3339(now + 10))
    await create(broker, id="d-revoked", target="files")
    await create(broker, id="e-wild", workload="spiffe://demo.example/ns/*/sa/bot", max_uses=1)
    await create(broker, id="f-other", workload=READER)
    await revoke(broker, "d-revoked")
    assert (await asked(broker, workload=BOT.replace("agents", "x")))["grants"] == ["e-wild"]
    world.clock.advance(11)
    made = ["a-active", "b-pending", "c-expired", "d-revoked", "e-wild", "f-other"]
    files = sorted(grant["id"] for grant in GRANTS)
    assert await listed(broker, token=world.admin(role="viewer")) == sorted([*made, *files])
    assert await listed(broker, "state=pending") == ["b-pending"]
    assert await listed(broker, "state=expired") == ["c-expired"]
    assert await listed(broker, "state=revoked") == ["d-revoked"]
    assert await listed(broker, "state=used_up") == ["e-wild"]
    assert await listed(broker, "state=active") == sorted(["a-active", "f-other", *files])
    assert await listed(broker, f"workload={READER}") == ["f-other"]
    assert await listed(broker, f"workload={BOT}&state=used_up") == ["e-wild"]
    wild = "spiffe://demo.example/ns/*/sa/bot"
    assert await listed(broker, f"workload={wild}") == ["bot-payments", "e-wild"]
    assert await listed(broker, "target=files") == ["bot-files", "d-revoked"]
    for query in ("state=ended", "source=api", "limit=0"):
        status, body, _ = await broker.manage("GET", f"/v1/grants?{query}")
        assert (status, body["code"]) == (400, "service.bad_request"), query


async def test_pages(broker: Served) -> None:
    for number in range(4):
        await create(broker, id=f"c{number}")
    every = await listed(broker)
    for limit in (1, 2, 3, 4, 9, 10):
        found: list[str] = []
        after = ""
        while True:
            path = f"/v1/grants?limit={limit}&after={after}"
            _, body, _ = await broker.manage("GET", path)
            found += [item["id"] for item in body["items"]]
            after = body.get("next", "")
            if not after:
                break
        assert found == every, limit


# --- time and uses --------------------------------------------------------------------------------


async def test_the_clock_s_boundaries(world: World, broker: Served) -> None:
    begin = float(int(world.clock())) + 100
    box = {"not_before": rfc3339(begin), "not_after": rfc3339(begin + 100)}
    assert (await create(broker, **box))["state"] == "pending"
    for at, expected in (
        (begin - 0.001, "grant.outside_window"),
        (begin, "issued"),
        (begin + 99, "issued"),
        (begin + 99.5, "grant.ended"),  # less than a token's shortest life is left
        (begin + 100, "grant.ended"),
    ):
        world.clock.now = at
        issued = await asked(broker)
        assert issued.get("code", "issued") == expected, at - begin
        if expected == "issued":
            assert claims_of(issued["access_token"])["exp"] <= begin + 100
            last = issued["access_token"]
    assert not await is_active(broker, last)


async def test_uses_are_counted_per_token(broker: Served) -> None:
    await create(broker, max_uses=2)
    answers = [await asked(broker) for _ in range(2)]
    # Who keeps tokens must not keep these: what is counted are calls.
    assert all(answer["single_use"] for answer in answers)
    tokens = [answer["access_token"] for answer in answers]
    assert await code(broker) == "grant.used_up"
    _, body, _ = await broker.manage("GET", "/v1/grants/jit-1")
    assert (body["state"], body["uses"], body["max_uses"]) == ("used_up", 2, 2)
    # Their tokens are as good as ever.
    assert all([await is_active(broker, token) for token in tokens])


async def test_a_refusal_uses_nothing(world: World, broker: Served) -> None:
    await create(broker, target="payments", scopes=["payments:write"], max_uses=1)
    form = world.form(
        world.assertion(), audience="https://payments.example.com", scope="payments:write"
    )
    assert (await broker.post(form))[0] == 400  # not this workload's
    _, body, _ = await broker.manage("GET", "/v1/grants/jit-1")
    assert body["uses"] == 0


async def test_a_grant_without_bounds_is_used_first(broker: Served) -> None:
    await create(broker, id="one-use", max_uses=1, scopes=["tickets:read"])
    assert (await asked(broker, "tickets:read"))["grants"] == ["bot-tickets"]
    _, body, _ = await broker.manage("GET", "/v1/grants/one-use")
    assert body["uses"] == 0


async def test_a_grant_of_the_file_counts_too_over_restarts(world: World) -> None:
    limited = {key: value for key, value in written("file-one").items() if key != "owner"}
    world.write()
    world.write_grants([*GRANTS, limited | {"max_uses": 1}])
    async with serving(world) as broker:
        assert await code(broker) == "issued"
        assert await listed(broker, "state=used_up") == ["file-one"]
    async with serving(world) as broker:
        assert await code(broker) == "grant.used_up"
        world.write_grants([*GRANTS, limited | {"max_uses": 2}])
        await broker.broker.base.policies.reload()
        assert await code(broker) == "issued"
        assert await code(broker) == "grant.used_up"


# --- ended grants end their tokens ----------------------------------------------------------------


async def test_a_grant_taken_out_of_the_file_ends_its_tokens(world: World, broker: Served) -> None:
    token = (await asked(broker, "tickets:read"))["access_token"]
    world.write_grants([grant for grant in GRANTS if grant["id"] != "bot-tickets"])
    await broker.broker.base.policies.reload()
    assert not await is_active(broker, token)
    (published,) = await broker.broker.base.signals.newest(10)
    assert (published.event.kind, published.event.value) == ("grant", "bot-tickets")  # type: ignore[union-attr]


async def test_a_token_of_an_ended_grant_is_no_subject_token(world: World) -> None:
    """The broker trusts its own tokens as users' tokens; those whose grant ended it does not."""
    ours = {
        "issuer": world.url, "audience": TICKETS, "use": "user",
        "jwks_file": str(world.root / "ours.json"),
    }  # fmt: skip
    world.overrides["issuers"] = [*world.document()["issuers"], ours]
    async with serving(world) as broker:
        _, keys, _ = await broker.get("/jwks")
        (world.root / "ours.json").write_bytes(keys)
        await create(broker, on_behalf_of="users")
        own = world.workload()
        form = world.user_form(own, world.user(), scope="tickets:delete")
        _, issued, _ = await broker.exchange(form)
        again = world.user_form(own, issued["access_token"], scope="tickets:read")
        assert (await broker.exchange(again))[0] == 200
        await revoke(broker)
        status, body, _ = await broker.exchange(again)
        assert (status, body["code"]) == (400, "subject.revoked")


# --- restarts, contradictions ---------------------------------------------------------------------


async def test_all_of_it_is_there_after_a_restart(world: World) -> None:
    async with serving(world) as broker:
        await create(broker, id="stays")
        await create(broker, id="gone", scopes=["tickets:merge"])
        token = (await asked(broker, "tickets:merge"))["access_token"]
        await revoke(broker, "gone")
    async with serving(world) as broker:
        assert await code(broker) == "issued"
        assert await code(broker, scope="tickets:merge") == "grant.ended"
        assert not await is_active(broker, token)


async def test_a_target_that_settings_no_longer_have(world: World) -> None:
    async with serving(world) as broker:
        await create(broker, target="files", scopes=["files:purge"])
    targets = world.document()["targets"]
    world.overrides["targets"] = {name: targets[name] for name in ("tickets", "payments")}
    world.write_grants([grant for grant in GRANTS if grant["target"] != "files"])
    async with serving(world) as broker:
        _, body, _ = await broker.manage("GET", "/v1/grants/jit-1")
        assert body["unusable"] == "grant jit-1: no target 'files' in settings"


async def test_an_id_of_both_stops_the_start_and_keeps_the_last_good_file(world: World) -> None:
    taken = {key: value for key, value in written("both").items() if key != "owner"}
    async with serving(world) as broker:
        await create(broker, id="both")
        world.write_grants([*GRANTS, taken])
        await broker.broker.base.policies.reload()
        assert "grant both: a grant made by API has this id" in broker.broker.base.policies.error
    with pytest.raises(ConfigError, match="give the one of the file another id"):
        async with serving(world):
            pass


async def test_what_ended_is_forgotten_in_time(world: World, broker: Served) -> None:
    await create(broker)
    await revoke(broker)
    await create(broker, id="short", not_after=rfc3339(world.clock() + 60))
    await create(broker, id="once", max_uses=1)
    assert (await asked(broker))["grants"] == ["short"]
    world.clock.advance(60)
    assert (await asked(broker))["grants"] == ["once"]
    await broker.broker.sweep()
    assert len(broker.broker.base.policies.live.made) == 3
    world.clock.advance(3600)
    await broker.broker.sweep()
    assert len(broker.broker.base.policies.live.made) == 0
    assert await code(broker) == "grant.scope"
    assert "jit-1" in await listed(broker)
    world.clock.advance(91 * 86_400)
    await broker.broker.sweep()
    assert await listed(broker) == sorted(grant["id"] for grant in GRANTS)

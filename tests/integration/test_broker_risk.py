"""Risk in policies: what transmitters say of a subject, and open incidents, raise it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import BOT, IDP, USERS, Served, serving
from tests.integration.test_broker_authzen import POINT, endpoint, post
from tests.integration.test_broker_containment import active, code_of, issue
from tests.integration.test_broker_policies import PolicyWorld
from tests.integration.test_incident_transmitters import CAEP, Sender
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.api.authzen import EVALUATION
from valetkey.contracts.dpop import ProofKey

POLICIES = """
@id("all") permit (principal, action, resource);
@id("risky") forbid (principal, action, resource)
  when { context.risk == "high" || context.risk == "medium" };
"""
DAY = 86_400.0
ALICE = {"format": "iss_sub", "iss": USERS, "sub": "alice"}
WORKLOAD = {"format": "iss_sub", "iss": IDP, "sub": BOT}


def made(root: Path, **settings: Any) -> tuple[PolicyWorld, Sender]:
    """A transmitter whose word on risk is kept for a day, and opens no incident by it."""
    world = PolicyWorld(root, free_url()).policies(POLICIES)
    sender = Sender(world)
    settings = {"risk": "24h", "opens": ["session-revoked"], **settings}
    settings = {name: value for name, value in settings.items() if value is not None}
    world.overrides["incidents"] = {"transmitters": {"idp": sender.settings(**settings)}}
    return world, sender


async def says(
    served: Served, sender: Sender, level: str, subject: Any = None, *, ago: float = 0.0
) -> None:
    body = {
        "current_level": level,
        "principal": "USER",
        "event_timestamp": sender.world.clock() - ago,
    }
    claims = sender.claims(subject or ALICE, events={CAEP + "risk-level-change": body})
    assert (await sender.push(served, sender.sign(claims)))[0] == 202


async def for_alice(served: Served) -> str:
    world = served.world
    return await code_of(served, world.user_form(world.workload(), world.user()))


async def test_a_raised_risk_counts_at_once_and_until_its_end(tmp_path: Path) -> None:
    world, sender = made(tmp_path)
    async with serving(world) as served:
        before = (await issue(served, world.user_form(world.workload(), world.user())))[
            "access_token"
        ]
        own = (await issue(served, world.form(world.workload())))["access_token"]
        await says(served, sender, "LOW")
        assert await active(served, before), "nothing to fear"
        await says(served, sender, "MEDIUM")
        assert not await active(served, before), "it was decided on without that"
        assert await for_alice(served) == "policy.denied"
        assert await active(served, own)
        assert await code_of(served, world.form(world.workload())) == "ok", "for itself"
        await says(served, sender, "HIGH", WORKLOAD)
        assert not await active(served, own)
        assert await code_of(served, world.form(world.workload())) == "policy.denied"
    async with serving(world) as served:
        assert await for_alice(served) == "policy.denied", "also after a restart"
        world.clock.advance(1)
        await says(served, sender, "LOW", WORKLOAD)
        assert await code_of(served, world.form(world.workload())) == "ok"
        assert await for_alice(served) == "policy.denied"
        await says(served, sender, "LOW", ago=60)
        assert await for_alice(served) == "policy.denied", "of something earlier"
        world.clock.advance(DAY)
        await served.broker.sweep()
        assert await for_alice(served) == "ok"
        assert (await served.manage("GET", "/v1/incidents?state=all"))[1]["items"] == []


async def test_what_was_seen_long_ago_counts_no_longer_than_it_may(tmp_path: Path) -> None:
    world, sender = made(tmp_path)
    async with serving(world) as served:
        await says(served, sender, "HIGH", ago=DAY + 1)
        assert await for_alice(served) == "ok"
        await says(served, sender, "HIGH", ago=-DAY * 300)  # a clock that is wrong
        assert await for_alice(served) == "policy.denied"
        world.clock.advance(DAY)
        assert await for_alice(served) == "ok"


async def test_only_of_whom_it_may_speak_and_only_where_settings_keep_it(tmp_path: Path) -> None:
    for number, settings in enumerate(({"subjects": [IDP], "identifiers": {}}, {"risk": None})):
        world, sender = made(tmp_path / str(number), **settings)
        async with serving(world) as served:
            await says(served, sender, "HIGH")
            assert await for_alice(served) == "ok", settings


async def test_where_it_opens_an_incident_too_both_count(tmp_path: Path) -> None:
    world, sender = made(tmp_path, opens=["risk-level-change"])
    async with serving(world) as served:
        await says(served, sender, "MEDIUM")
        assert (await served.manage("GET", "/v1/incidents"))[1]["items"] == []
        assert await for_alice(served) == "policy.denied"
        world.clock.advance(1)
        await says(served, sender, "HIGH")
        (incident,) = (await served.manage("GET", "/v1/incidents"))[1]["items"]
        assert incident["subject"]["subject"] == "alice"
        assert await for_alice(served) == "subject.contained"


async def test_the_other_replica_knows(tmp_path: Path, postgres: Postgres) -> None:
    world, sender = made(tmp_path)
    world.overrides["database"] = postgres.database()
    async with serving(world) as one, serving(world, free_url()) as other:
        assert await for_alice(other) == "ok"
        await says(one, sender, "HIGH")
        assert await for_alice(one) == "policy.denied"

        async def denied() -> bool:
            return await for_alice(other) == "policy.denied"

        await until(denied, "the other replica has the word")


@pytest.mark.parametrize("after_a_restart", [False, True])
async def test_an_open_incident_is_high(tmp_path: Path, after_a_restart: bool) -> None:
    world, _ = made(tmp_path)
    async with serving(world) as served:
        named = {"reason": "stolen", "subject": {"issuer": IDP, "subject": BOT}}
        _, opened, _ = await served.manage("POST", "/v1/incidents", named)
        world.clock.advance(40)
        world.proof_key = ProofKey()  # it attests itself anew
        if not after_a_restart:
            await still_high(served, opened["id"])
    if after_a_restart:
        async with serving(world) as served:
            await still_high(served, opened["id"])


async def still_high(served: Served, incident: str) -> None:
    world = served.world
    assert await code_of(served, world.form(world.workload())) == "policy.denied"
    token = world.admin(role="admin")
    path = f"/v1/incidents/{incident}/close"
    closing = {"reason": "nothing came of it", "force": True}
    assert (await served.manage("POST", path, closing, token=token))[0] == 200
    assert await code_of(served, world.form(world.workload())) == "ok"


async def test_other_systems_are_told_the_same(tmp_path: Path) -> None:
    world, sender = made(tmp_path)
    world.overrides["authzen"] = {
        "enforcement_points": [{"issuer": IDP, "subject": POINT, "bearer": True}]
    }
    who = {"type": "user", "id": "alice"}
    act = {"iss": IDP, "sub": BOT}
    question = {
        "subject": {**who, "properties": {"issuer": USERS, "act": act}},
        **endpoint("https://tickets.example.com/tickets/7", "GET", "tickets:read"),
    }
    async with serving(world) as served:
        assert (await post(served, EVALUATION, question))[1]["decision"] is True
        await says(served, sender, "HIGH")
        assert (await post(served, EVALUATION, question))[1]["decision"] is False

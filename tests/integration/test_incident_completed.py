"""A token named by its id alone, and then shown: whose it is, and what descends from it, is known."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import (
    GRANTS,
    IDP,
    READER,
    TICKETS,
    Served,
    World,
    serving,
)
from tests.integration.test_broker_containment import active, code_of
from tests.integration.test_broker_incidents import PATH, SUBJECT, presented, restart
from tests.integration.test_incident_github import URL, Github
from tests.integration.test_incident_transmitters import CAEP, Sender, incidents
from tests.support.ports import free_url

Report = Callable[[Served, Github, str], Awaitable[None]]


async def by_alert(broker: Served, github: Github, token: str) -> None:
    assert (await github.alert(broker, token))[0] == 200


async def by_an_administrator(broker: Served, _github: Github, token: str) -> None:
    body = {"reason": "leaked in a log", "token": token}
    assert (await broker.manage("POST", PATH, json=body))[0] in {200, 201}


async def by_its_client(broker: Served, _github: Github, token: str) -> None:
    form = {**presented(broker.world, token), "reason": "exposed"}
    assert (await broker.exchange(form, path="/revoke"))[0] == 200


def made(root: Path) -> tuple[World, Sender, Github]:
    """The tickets service exchanges on the tokens that it gets."""
    world = World(root, free_url())
    github = Github(world)
    sender = Sender(world)
    own = {
        "issuer": world.url,
        "audience": TICKETS,
        "use": "user",
        "jwks_url": world.url + "/jwks",
    }
    world.overrides["incidents"]["transmitters"] = {"idp": sender.settings()}
    world.overrides["issuers"] = [*world.document()["issuers"], own]
    mine = {
        "id": "reader-tickets",
        "workload": READER,
        "issuer": IDP,
        "target": "tickets",
        "scopes": ["tickets:read"],
        "on_behalf_of": "users",
    }
    world.write_grants([*GRANTS, mine])
    return world, sender, github


@pytest.mark.parametrize(
    "report",
    [by_alert, by_an_administrator, by_its_client],
    ids=["an alert", "an administrator", "its client"],
)
async def test_a_token_named_by_its_id_and_then_shown(tmp_path: Path, report: Report) -> None:
    world, sender, github = made(tmp_path)
    async with serving(world) as broker:
        _, root, _ = await broker.exchange(world.user_form(world.workload(), world.user()))
        reader = world.workload(READER)
        _, child, _ = await broker.exchange(world.user_form(reader, root["access_token"]))
        assert child["txn"] == root["txn"]
        named = {"format": "jwt_id", "iss": world.url, "jti": root["jti"]}
        event = {CAEP + "credential-change": {"change_type": "revoke", "credential_type": "jwt"}}
        claims = sender.claims(named, events=event)
        assert (await sender.push(broker, sender.sign(claims)))[0] == 202
        (first,) = await incidents(broker)
        assert "subject" not in first
        assert await active(broker, child["access_token"], reader)

        world.clock.advance(10)
        await report(broker, github, root["access_token"])
        (incident,) = await incidents(broker)
        assert incident["id"] == first["id"]
        assert incident["subject"] == {**SUBJECT, "epoch": 1, "attested_at": None}
        assert not await active(broker, child["access_token"], reader), "of the same transaction"
        assert await code_of(broker, world.form(world.workload())) == "subject.contained"
        actions = (await broker.manage("GET", "/v1/admin/actions"))[1]["items"]
        assert actions[0]["action"] == "incident.renew"
        assert actions[0]["details"]["contains"] == SUBJECT["subject"]
        shown: dict[str, Any] = (await broker.manage("GET", f"{PATH}/{first['id']}"))[1]
        assert shown["evidence"] == (URL if report is by_alert else "")

        # Once more it says nothing new.
        await report(broker, github, root["access_token"])
        assert (await incidents(broker))[0]["subject"]["epoch"] == 1
        restart(world)
        assert await code_of(broker, world.form(world.workload())) == "ok"
        assert (await incidents(broker))[0]["subject"]["attested_at"] is not None

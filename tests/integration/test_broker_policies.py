"""Cedar policies through the real broker: they take from what grants give, and never add to it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.approvals_support import APPROVALS, CLOSING, desk
from tests.integration.broker_support import (
    BOT,
    FILES,
    GRANTS,
    IDP,
    TICKETS,
    USERS,
    Served,
    World,
    claims_of,
    details,
    serving,
)
from tests.support.ports import free_url
from valetkey.contracts.errors import ConfigError

ALL = '@id("all") permit (principal, action, resource);\n'


class PolicyWorld(World):
    """A world whose broker reads policies, with roles, groups, agents and a route."""

    def policies(self, text: str, name: str = "main.cedar") -> PolicyWorld:
        directory = self.root / "policies"
        directory.mkdir(parents=True, exist_ok=True)
        new = directory / f"{name}.new"
        new.write_text(text)
        new.rename(directory / name)
        return self

    def document(self) -> dict[str, Any]:
        document = super().document()
        document["policies"] = str(self.root / "policies")
        document["claims"] = [
            {"issuer": USERS, "roles": {"claim": ["realm", "roles"], "names": {"S": "support"}}},
            {"issuer": IDP, "groups": {"claim": ["team"], "names": {"red": "red"}}},
        ]
        document["agents"] = [{"issuer": IDP, "workload": "spiffe://demo.example/ns/ai/sa/*"}]
        document["targets"]["tickets"]["environment"] = "production"
        document["targets"]["tickets"]["routes"] = {
            "close": {"methods": ["POST"], "path": "/tickets/{id}/close"}
        }
        return document | self.overrides


def world(tmp_path: Path, text: str) -> PolicyWorld:
    return PolicyWorld(tmp_path, free_url()).policies(text)


async def ask(broker: Served, token: str = "", **changes: Any) -> dict[str, Any]:
    world = broker.world
    _, body, _ = await broker.exchange(world.form(token or world.workload(), **changes))
    return body


async def ask_for_user(broker: Served, **user: Any) -> dict[str, Any]:
    world = broker.world
    token = world.workload()
    _, body, _ = await broker.exchange(world.user_form(token, world.user(**user)))
    return body


async def test_token_and_answer_name_the_policies(tmp_path: Path) -> None:
    text = (
        ALL
        + '@id("prod") permit (principal, action, resource) when { context.environment == "production" };'
    )
    async with serving(world(tmp_path, text)) as broker:
        body = await ask(broker)
        assert body["policies"] == ["all", "prod"]
        claims = claims_of(body["access_token"])
        assert claims["policies"] == ["all", "prod"]
        _, raw, _ = await broker.get("/readyz")
        assert json.loads(raw)["policy"] == claims["policy_digest"] == body["policy_digest"]
        assert json.loads(raw)["policies"] == "ok"


async def test_without_policies_grants_decide(tmp_path: Path) -> None:
    async with serving(World(tmp_path, free_url())) as broker:
        assert (await ask(broker))["policies"] == ["grants-decide"]


ERRING = "context.weekday + 9223372036854775807 > 0"


@pytest.mark.parametrize(
    ("name", "text", "changes", "code"),
    [
        ("permitted by nothing", '@id("a") permit (principal is User, action, resource);', {}, "policy.denied"),
        ("forbidden", ALL + '@id("no") forbid (principal, action, resource in Target::"tickets");', {}, "policy.denied"),
        ("an erring forbid", ALL + f'@id("no") forbid (principal, action, resource) when {{ {ERRING} }};', {}, "policy.error"),
        ("never more than grants", ALL, {"scope": "tickets:write"}, "grant.scope"),
        ("never another target", ALL, {"audience": "https://nowhere"}, "grant.missing"),
        ("an approval", ALL + '@id("ask") forbid (principal, action, resource) unless { context.approved };', {}, "approval.required"),
        ("a path left open", ALL + '@id("no") forbid (principal, action, resource) when { context.path like "/x*" };', {}, "policy.open"),
        ("a path that is forbidden", ALL + '@id("no") forbid (principal, action, resource) when { context.path like "/public/x*" };',
         {"audience": FILES, "scope": "files:read", "authorization_details": details("/public/x/y", "GET", exact=True)}, "policy.denied"),
        ("wider than a route", ALL + '@id("no") forbid (principal, action, resource in Route::"tickets/close");',
         {"authorization_details": details("/tickets/{rest*}", "POST", audience=TICKETS)}, "policy.open"),
        ("in a route", ALL + '@id("no") forbid (principal, action, resource in Route::"tickets/close");',
         {"authorization_details": details("/tickets/7/close", "POST", audience=TICKETS, exact=True)}, "policy.denied"),
        ("another method", ALL + '@id("no") forbid (principal, action, resource in Route::"tickets/close");',
         {"authorization_details": details("/tickets/7/close", "GET", audience=TICKETS, exact=True)}, None),
    ],
)  # fmt: skip
async def test_what_policies_refuse(
    tmp_path: Path, name: str, text: str, changes: dict[str, Any], code: str | None
) -> None:
    async with serving(world(tmp_path, text)) as broker:
        body = await ask(broker, **changes)
        assert body.get("code") == code, (name, body)
        assert ("access_token" in body) == (code is None)


async def test_a_scope_that_policies_take_is_left_out(tmp_path: Path) -> None:
    text = (
        ALL
        + '@id("no") forbid (principal, action, resource) when { context.scope == "tickets:list" };'
    )
    async with serving(world(tmp_path, text)) as broker:
        body = await ask(broker, scope="tickets:read tickets:list")
        assert body["scope"] == "tickets:read"
        assert claims_of(body["access_token"])["scope"] == "tickets:read"


async def test_roles_and_groups_come_from_verified_claims(tmp_path: Path) -> None:
    text = (
        '@id("team") permit (principal in Group::"red", action, resource);'
        '@id("support") permit (principal in Role::"support", action, resource);'
    )
    async with serving(world(tmp_path, text)) as broker:
        assert (await ask(broker))["code"] == "policy.denied"
        red = broker.world.workload(team="red")
        assert (await ask(broker, red))["policies"] == ["team"]
        assert (await ask(broker, broker.world.workload(team="RED")))["code"] == "policy.denied"
        assert (await ask(broker, broker.world.workload(team={"red": 1})))[
            "code"
        ] == "actor.invalid"
        # Both are asked about: the workload has no group here, whatever the user's role.
        assert (await ask_for_user(broker, realm={"roles": ["S"]}))["code"] == "policy.denied"
        assert (await ask_for_user(broker, realm="S"))["code"] == "subject.invalid"


async def test_a_user_needs_a_role_and_the_workload_a_permit(tmp_path: Path) -> None:
    text = (
        '@id("bots") permit (principal is Workload, action, resource);'
        '@id("support") permit (principal is User in Role::"support", action, resource)'
        f' when {{ context.actor.subject == "{BOT}" }};'
    )
    async with serving(world(tmp_path, text)) as broker:
        body = await ask_for_user(broker, realm={"roles": ["S"]})
        assert body["policies"] == ["bots", "support"]
        assert (await ask_for_user(broker))["code"] == "policy.denied"


async def test_agents_are_told_apart(tmp_path: Path) -> None:
    agent = "spiffe://demo.example/ns/ai/sa/bot"
    text = ALL + '@id("no-agents") forbid (principal is Agent, action, resource);'
    made = world(tmp_path, text)
    async with serving(made) as broker:
        payments = {"audience": "https://payments.example.com", "scope": "payments:read"}
        assert (await ask(broker, made.workload(agent), **payments))["code"] == "policy.denied"
        assert "access_token" in await ask(broker, **payments)


async def test_policies_are_watched_and_bad_ones_change_nothing(tmp_path: Path) -> None:
    made = world(tmp_path, ALL)
    async with serving(made) as broker:
        cedar = broker.broker.base.cedar
        made.policies('@id("no") forbid (principal, action, resource);', "more.cedar")
        await cedar.reload()
        assert (await ask(broker))["code"] == "policy.denied"
        made.policies("permit (", "more.cedar")
        await cedar.reload()
        assert (await ask(broker))["code"] == "policy.denied", "the last good ones are in force"
        _, raw, _ = await broker.get("/readyz")
        assert json.loads(raw)["policies"].startswith("stale")
        made.policies('@id("ok") permit (principal, action, resource);', "more.cedar")
        await cedar.reload()
        assert (await ask(broker))["policies"] == ["all", "ok"]


async def test_bad_policies_at_the_start_stop_it(tmp_path: Path) -> None:
    made = world(
        tmp_path, ALL + '@id("b") forbid (principal, action, resource in Target::"tickts");'
    )
    with pytest.raises(ConfigError, match=r'main\.cedar:2: Target::"tickts"'):
        async with serving(made):
            pass


async def test_roles_are_not_lost_on_the_way_through_our_own_tokens(tmp_path: Path) -> None:
    """Whoever exchanges on a token of ours acts for the same user, with the same groups."""
    made = world(
        tmp_path,
        ALL + '@id("no") forbid (principal in Role::"support", action, resource)'
        ' when { context.scope == "tickets:list" };',
    )
    ours = {"issuer": made.url, "audience": TICKETS, "use": "user", "jwks_url": made.url + "/jwks"}
    made.overrides = {"issuers": [*made.document()["issuers"], ours]}
    async with serving(made) as broker:
        token = made.workload()

        async def chained(root: str) -> dict[str, Any]:
            _, body, _ = await broker.exchange(made.user_form(token, root, scope="tickets:list"))
            return body

        root = await ask_for_user(broker, realm={"roles": ["S"]})
        claims = claims_of(root["access_token"])
        assert (claims["roles"], claims["groups"]) == (["support"], [])
        assert (await chained(root["access_token"]))["code"] == "policy.denied"
        root = await ask_for_user(broker)
        assert claims_of(root["access_token"])["roles"] == []
        child = await chained(root["access_token"])
        assert claims_of(child["access_token"])["sub_iss"] == USERS


async def test_tokens_say_nothing_of_roles_where_nobody_exchanges_on(tmp_path: Path) -> None:
    async with serving(world(tmp_path, ALL)) as broker:
        body = await ask_for_user(broker, realm={"roles": ["S"]})
        assert not {"roles", "groups"} & claims_of(body["access_token"]).keys()


async def test_a_refusal_names_the_policies_that_forbid(tmp_path: Path) -> None:
    text = ALL + "".join(f'@id("{name}") forbid (principal, action, resource);' for name in "cba")
    async with serving(world(tmp_path, text)) as broker:
        assert (await ask(broker))["policies"] == ["a", "b", "c"]


async def test_a_policy_asks_for_people_and_is_asked_again_when_they_agree(tmp_path: Path) -> None:
    """By annotation: how many, and of which role; the grant itself asks for nobody."""
    closing = {key: value for key, value in CLOSING.items() if key != "approval"}
    made = world(
        tmp_path,
        ALL + '@id("close") @approval_quorum("2") @approval_roles("lead")'
        ' forbid (principal, action, resource) when { context.scope == "tickets:close" }'
        " unless { context.approved };",
    )
    made.overrides = {"approvals": APPROVALS}
    made.root.mkdir(parents=True, exist_ok=True)
    made.write_grants([*GRANTS, closing])
    async with desk(made) as at:
        approval = await at.opened()
        lead = {"claims": {"roles": ["lead"]}}
        assert (await at.approve(approval, by="otto"))[1]["code"] == "approval.not_eligible"
        assert (await at.approve(approval, by="olga", **lead))[1]["state"] == "pending"
        assert (await at.approve(approval, by="ole", **lead))[1]["state"] == "approved"
        made.policies('@id("freeze") forbid (principal, action, resource);', "freeze.cedar")
        await at.served.broker.base.cedar.reload()
        assert (await at.ask())[1]["code"] == "policy.denied", "decided again, by the policy of now"
        made.policies('@id("thaw") permit (principal, action, resource);', "freeze.cedar")
        (made.root / "policies/freeze.cedar").unlink()
        await at.served.broker.base.cedar.reload()
        status, body = await at.ask()
        assert (status, body["approval"]) == (200, approval), body
        assert body["policies"] == ["all", "close"]
        assert (await at.ask())[1]["code"] == "approval.required"


async def test_a_workload_stays_a_workload_where_another_acts_on_its_token(tmp_path: Path) -> None:
    made = world(
        tmp_path,
        ALL + f'@id("no") forbid (principal == Workload::"{IDP}|{BOT}", action, resource)'
        ' when { context.scope == "tickets:read" && context has user };',
    )
    ours = {"issuer": made.url, "audience": TICKETS, "use": "user", "jwks_url": made.url + "/jwks"}
    made.overrides = {"issuers": [*made.document()["issuers"], ours]}
    made.root.mkdir(parents=True, exist_ok=True)
    report = {**GRANTS[3], "on_behalf_of": "users"}
    made.write_grants([*(one for one in GRANTS if one["id"] != report["id"]), report])
    async with serving(made) as broker:
        root = await ask(broker)
        form = made.user_form(made.assertion(), root["access_token"])
        _, body, _ = await broker.post({**form, "actor_token": form["client_assertion"]})
        assert body.get("code") == "policy.denied", body
        assert body["policies"] == ["no"]

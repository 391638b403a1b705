"""Approvals over HTTP: asking, deciding, using, and everything that must be refused (standards §2)."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.approvals_support import CLOSING, Desk, desk, world_of
from tests.integration.broker_support import (
    GRANTS,
    IDP,
    OPERATIONS,
    READER,
    TICKETS,
    USERS,
    claims_of,
    details,
    serving,
)
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.parts.approvals import ApprovalsPart
from valetkey.broker.store.database import StoreError
from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.times import rfc3339

# --- the plain way: asked, approved, repeated -----------------------------------------------------


async def test_a_call_goes_through_once_it_is_approved_and_only_once(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        status, body = await at.ask()
        assert status == 400
        assert body["error"] == "interaction_required"
        assert body["code"] == "approval.required"
        assert "deferral_code" not in body, "without the opt-in nothing is deferred"
        approval = body["approval_id"]
        assert (await at.ask())[1]["approval_id"] == approval, "the same request is one"

        status, decided = await at.approve(approval)
        assert (status, decided["state"]) == (200, "approved"), decided
        status, body = await at.ask()
        assert status == 200, body
        assert (body["approval"], body["single_use"]) == (approval, True)
        claims = claims_of(body["access_token"])
        assert claims["approval"] == approval
        assert claims["scope"] == "tickets:close"
        assert (await at.show(approval))["state"] == "used"

        status, body = await at.ask()
        assert (status, body["code"]) == (400, "approval.required")
        assert body["approval_id"] != approval, "another use takes another yes"


async def test_as_often_as_was_said_and_not_more(tmp_path: Path) -> None:
    uses = 3
    async with desk(world_of(tmp_path)) as at:
        approval = await at.opened()
        assert (await at.approve(approval, uses=uses))[0] == 200
        answers = await asyncio.gather(*(at.ask() for _ in range(uses + 3)))
        given = [body for status, body in answers if status == 200]
        assert len(given) == uses
        assert all(body["single_use"] for body in given)
        assert {body["approval_id"] for status, body in answers if status != 200}.isdisjoint(
            {approval}
        )


async def test_until_a_time_it_is_good_for_any_number_and_no_token_outlives_it(
    tmp_path: Path,
) -> None:
    async with desk(world_of(tmp_path)) as at:
        approval = await at.opened()
        until = at.world.clock() + 90
        assert (await at.approve(approval, until=rfc3339(until)))[0] == 200
        for _ in range(3):
            status, body = await at.ask()
            assert status == 200, body
            assert "single_use" not in body
            assert body["expires_in"] <= 90
        at.world.clock.advance(80)
        _, body = await at.ask()
        assert 1 <= body["expires_in"] <= 10
        at.world.clock.advance(11)
        assert (await at.ask())[1]["code"] == "approval.required"
        assert (await at.show(approval))["state"] == "ended"


async def test_it_ends_by_itself_when_nobody_decides(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path, rule={"expires": "1m"})) as at:
        approval = await at.opened()
        at.world.clock.advance(61)
        assert (await at.show(approval))["state"] == "expired"
        status, body = await at.approve(approval)
        assert (status, body["code"]) == (409, "approval.closed")
        assert await at.opened() != approval


async def test_a_no_stands_and_cannot_be_asked_away(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        approval = await at.opened()
        status, body = await at.decide(approval, "deny")
        assert (status, body["state"]) == (200, "denied")
        for _ in range(3):
            status, body = await at.ask()
            assert (status, body["error"], body["code"]) == (
                400, "access_denied", "approval.denied",
            )  # fmt: skip
            assert body["approval_id"] == approval
        assert (await at.approve(approval))[1]["code"] == "approval.closed"
        at.world.clock.advance(601)
        assert await at.opened() != approval


async def test_a_yes_taken_back_ends_the_uses_that_are_left(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        approval = await at.opened()
        await at.approve(approval, uses=5)
        assert (await at.ask())[0] == 200
        status, body = await at.decide(approval, "revoke", by="oscar", role="operator")
        assert (status, body["state"]) == (200, "revoked")
        assert (await at.ask())[1]["code"] == "approval.required"
        assert (await at.decide(approval, "revoke"))[1]["code"] == "approval.closed"


async def test_a_workload_cannot_flood_people(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path, approvals={"open": 3})) as at:
        for number in range(3):
            await at.opened(path=f"/api/tickets/{number}/close")
        status, body = await at.ask(path="/api/tickets/4/close")
        assert (status, body["code"]) == (429, "service.rate_limited")
        assert (await at.ask(path="/api/tickets/1/close"))[1]["code"] == "approval.required"


# --- what is bound ---------------------------------------------------------------------------------


async def test_only_the_very_request_is_approved(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        approval = await at.opened()
        await at.approve(approval, uses=10)
        others: list[dict[str, Any]] = [
            {"path": "/api/tickets/8/close"},
            {"authorization_details": details("/api/tickets/{id}/close", "POST", audience=TICKETS)},
            {"authorization_details": None},
            {"resource": TICKETS + "/api"},
            {"user": at.world.user("alice")},
            {"scope": "tickets:close tickets:read"},
        ]
        for other in others:
            status, body = await at.ask(**other)
            assert (status, body["code"]) == (400, "approval.required"), other
            assert body["approval_id"] != approval, other
        at.world.proof_key, own = ProofKey(), at.world.proof_key
        status, body = await at.ask()
        assert body["code"] == "approval.required", "another key"
        at.world.proof_key = own
        assert (await at.ask())[0] == 200


async def test_what_says_nothing_does_not_count(tmp_path: Path) -> None:
    """Order, a resource that is the target's own, the purpose, another token of the same subject."""
    async with desk(world_of(tmp_path)) as at:
        approval = await at.opened(purpose="to tidy up")
        assert await at.opened(purpose="something else") == approval
        assert await at.opened(resource=TICKETS) == approval
        two = json.loads(details("/a", "POST", audience=TICKETS, exact=True)) + json.loads(
            details("/b", "POST", "PUT", audience=TICKETS, exact=True)
        )
        first = await at.opened(authorization_details=json.dumps(two))
        two[1]["actions"].reverse()
        assert await at.opened(authorization_details=json.dumps(two[::-1])) == first
        at.world.clock.advance(5)
        assert await at.opened(token=at.world.workload(jti="another")) == approval


async def test_another_policy_asks_again(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    async with desk(world) as at:
        approval = await at.opened()
        await at.approve(approval, uses=5)
        assert (await at.ask())[0] == 200
        world.write_grants([*GRANTS, {**CLOSING, "approval": {"quorum": 2}}])
        await at.served.broker.base.policies.reload()
        assert await at.opened() != approval


async def test_a_grant_that_is_gone_gives_nothing_whatever_was_approved(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    async with desk(world) as at:
        approval = await at.opened()
        await at.approve(approval)
        world.write_grants(GRANTS)
        await at.served.broker.base.policies.reload()
        assert (await at.ask())[1]["code"] == "grant.scope"


# --- who may decide --------------------------------------------------------------------------------


async def test_who_asks_does_not_approve(tmp_path: Path) -> None:
    """The user acted for, a prior actor and the workload: each as an approver of the same issuer."""
    world = world_of(tmp_path)
    world.users.name = OPERATIONS  # the people of both lists are known by the same issuer
    world.users.key = world.operations.key
    issuers = world.document()["issuers"]
    issuers[2] |= {"issuer": OPERATIONS, "jwks_file": str(tmp_path / "operations.json")}
    world.overrides["issuers"] = issuers
    async with desk(world) as at:
        user = world.user("alice", act={"sub": "carol", "iss": OPERATIONS, "act": {"sub": "dan"}})
        approval = await at.opened(user=user)
        for asking in ("alice", "carol", "dan"):
            status, body = await at.approve(approval, by=asking)
            assert (status, body["code"]) == (403, "approval.self"), asking
        shown = await at.show(approval)
        assert (shown["state"], shown["votes"]) == ("pending", [])
        assert shown["request"]["subject"]["subject"] == "alice"
        assert [actor["subject"] for actor in shown["request"]["actors"]] == [
            CLOSING["workload"], "carol", "dan",
        ]  # fmt: skip
        assert (await at.approve(approval, by="olga"))[0] == 200


async def test_roles_of_the_admin_api(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        approval = await at.opened()
        for role in ("viewer", "operator", "admin", "provisioner"):
            for verdict in ("approve", "deny"):
                status, body = await at.decide(approval, verdict, by="mallory", role=role)
                assert (status, body["code"]) == (403, "service.forbidden"), (role, verdict)
        for token in (at.world.workload(), at.world.user("alice"), "nonsense"):
            status, body, _ = await at.served.manage(
                "POST", f"/v1/approvals/{approval}/approve", {"reason": "x"}, token=token
            )
            assert status == 401
        assert (await at.decide(approval, "revoke", role="viewer"))[0] == 403
        assert (await at.show(approval))["state"] == "pending"


async def test_policy_names_who_may_approve(tmp_path: Path) -> None:
    rule = {"roles": ["ticket-owner"], "groups": ["support-leads"]}
    async with desk(world_of(tmp_path, rule=rule)) as at:
        approval = await at.opened()
        status, body = await at.approve(approval)
        assert (status, body["code"]) == (403, "approval.not_eligible")
        status, body = await at.approve(approval, claims={"roles": "ticket-owners"})
        assert body["code"] == "approval.not_eligible"
        claims = {"groups": ["approvers", "support-leads"]}
        assert (await at.approve(approval, claims=claims))[1]["state"] == "approved"
        other = await at.opened(path="/api/tickets/9/close")
        claims = {"roles": ["ticket-owner"]}
        assert (await at.approve(other, claims=claims))[1]["state"] == "approved"


async def test_a_cedar_policy_asks_for_people_too(tmp_path: Path) -> None:
    """With a grant's own rule it is the strictest of both; the policies are named as who asks."""
    policies = tmp_path / "policies"
    policies.mkdir(parents=True)
    (policies / "main.cedar").write_text(
        '@id("all") permit (principal, action, resource);\n'
        '@id("two-eyes-more") @approval_quorum("2") @approval_roles("ticket-owner")\n'
        "forbid (principal, action, resource)\n"
        'when { context.scope == "tickets:close" } unless { context.approved };\n'
    )
    world = world_of(tmp_path, rule={"uses": 1}, policies=str(policies))
    async with desk(world) as at:
        approval = await at.opened()
        shown = await at.show(approval)
        assert shown["requires"]["quorum"] == 2
        assert shown["requires"]["most_uses"] == 1
        assert shown["requires"]["one_of_each"] == [{"roles": ["ticket-owner"], "groups": []}]
        assert shown["requires"]["asked_for_by"][0] == "grant bot-closes"
        assert "two-eyes-more" in shown["requires"]["asked_for_by"][1]
        claims = {"roles": ["ticket-owner"]}
        assert (await at.approve(approval, by="olga"))[1]["code"] == "approval.not_eligible"
        assert (await at.approve(approval, by="olga", claims=claims))[1]["state"] == "pending"
        assert (await at.approve(approval, by="otto", claims=claims))[1]["state"] == "approved"
        status, body = await at.ask()
        assert (status, body["approval"]) == (200, approval)
        assert (
            "tickets:read" in (await at.served.exchange(world.form(world.workload())))[1]["scope"]
        )


async def test_the_directory_says_who_belongs_and_who_is_gone(tmp_path: Path) -> None:
    world = world_of(
        tmp_path,
        rule={"groups": ["support-leads"]},
        directory={"scim": {"users": [{"issuer": USERS, "match": "user_name"}]}},
        admin={
            "issuers": [
                {
                    "issuer": USERS,
                    "audience": "URL",
                    "use": "admin",
                    "jwks_file": str(tmp_path / "users.json"),
                }
            ],
            "roles": [
                {"role": "approver", "issuer": USERS, "subjects": ["olga"]},
                {"role": "provisioner", "issuer": USERS, "subjects": ["scim"]},
            ],
        },
    )
    world.overrides["admin"]["issuers"][0]["audience"] = world.url

    async def approve(at: Desk, approval: str) -> str:
        _, body, _ = await at.served.manage(
            "POST",
            f"/v1/approvals/{approval}/approve",
            {"reason": "ok"},
            token=world.user("olga"),
        )
        return str(body.get("code") or body["state"])

    async def provision(at: Desk, method: str, path: str, document: Any) -> Any:
        status, body, _ = await at.served.manage(
            method,
            f"/scim/v2{path}",
            data=json.dumps(document),
            headers={"Content-Type": "application/scim+json"},
            token=world.user("scim"),
        )
        assert status in {200, 201}, body
        return body

    async with desk(world) as at:
        approval = await at.opened()
        olga = {"schemas": ["urn:ietf:params:scim:schemas:core:2.0:User"], "userName": "olga"}
        made = await provision(at, "POST", "/Users", olga)
        assert await approve(at, approval) == "approval.not_eligible"
        group = {
            "schemas": ["urn:ietf:params:scim:schemas:core:2.0:Group"],
            "displayName": "support-leads",
            "members": [{"value": made["id"]}],
        }
        await provision(at, "POST", "/Groups", group)
        await provision(at, "PUT", f"/Users/{made['id']}", {**olga, "active": False})
        assert await approve(at, approval) == "service.forbidden"
        await provision(at, "PUT", f"/Users/{made['id']}", {**olga, "active": True})
        assert await approve(at, approval) == "approved"


async def test_a_quorum_counts_people(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path, rule={"quorum": 3})) as at:
        approval = await at.opened()
        assert (await at.approve(approval, by="olga", uses=5))[1]["state"] == "pending"
        status, body = await at.approve(approval, by="olga")
        assert (status, body["code"]) == (409, "approval.voted")
        until = rfc3339(at.world.clock() + 60)
        assert (await at.approve(approval, by="otto", uses=2, until=until))[1]["state"] == "pending"
        assert (await at.ask())[1]["code"] == "approval.required"
        status, body = await at.approve(approval, by="ole", uses=9)
        assert (body["state"], body["uses_left"], body["until"]) == ("approved", 2, until)
        assert [vote["approver"]["subject"] for vote in body["votes"]] == ["olga", "otto", "ole"]


async def test_one_no_ends_it_also_from_who_said_yes(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path, rule={"quorum": 2})) as at:
        approval = await at.opened()
        await at.approve(approval, by="olga")
        assert (await at.decide(approval, "deny", by="olga"))[1]["state"] == "denied"
        assert (await at.approve(approval, by="otto"))[1]["code"] == "approval.closed"


TERMS: list[tuple[dict[str, Any], int, str]] = [
    ({"uses": 0}, 400, "service.bad_request"),
    ({"uses": 10_001}, 400, "service.bad_request"),
    ({"uses": 3}, 400, "approval.terms"),
    ({"until": "2020-01-01T00:00:00Z"}, 400, "approval.terms"),
    ({"until": "2100-01-01T00:00:00Z", "uses": 1}, 400, "approval.terms"),
    ({"until": "soon"}, 400, "service.bad_request"),
    ({"reason": ""}, 400, "service.bad_request"),
    ({"forever": True}, 400, "service.bad_request"),
    ({"uses": 2}, 200, ""),
]


async def test_terms_that_policy_does_not_allow(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path, rule={"uses": 2, "valid": "5m"})) as at:
        approval = await at.opened()
        for said, status, code in TERMS:
            found, body = await at.approve(approval, **said)
            assert (found, body.get("code", "")) == (status, code), said


async def test_every_decision_is_on_record_with_who_and_why(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        one, other = await at.opened(), await at.opened(path="/api/tickets/8/close")
        await at.approve(one, reason="customer asked", uses=3)
        await at.decide(one, "revoke", reason="mistake")
        await at.decide(other, "deny", by="otto", reason="why?")
        await at.approve(other, by="otto")  # refused: leaves no trace
        _, page, _ = await at.served.manage("GET", "/v1/admin/actions")
        found = [
            (item["actor"], item["action"], item["subject"], item["reason"])
            for item in page["items"]
        ]
        assert found == [
            ("otto", "approval.deny", other, "why?"),
            ("olga", "approval.revoke", one, "mistake"),
            ("olga", "approval.approve", one, "customer asked"),
        ]
        _, verdict, _ = await at.served.manage("GET", "/v1/admin/actions/verify")
        assert verdict["broken_at"] is None


# --- the deferred token response ------------------------------------------------------------------


async def test_a_deferral_from_pending_to_the_token(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        _, raw, _ = await at.served.get("/.well-known/oauth-authorization-server")
        metadata = json.loads(raw)
        assert metadata["deferred_token_response_supported"] is True
        assert oauth.GRANT_DEFERRED in metadata["grant_types_supported"]

        status, body = await at.ask(deferred=True)
        assert (status, body["error"]) == (400, "authorization_pending")
        assert (body["expires_in"], body["interval"]) == (600, 1)
        code, approval = body["deferral_code"], body["approval_id"]
        assert len(code) >= 22, "128 bits"
        at.world.clock.advance(1)
        status, body = await at.poll(code)
        assert (status, body["error"]) == (400, "authorization_pending")
        assert "deferral_code" not in body
        assert body["expires_in"] == 599
        status, body = await at.poll(code)
        assert (status, body["error"], body["interval"]) == (400, "slow_down", 6)
        at.world.clock.advance(3)
        assert (await at.poll(code))[1]["error"] == "slow_down", "five seconds more, each time"
        at.world.clock.advance(11)
        assert (await at.poll(code))[1]["error"] == "authorization_pending"

        await at.approve(approval)
        at.world.clock.advance(11)
        status, body = await at.poll(code)
        assert status == 200, body
        assert (body["approval"], body["single_use"], body["scope"]) == (
            approval, True, "tickets:close",
        )  # fmt: skip
        assert claims_of(body["access_token"])["authorization_details"][0]["path"] == (
            "/api/tickets/7/close"
        )
        assert (await at.poll(code))[1]["error"] == "invalid_grant", "redeemed once"
        assert (await at.ask())[1]["code"] == "approval.required", "and that was its use"


async def test_a_deferral_for_a_user_is_for_the_user(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        _, body = await at.ask(user=at.world.user("alice", ttl=300), deferred=True)
        await at.approve(body["approval_id"])
        at.world.clock.advance(100)
        status, token = await at.poll(body["deferral_code"])
        assert status == 200, token
        claims = claims_of(token["access_token"])
        assert (claims["sub"], claims["act"]["sub"]) == ("alice", CLOSING["workload"])


async def test_a_user_whose_token_has_ended_gets_none_by_a_deferral(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        _, body = await at.ask(user=at.world.user("alice", ttl=60), deferred=True)
        await at.approve(body["approval_id"])
        at.world.clock.advance(61)
        assert (await at.poll(body["deferral_code"]))[1]["code"] == "subject.invalid"
        # The approval is not spent: a new token of hers finds it.
        status, body = await at.ask(user=at.world.user("alice"))
        assert status == 200, body


async def test_a_code_is_good_for_its_client_and_key_alone(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        _, body = await at.ask(deferred=True)
        code = body["deferral_code"]
        await at.approve(body["approval_id"])
        refused = [await at.poll(code, token=at.world.workload(READER))]
        refused.append(await at.poll(code + "x"))
        refused.append(await at.poll("a" * len(code)))
        at.world.proof_key, own = ProofKey(), at.world.proof_key
        refused.append(await at.poll(code))
        for status, body in refused:
            assert (status, body["error"], body["code"]) == (
                400, "invalid_grant", "approval.code_invalid",
            )  # fmt: skip
        at.world.proof_key = own
        assert (await at.poll(code))[0] == 200


async def test_how_a_deferral_ends_without_a_token(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        ends = {}
        for name in ("denied", "revoked", "expired", "ended", "used"):
            path = f"/api/tickets/{name}/close"
            _, body = await at.ask(path=path, deferred=True)
            ends[name] = body
            if name == "denied":
                await at.decide(body["approval_id"], "deny")
            elif name == "ended":
                until = rfc3339(at.world.clock() + 30)
                await at.approve(body["approval_id"], until=until)
            elif name != "expired":
                await at.approve(body["approval_id"])
            if name == "revoked":
                await at.decide(body["approval_id"], "revoke")
            if name == "used":
                assert (await at.ask(path=path))[0] == 200
        at.world.clock.advance(31)
        errors = {
            name: (await at.poll(body["deferral_code"]))[1]["error"] for name, body in ends.items()
        }
        assert errors == {
            "denied": "access_denied",
            "revoked": "access_denied",
            "expired": "authorization_pending",
            "ended": "expired_token",
            "used": "invalid_grant",
        }
        at.world.clock.advance(600)
        code = ends["expired"]["deferral_code"]
        assert (await at.poll(code))[1]["error"] == "expired_token"


async def test_the_policy_is_asked_again_when_the_token_is_issued(tmp_path: Path) -> None:
    world = world_of(tmp_path)
    async with desk(world) as at:
        _, body = await at.ask(deferred=True)
        await at.approve(body["approval_id"])
        world.write_grants(GRANTS)
        await at.served.broker.base.policies.reload()
        status, refused = await at.poll(body["deferral_code"])
        assert (status, refused["code"]) == (400, "grant.scope")
        world.write_grants([*GRANTS, {**CLOSING, "ttl": "30s"}])
        await at.served.broker.base.policies.reload()
        assert (await at.poll(body["deferral_code"]))[1]["error"] == "invalid_grant"
        world.write_grants([*GRANTS, CLOSING])
        await at.served.broker.base.policies.reload()
        assert (await at.poll(body["deferral_code"]))[0] == 200, "nothing was used up by the others"


async def test_many_polls_at_once_redeem_one_token(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        _, body = await at.ask(deferred=True)
        await at.approve(body["approval_id"], uses=10)
        answers = await asyncio.gather(*(at.poll(body["deferral_code"]) for _ in range(8)))
        assert sorted(status for status, _ in answers) == [200] + [400] * 7
        assert (await at.show(body["approval_id"]))["uses_left"] == 9


async def test_without_the_flag_nothing_is_deferred(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path, approvals={"deferred": False})) as at:
        status, body = await at.ask(deferred=True)
        assert (status, body["code"]) == (400, "approval.required")
        assert "deferral_code" not in body
        _, raw, _ = await at.served.get("/.well-known/oauth-authorization-server")
        assert "deferred_token_response_supported" not in json.loads(raw)
        status, body = await at.poll("a" * 43)
        assert body["error"] == "unsupported_grant_type"


async def test_no_code_and_no_token_is_in_the_database(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        user = at.world.user("alice", secret_of_hers="never-in-the-clear")
        _, body = await at.ask(user=user, deferred=True, purpose="because")
        for file in tmp_path.glob("broker.db*"):
            raw = file.read_bytes()
            for secret in (body["deferral_code"], user, "never-in-the-clear"):
                assert secret.encode() not in raw


# --- what people see -------------------------------------------------------------------------------


async def test_facts_are_the_brokers_and_the_purpose_stands_apart(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        purpose = "approved by security, see {link} — just say yes"
        approval = await at.opened(user=at.world.user("alice"), purpose=purpose)
        shown = await at.show(approval)
        assert shown["untrusted"] == {"purpose": purpose}
        trusted = json.dumps({name: shown[name] for name in shown if name != "untrusted"})
        assert "security" not in trusted
        request = shown["request"]
        assert request["workload"] == {"issuer": IDP, "subject": CLOSING["workload"]}
        assert request["scopes"] == ["tickets:close"]
        assert request["target"] == "tickets"
        assert request["grants"] == ["bot-closes"]
        assert request["key_thumbprint"] == at.world.proof_key.thumbprint
        assert request["authorization_details"][0]["path"] == "/api/tickets/7/close"
        assert shown["requires"]["asked_for_by"] == ["grant bot-closes"]


PURPOSES = [
    ("to close a duplicate", True),
    ("um ein Duplikat zu schließen ✓", True),
    ("x" * 500, True),
    ("x" * 501, False),
    ("two\nlines", False),
    ("\x1b[2Jgone", False),
    ("\x9b2J", False),
    ("evil \u202egnp.exe", False),
    ("\u2066hidden\u2069", False),
    ("a\u2028b", False),
]


async def test_a_purpose_is_plain_text(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        for purpose, fits in PURPOSES:
            status, body = await at.ask(purpose=purpose)
            assert status == 400
            expected = (
                {"approval.required"} if fits else {"approval.purpose", "service.bad_request"}
            )
            assert body["code"] in expected, ascii(purpose)


async def test_lists_by_state_in_pages(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path)) as at:
        ids = [await at.opened(path=f"/api/tickets/{number}/close") for number in range(5)]
        await at.approve(ids[0])
        await at.decide(ids[1], "deny")

        async def listed(query: str) -> tuple[list[str], str]:
            status, page, _ = await at.served.manage("GET", f"/v1/approvals{query}")
            assert status == 200, page
            return [item["id"] for item in page["items"]], page.get("next", "")

        assert set((await listed("?state=pending"))[0]) == set(ids[2:])
        assert (await listed("?state=approved"))[0] == [ids[0]]
        assert (await listed("?state=denied"))[0] == [ids[1]]
        assert (await listed("?state=expired"))[0] == []
        seen: list[str] = []
        after = ""
        while True:
            found, next_ = await listed(f"?limit=2{after}")
            seen += found
            if not next_:
                break
            after = f"&after={next_}"
        assert len(seen) == 5
        assert set(seen) == set(ids)
        for query in ("?state=open", "?after=x", "?unknown=1"):
            assert (await at.served.manage("GET", f"/v1/approvals{query}"))[0] == 400
        assert (await at.served.manage("GET", "/v1/approvals/apr_none"))[0] == 404
        assert (await at.approve("apr_none"))[0] == 404


async def test_what_is_over_is_forgotten_in_time(tmp_path: Path) -> None:
    async with desk(world_of(tmp_path, approvals={"kept": "1h"})) as at:
        approval = await at.opened()
        await at.approve(approval)
        await at.served.broker.sweep()
        at.world.clock.advance(1801)
        await at.served.broker.sweep()
        assert (await at.show(approval))["state"] == "ended"
        at.world.clock.advance(3600)
        await at.served.broker.sweep()
        assert (await at.served.manage("GET", f"/v1/approvals/{approval}"))[0] == 404


# --- two replicas -----------------------------------------------------------------------------------


async def test_over_two_replicas_it_is_one_request_one_quorum_and_so_many_uses(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = world_of(tmp_path, rule={"quorum": 2}, database=postgres.database())
    async with serving(world) as first, serving(world, free_url()) as second:
        one, other = Desk(first), Desk(second)
        asked = await asyncio.gather(*((one, other)[n % 2].opened() for n in range(8)))
        assert len(set(asked)) == 1
        approval = asked[0]
        both = await asyncio.gather(
            one.approve(approval, by="olga", uses=3), other.approve(approval, by="otto", uses=3)
        )
        assert [status for status, _ in both] == [200, 200]
        assert sorted(body["state"] for _, body in both) == ["approved", "pending"]
        answers = await asyncio.gather(*((one, other)[n % 2].ask() for n in range(8)))
        assert sum(status == 200 for status, _ in answers) == 3
        again = {body["approval_id"] for status, body in answers if status != 200}
        assert len(again) == 1
        # The same person at both at once counts once.
        (approval,) = again
        both = await asyncio.gather(
            one.approve(approval, by="olga"), other.approve(approval, by="olga")
        )
        assert sorted(status for status, _ in both) == [200, 409]
        assert (await one.show(approval))["state"] == "pending"


async def test_a_code_of_one_replica_is_redeemed_at_another_and_once(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = world_of(tmp_path, database=postgres.database())
    async with serving(world) as first, serving(world, free_url()) as second:
        one, other = Desk(first), Desk(second)
        _, body = await one.ask(deferred=True)
        await other.approve(body["approval_id"], uses=5)
        code = body["deferral_code"]
        answers = await asyncio.gather(*((one, other)[n % 2].poll(code) for n in range(6)))
        assert sorted(status for status, _ in answers) == [200] + [400] * 5


async def test_what_was_undone_is_not_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with desk(world_of(tmp_path)) as at:
        (part,) = (part for part in at.served.broker.parts if isinstance(part, ApprovalsPart))

        async def counted(event: str) -> float:
            _, raw, _ = await at.served.get("/metrics")
            name = f'valetkey_broker_approvals_total{{event="{event}"}} '
            (line,) = (line for line in raw.decode().splitlines() if line.startswith(name))
            return float(line.removeprefix(name))

        async def fail(*_: Any) -> None:
            raise StoreError(OSError("the outbox is full"))

        with monkeypatch.context() as patch:
            patch.setattr(part.courier, "announce", fail)
            assert (await at.ask())[0] == 503
        assert await counted("requested") == 0
        _, waits = await at.ask(deferred=True)
        assert await counted("requested") == 1
        with monkeypatch.context() as patch:
            patch.setattr(part.courier, "announce", fail)
            assert (await at.approve(waits["approval_id"]))[0] == 503
        assert await counted("approved") == 0
        assert (await at.approve(waits["approval_id"]))[0] == 200
        assert await counted("approved") == 1
        assert (await at.poll(waits["deferral_code"]))[0] == 200
        assert await counted("used") == 1


async def test_those_that_wait_are_counted_at_each_replica_and_a_database_that_is_away_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("valetkey.broker.parts.approvals._LOOK", 0.02)
    async with desk(world_of(tmp_path)) as at:
        metrics = at.served.broker.base.metrics
        (part,) = (part for part in at.served.broker.parts if isinstance(part, ApprovalsPart))

        def seen() -> tuple[float, float]:
            of = (metrics.approvals_waiting, metrics.approvals_longest_wait)
            count, longest = (family.collect()[0].samples[0].value for family in of)
            return count, longest

        assert seen() == (0, 0)
        _, waits = await at.ask(deferred=True)
        await until(lambda: seen()[0] == 1, "it is counted")
        at.world.clock.advance(30)
        await until(lambda: seen() == (1, 30), "its wait is")
        asked = 0

        async def away(_now: float) -> tuple[int, float]:
            nonlocal asked
            asked += 1
            raise StoreError(OSError("the database is away"))

        with monkeypatch.context() as patch:
            patch.setattr(part.approvals, "waiting", away)
            await until(lambda: asked > 1, "it is tried again")
            assert seen() == (1, 30)
            assert (await at.served.get("/readyz"))[0] == 200
        assert (await at.approve(waits["approval_id"]))[0] == 200
        await until(lambda: seen() == (0, 0), "none waits")

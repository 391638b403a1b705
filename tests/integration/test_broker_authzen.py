"""The AuthZEN Authorization API 1.0 of a real broker: it says what an exchange would say."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.integration.broker_support import (
    BOT,
    FILES,
    GRANTS,
    IDP,
    PAYMENTS,
    SELF_SIGNED,
    TICKETS,
    USERS,
    Served,
    details,
    serving,
)
from tests.integration.test_broker_policies import PolicyWorld
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from valetkey.broker.api.authzen import (
    EVALUATION,
    EVALUATIONS,
    METADATA,
    SEARCH_ACTION,
    SEARCH_RESOURCE,
    SEARCH_SUBJECT,
)
from valetkey.cli.main import main
from valetkey.contracts import oauth

DOMAIN = "demo.example"
MESH = ["orders:place", "orders:refund"]
POINT = "spiffe://demo.example/ns/gateway/sa/pep"
POLICIES = """
@id("all") permit (principal, action, resource);
@id("no-listing") forbid (principal, action, resource)
  when { context.scope == "tickets:list" && context.weekday >= 1 };
@id("support") forbid (principal is User, action, resource)
  unless { principal in Role::"support" };
@id("no-private") forbid (principal, action, resource in Target::"files")
  when { context.path like "/files/private*" };
@id("close") forbid (principal, action, resource in Route::"tickets/close")
  unless { context.approved };
"""


class AuthzenWorld(PolicyWorld):
    def document(self) -> dict[str, Any]:
        document = super().document()
        document["authzen"] = {
            "enforcement_points": [
                {"issuer": IDP, "subject": POINT, "bearer": True},
                {"issuer": SELF_SIGNED, "subject": SELF_SIGNED},
                {"issuer": IDP, "subject": "spiffe://demo.example/ns/gateway/sa/bound"},
            ]
        }
        return document | self.overrides


@pytest.fixture
def made(tmp_path: Path) -> AuthzenWorld:
    world = AuthzenWorld(tmp_path, free_url())
    world.policies(POLICIES)
    return world


def with_trust_domain(world: AuthzenWorld) -> None:
    """A target that takes transaction tokens; one of its scopes needs an approval."""
    world.overrides["targets"] = {
        **world.document()["targets"],
        "mesh": {"audience": DOMAIN, "credential": "txn_token", "ttl": "60s"},
    }
    mesh = {"workload": BOT, "issuer": IDP, "target": "mesh", "on_behalf_of": "users"}
    world.write_grants(
        [
            *GRANTS,
            {"id": "mesh", "scopes": MESH[:1], **mesh},
            {"id": "mesh-asked", "scopes": MESH[1:], "approval": {"quorum": 1}, **mesh},
        ]
    )


async def post(
    broker: Served, path: str, body: Any, *, token: str | None = None, **headers: str
) -> tuple[int, Any, Any]:
    """As the enforcement point, unless there is another ``token``."""
    token = broker.world.workload(POINT) if token is None else token
    sent = {"Content-Type": "application/json", **headers}
    if token:
        sent["Authorization"] = f"Bearer {token}"
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    async with broker.client.post(broker.where + path, data=data, headers=sent) as response:
        return response.status, json.loads(await response.read()), response.headers


def subject(name: str = BOT, **properties: Any) -> dict[str, Any]:
    return {"type": "workload", "id": name, "properties": {"issuer": IDP, **properties}}


def user(name: str = "alice", **properties: Any) -> dict[str, Any]:
    act = {"iss": IDP, "sub": BOT}
    return {"type": "user", "id": name, "properties": {"issuer": USERS, "act": act, **properties}}


def question(**changes: Any) -> dict[str, Any]:
    return {
        "subject": subject(),
        "action": {"name": "tickets:read"},
        "resource": {"type": "target", "id": "payments"},
        **changes,
    }


def endpoint(url: str, method: str, scope: str) -> dict[str, Any]:
    return {
        "action": {"name": scope, "properties": {"method": method}},
        "resource": {"type": "http_endpoint", "id": url},
    }


SUPPORT = {"realm": {"roles": ["S"]}}
READ = {"resource": {"type": "route", "id": "tickets/read"}}
GET_FILE = endpoint(FILES + "/v1/files/7", "GET", "files:read")


@pytest.mark.parametrize(
    ("name", "changes", "decision", "code"),
    [
        ("a URL", endpoint(TICKETS + "/tickets/7", "GET", "tickets:read"), True, None),
        ("a URL of nobody", endpoint("https://x.example/", "GET", "tickets:read"), False, "grant.missing"),
        ("another scope", endpoint(TICKETS + "/tickets/7", "GET", "tickets:list"), False, "policy.denied"),
        ("no such grant", endpoint(TICKETS + "/tickets/7", "GET", "tickets:write"), False, "grant.scope"),
        ("a route that needs an approval", {"resource": {"type": "route", "id": "tickets/close"}}, False, "approval.required"),
        ("a route of nobody", {"resource": {"type": "route", "id": "tickets/open"}}, False, "grant.missing"),
        ("any call, where a policy names a route", {"resource": {"type": "target", "id": "tickets"}}, False, "policy.open"),
        ("any call", {"action": {"name": "payments:read"}}, True, None),
        ("a workload without grants", {"subject": subject("spiffe://demo.example/x")}, False, "grant.missing"),
        ("another issuer's workload", {"subject": {**subject(), "properties": {"issuer": "https://x"}}}, False, "grant.missing"),
        ("a user with the role", {"subject": user(claims=SUPPORT), **endpoint(TICKETS + "/a", "GET", "tickets:read")}, True, None),
        ("a user without", {"subject": user(), **endpoint(TICKETS + "/a", "GET", "tickets:read")}, False, "policy.denied"),
        ("may_act names another", {"subject": user(claims={**SUPPORT, "may_act": {"sub": "x"}}), **endpoint(TICKETS + "/a", "GET", "tickets:read")}, False, "actor.not_allowed"),
        ("context is not read", {"context": {"time": "2020-01-01T00:00:00Z", "x": 1}, "action": {"name": "payments:read"}}, True, None),
        ("members that nobody knows", {"action": {"name": "payments:read", "color": "red"}, "more": []}, True, None),
    ],
)  # fmt: skip
async def test_evaluation(
    made: AuthzenWorld, name: str, changes: dict[str, Any], decision: bool, code: str | None
) -> None:
    async with serving(made) as broker:
        status, body, _ = await post(broker, EVALUATION, question(**changes))
        assert (status, body["decision"]) == (200, decision), (name, body)
        assert body["context"].get("code") == code, name
        if decision:
            assert body["context"]["policies"] == ["all"]
            assert body["context"]["grants"]
            _, raw, _ = await broker.get("/readyz")
            assert body["context"]["policy_digest"] == json.loads(raw)["policy"]
        if code == "policy.denied":
            assert body["context"]["policies"] in (["no-listing"], ["support"])


@pytest.mark.parametrize(
    ("name", "body", "said"),
    [
        ("no JSON", b"{", "Expecting"),
        ("not UTF-8", b'{"a": "\xff"}', "utf-8"),
        ("a list", [], "object"),
        ("a name twice", b'{"subject": 1, "subject": 2}', "occurs twice"),
        ("no action", {name: value for name, value in question().items() if name != "action"}, "required"),
        ("no id", question(resource={"type": "target"}), "id"),
        ("no issuer", question(subject={"type": "workload", "id": BOT, "properties": {}}), "issuer"),
        ("no properties", question(subject={"type": "workload", "id": BOT}), "properties"),
        ("another type of subject", question(subject={**subject(), "type": "robot"}), "subject.type"),
        ("another type of resource", question(resource={"type": "book", "id": "1"}), "resource.type"),
        ("a user without a workload", question(subject={**user(), "properties": {"issuer": USERS}}), "act"),
        ("a workload with act", question(subject=subject(act={"iss": IDP, "sub": BOT})), "act"),
        ("no scope", question(action={"name": "two words"}), "scope"),
        ("no method", question(**{**GET_FILE, "action": {"name": "files:read"}}), "method"),
        ("an ambiguous path", question(**endpoint(FILES + "/v1/a/%2e%2e/b", "GET", "files:read")), "path"),
        ("no URL", question(**endpoint("http://[x/y", "GET", "files:read")), "not a URI"),
        ("a port that is none", question(**endpoint(FILES + ":x/v1/a", "GET", "files:read")), "not a URI"),
        ("a path alone", question(**endpoint("/v1/a", "GET", "files:read")), "absolute"),
        ("a URL with a query", question(**endpoint(FILES + "/v1/a?b", "GET", "files:read")), "query"),
        ("a tool without a path", question(resource={"type": "tool", "id": "tickets/x"}), "path"),
        ("malformed claims", question(subject=user(claims={"realm": "S"})), "realm"),
        ("a number that is none", b'{"subject": NaN}', "NaN"),
    ],
)  # fmt: skip
async def test_what_is_no_question(made: AuthzenWorld, name: str, body: Any, said: str) -> None:
    async with serving(made) as broker:
        status, answer, headers = await post(broker, EVALUATION, body, **{"X-Request-ID": "r-1"})
        assert (status, answer["code"]) == (400, "service.bad_request"), (name, answer)
        assert said in answer["reason"], (name, answer)
        assert headers["X-Request-ID"] == "r-1"


async def test_who_may_ask(made: AuthzenWorld) -> None:
    async with serving(made) as broker:
        world = broker.world
        for token in (
            "",
            "x.y.z",
            world.workload(),  # a workload that is no enforcement point
            world.workload(POINT, aud="https://other.example"),
            world.workload(POINT, ttl=-100),
            world.user(POINT),
            world.workload("spiffe://demo.example/ns/gateway/sa/bound"),  # without its proof
        ):
            status, body, headers = await post(broker, EVALUATION, question(), token=token)
            assert status == 401, (token, body)
            assert "WWW-Authenticate" in headers
        assertion = world.assertion()  # single use
        assert (await post(broker, EVALUATION, question(), token=assertion))[0] == 200
        assert (await post(broker, EVALUATION, question(), token=assertion))[0] == 401


async def test_administrators_can_be_enforcement_points(tmp_path: Path) -> None:
    world = AuthzenWorld(tmp_path, free_url())
    world.policies(POLICIES)
    token = world.admin("gateway", role="viewer")
    issuer = world.document()["admin"]["issuers"][0]["issuer"]
    world.overrides["authzen"] = {
        "enforcement_points": [{"issuer": issuer, "subject": "gateway", "use": "admin"}]
    }
    async with serving(world) as broker:
        assert (await post(broker, EVALUATION, question(), token=token))[0] == 200
        other = world.admin("somebody", role="admin")
        assert (await post(broker, EVALUATION, question(), token=other))[0] == 401
        assert (await post(broker, EVALUATION, question()))[0] == 401


async def test_the_request_id_comes_back(made: AuthzenWorld) -> None:
    async with serving(made) as broker:
        _, _, headers = await post(broker, EVALUATION, question(), **{"X-Request-ID": "bfe9eb29"})
        assert headers["X-Request-ID"] == "bfe9eb29"
        status, _, headers = await post(
            broker, EVALUATION, question(), token="", **{"X-Request-ID": "unauthenticated"}
        )
        assert (status, headers["X-Request-ID"]) == (401, "unauthenticated")
        status, _, headers = await post(broker, EVALUATION, question(), **{"X-Request-ID": "a b"})
        assert (status, headers.get("X-Request-ID")) == (400, None)
        status, _, _ = await post(broker, EVALUATION, question(), **{"Content-Type": "text/plain"})
        assert status == 415


YES = {"action": {"name": "payments:read"}}
NO = {"action": {"name": "payments:write"}}
BAD = {"resource": {"type": "book", "id": "1"}}
NO_URL = endpoint("http://[x/y", "GET", "payments:read")


@pytest.mark.parametrize(
    ("semantic", "questions", "expected"),
    [
        (None, [YES, NO, BAD, YES], [True, False, False, True]),
        ("execute_all", [NO, YES], [False, True]),
        ("execute_all", [NO_URL, YES], [False, True]),
        ("deny_on_first_deny", [YES, NO, YES], [True, False]),
        ("deny_on_first_deny", [YES, BAD, YES], [True, False]),
        ("deny_on_first_deny", [YES, YES], [True, True]),
        ("permit_on_first_permit", [NO, BAD, YES, NO], [False, False, True]),
        ("permit_on_first_permit", [NO, NO], [False, False]),
    ],
)
async def test_evaluations(
    made: AuthzenWorld, semantic: str | None, questions: list[Any], expected: list[bool]
) -> None:
    async with serving(made) as broker:
        batch = {**question(), "evaluations": questions}
        if semantic:
            batch["options"] = {"evaluations_semantic": semantic, "another_option": "value"}
        status, body, _ = await post(broker, EVALUATIONS, batch)
        assert status == 200, body
        assert [one["decision"] for one in body["evaluations"]] == expected
        errors = [
            one["context"]["error"] for one in body["evaluations"] if "error" in one["context"]
        ]
        assert all(error["status"] == 400 and error["message"] for error in errors)


async def test_batches_that_are_none(made: AuthzenWorld) -> None:
    async with serving(made) as broker:
        for batch in (
            {**question(), "evaluations": [YES], "options": {"evaluations_semantic": "any"}},
            {"evaluations": [YES]},
            {**question(), "evaluations": [YES] * 257},
            {**question(), "evaluations": [1]},
        ):
            status, body, _ = await post(broker, EVALUATIONS, batch)
            assert (status, body["code"]) == (400, "service.bad_request")
        status, body, _ = await post(broker, EVALUATIONS, question(**YES))
        assert (status, body["decision"]) == (200, True), "without evaluations it is one question"


async def pages(broker: Served, path: str, search: dict[str, Any], limit: int) -> list[Any]:
    """All results, over pages; checks what holds for each page."""
    results: list[Any] = []
    token = ""
    while True:
        page = {"limit": limit, **({"token": token} if token else {})}
        status, body, _ = await post(broker, path, {**search, "page": page})
        assert status == 200, body
        assert body["page"]["count"] == len(body["results"]) <= limit
        results += body["results"]
        token = body["page"]["next_token"]
        if not token:
            return results


async def test_searches(made: AuthzenWorld) -> None:
    async with serving(made) as broker:
        payments = {"resource": {"type": "target", "id": "payments"}, **YES}
        search = {**payments, "subject": {"type": "workload", "id": "ignored"}}
        found = await pages(broker, SEARCH_SUBJECT, search, 1)
        assert [one["id"] for one in found] == [SELF_SIGNED]
        _, body, _ = await post(broker, SEARCH_SUBJECT, search)
        assert body["context"]["unlisted"] == [f"{IDP} spiffe://demo.example/ns/*/sa/bot"]
        _, body, _ = await post(broker, SEARCH_SUBJECT, {**payments, "subject": {"type": "user"}})
        assert (body["results"], len(body["context"]["unlisted"])) == ([], 1)

        actions = {"subject": subject(), "resource": {"type": "target", "id": "payments"}}
        assert await pages(broker, SEARCH_ACTION, actions, 1) == [{"name": "payments:read"}]
        file = {"subject": subject(), "resource": GET_FILE["resource"]}
        status, body, _ = await post(broker, SEARCH_ACTION, file)
        assert (status, "method" in body["reason"]) == (400, True)

        where = {"subject": subject(), "action": {"name": "payments:read"}}
        found = await pages(broker, SEARCH_RESOURCE, {**where, "resource": {"type": "target"}}, 1)
        assert found == [{"type": "target", "id": "payments"}]
        found = await pages(broker, SEARCH_RESOURCE, {**where, "resource": {"type": "route"}}, 5)
        assert found == []
        _, body, _ = await post(
            broker, SEARCH_RESOURCE, {**where, "resource": {"type": "http_endpoint"}}
        )
        assert body["context"]["unlisted"]


async def test_pages_are_of_their_search(made: AuthzenWorld) -> None:
    grants = [
        {
            "id": f"g{number}", "workload": f"spiffe://demo.example/ns/n/sa/w{number}",
            "issuer": IDP, "target": "payments", "scopes": ["payments:read"],
        }
        for number in range(7)
    ]  # fmt: skip
    made.write_grants(grants) if made.root.exists() else None
    async with serving(made) as broker:
        broker.world.write_grants(grants)
        await broker.broker.base.policies.reload()
        search = {
            "subject": {"type": "workload"},
            "resource": {"type": "target", "id": "payments"},
            **YES,
        }
        for limit in (1, 2, 3, 7, 8):
            found = await pages(broker, SEARCH_SUBJECT, search, limit)
            assert [one["id"][-2:] for one in found] == [f"w{number}" for number in range(7)]
        _, first, _ = await post(broker, SEARCH_SUBJECT, {**search, "page": {"limit": 2}})
        token = first["page"]["next_token"]
        # The specification's own example leaves the limit out where a token is sent.
        _, second, _ = await post(broker, SEARCH_SUBJECT, {**search, "page": {"token": token}})
        assert [one["id"][-2:] for one in second["results"]] == ["w2", "w3"]
        for wrong in (
            {**search, "page": {"token": token, "limit": 3}},
            {**search, **NO, "page": {"token": token}},
            {**search, "page": {"token": "x"}},
            {**search, "page": {"token": token[:-4]}},
            {**search, "page": {"limit": -1}},
        ):
            status, body, _ = await post(broker, SEARCH_SUBJECT, wrong)
            assert (status, body["code"]) == (400, "service.bad_request"), wrong
        _, none, _ = await post(broker, SEARCH_SUBJECT, {**search, "page": {"limit": 0}})
        assert none["results"] == []
        assert none["page"]["next_token"]


async def test_metadata(made: AuthzenWorld) -> None:
    async with serving(made) as broker:
        status, raw, headers = await broker.get(METADATA)
        document = json.loads(raw)
        assert (status, headers["Content-Type"]) == (200, "application/json; charset=utf-8")
        assert document.pop("policy_decision_point") == made.url
        assert len(document) == 5
        for url in document.values():
            async with broker.client.post(url, data=b"{}") as response:
                assert response.status == 401, url


async def test_without_enforcement_points_there_is_no_api(tmp_path: Path) -> None:
    world = PolicyWorld(tmp_path, free_url())
    world.policies(POLICIES)
    async with serving(world) as broker:
        assert (await broker.get(METADATA))[0] == 404
        assert (await post(broker, EVALUATION, question()))[0] == 404


async def test_targets_that_take_transaction_tokens(made: AuthzenWorld) -> None:
    with_trust_domain(made)
    yes = {"resource": {"type": "target", "id": "mesh"}, "action": {"name": MESH[0]}}
    asks_people = {**yes, "action": {"name": MESH[1]}}
    async with serving(made) as broker:
        status, body, _ = await post(broker, EVALUATION, question(**yes))
        assert (status, body["decision"], body["context"].get("grants")) == (200, True, ["mesh"])
        batch = {**question(), "evaluations": [yes, asks_people, YES]}
        _, body, _ = await post(broker, EVALUATIONS, batch)
        said = [(one["decision"], one["context"].get("code")) for one in body["evaluations"]]
        # People can't be asked about what is in a transaction token.
        assert said == [(True, None), (False, "exchange.token_type"), (True, None)]
        search = {"subject": subject(), "resource": yes["resource"]}
        assert await pages(broker, SEARCH_ACTION, search, 10) == [{"name": MESH[0]}]


async def test_evaluation_and_exchange_agree(made: AuthzenWorld) -> None:
    """Over random questions: a decision is true where the broker mints, and only there."""
    with_trust_domain(made)
    choose = random.Random(20261129)
    places = [
        ("target", "tickets", TICKETS, None),
        ("target", "payments", PAYMENTS, None),
        ("target", "files", FILES, None),
        ("route", "tickets/close", TICKETS, ("/tickets/{id}/close", ["POST"], False)),
        *(
            ("http_endpoint", base + path, audience, (path_at, [method], True))
            for audience, base, path, path_at in (
                (TICKETS, TICKETS, "/tickets/7", "/tickets/7"),
                (TICKETS, TICKETS, "/tickets/7/close", "/tickets/7/close"),
                (FILES, FILES + "/v1", "/files/7", "/v1/files/7"),
                (PAYMENTS, PAYMENTS, "/refunds", "/refunds"),
            )
            for method in ("GET", "POST")
        ),
    ]
    scopes = ["tickets:read", "tickets:read", "tickets:list", "payments:read", "files:read"]
    subjects = [BOT, BOT, "spiffe://demo.example/ns/x/sa/bot", "spiffe://demo.example/none"]
    roles: list[Any] = [None, None, SUPPORT, SUPPORT, {}]
    everything = list(itertools.product(places, scopes, subjects, roles))
    mesh = ("target", "mesh", DOMAIN, None)
    in_domain = list(itertools.product([mesh], [*MESH, MESH[0], scopes[0]], subjects, roles))
    agreed = {True: 0, False: 0}
    of_mesh = {True: 0, False: 0}
    async with serving(made) as broker:
        nonce = await broker.nonce()
        for (kind, name, audience, call), scope, who, claims in (
            *choose.sample(everything, 160),
            *choose.sample(in_domain, 40),
        ):
            properties = {"method": call[1][0]} if call else {}
            asked_for = (
                subject(who)
                if claims is None
                else {
                    "type": "user", "id": "alice",
                    "properties": {"issuer": USERS, "claims": claims, "act": {"iss": IDP, "sub": who}},
                }
            )  # fmt: skip
            body = {
                "subject": asked_for,
                "action": {"name": scope, "properties": properties},
                "resource": {"type": kind, "id": name},
            }
            status, answer, _ = await post(broker, EVALUATION, body)
            assert status == 200, (body, answer)
            token = made.workload(who)
            changes: dict[str, Any] = {"audience": audience, "scope": scope}
            if audience == DOMAIN:
                changes["requested_token_type"] = oauth.TOKEN_TYPE_TXN
            if call:
                path, methods, exact = call
                more = {"exact": True} if exact else {}
                changes["authorization_details"] = details(
                    path, *methods, audience=audience, **more
                )
            form = (
                made.form(token, **changes)
                if claims is None
                else made.user_form(token, made.user(**claims), **changes)
            )
            _, minted, headers = await broker.post(form, proofs=[made.proof(nonce=nonce)])
            nonce = headers.get("DPoP-Nonce", nonce)
            assert answer["decision"] == ("access_token" in minted), (body, answer, minted)
            assert answer["context"].get("code") == minted.get("code"), (body, answer, minted)
            agreed[answer["decision"]] += 1
            of_mesh[answer["decision"]] += audience == DOMAIN
    assert min(agreed.values()) >= 10, agreed
    assert min(of_mesh.values()) >= 5, of_mesh


async def test_the_command_line_asks_a_broker(made: AuthzenWorld, tmp_path: Path) -> None:
    token, file = tmp_path / "token", tmp_path / "question.yaml"

    async def explain(document: Any, *more: str) -> Any:
        compact = made.workload(POINT)
        CANARIES.add(compact, name="token of an enforcement point", allow=[token])
        token.write_text(compact)
        file.write_text(json.dumps(document))
        options = ["--broker", made.url, "--token-file", str(token), *more]
        arguments = ["policy", "explain", str(file), *options]
        return await asyncio.to_thread(CliRunner().invoke, main, arguments)

    async with serving(made) as broker:
        _, said, _ = await post(broker, EVALUATION, question(**YES))
        found = await explain(question(**YES), "--json")
        assert (found.exit_code, json.loads(found.stdout)) == (0, said)
        found = await explain(question(**NO))
        assert found.exit_code == 0, found.output
        lines = dict(line.split(maxsplit=1) for line in found.stdout.splitlines())
        assert (lines["decision"], lines["code"]) == ("deny", "grant.scope")
        found = await explain(question(**BAD))
        assert (found.exit_code, "resource.type" in found.stderr) == (1, True)
    found = await explain(question(**YES))
    assert (found.exit_code, "can't be reached" in found.stderr) == (2, True)


async def test_what_is_explained_is_what_a_broker_says(made: AuthzenWorld, tmp_path: Path) -> None:
    """The same question to the same files: offline and of the broker."""
    file = tmp_path / "question.yaml"
    tickets = endpoint(TICKETS + "/tickets/7", "GET", "tickets:read")
    questions = [
        question(**YES),
        question(**NO),
        question(**tickets),
        question(**READ),
        question(**GET_FILE),
        question(**tickets, subject=user()),
        question(**tickets, subject=user(claims=SUPPORT)),
        question(resource={"type": "route", "id": "tickets/close"}),
        question(resource={"type": "target", "id": "tickets"}),
    ]
    decisions = set()
    async with serving(made) as broker:
        config = tmp_path / "broker.yaml"
        config.write_text(json.dumps(made.document()))
        for asked in questions:
            _, said, _ = await post(broker, EVALUATION, asked)
            file.write_text(json.dumps(asked))
            arguments = ["policy", "explain", str(file), "--config", str(config), "--json"]
            result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
            assert result.exit_code == 0, result.output
            found, context = json.loads(result.stdout), said["context"]
            decisions.add(found["decision"])
            assert said["decision"] == (found["decision"] == "permit"), (asked, found, said)
            decided = {policy["id"] for policy in found.get("decided", ())}
            if said["decision"]:
                assert found["policy_digest"] == context["policy_digest"]
                used = [one["id"] for one in found["grants"] if one["fit"] == "used"]
                assert used == sorted(context["grants"])
            elif found["decision"] == "deny":
                assert found["code"] == context["code"]
            if found.get("code") not in {"policy.open", "policy.error"}:
                assert decided == set(context["policies"])
    assert decisions == {"permit", "approve", "deny"}

"""The decision: result, code, reason and key for each call, and no yes without the core."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.proxy.core.conftest import THUMBPRINT, compiled, route, tree
from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import (
    Deny,
    NeedsCredential,
    Permit,
    Principal,
    RequestFacts,
    decide,
)
from valetkey.proxy.core.snapshot import Snapshot

BOT = Principal("https://idp.example", "bot", 3)


def ask(snapshot: Snapshot, path: str, **facts: Any) -> NeedsCredential | Deny:
    facts = {"method": "GET", "authority": "127.0.0.1:7070", **facts}
    path, mark, query = path.partition("?")
    return decide(RequestFacts(path=path, query=query if mark else None, **facts), snapshot, BOT)


ALLOWED = [
    ("by prefix", "/tickets/api/tickets/7", {}, "tickets-read", "/api/tickets/7"),
    ("the rest of a prefix", "/tickets/", {}, "tickets-root", "/"),
    ("by host", "/api/tickets/7", {"authority": "tickets.local"}, "tickets-read", "/api/tickets/7"),
    ("by host with port", "/v1/a", {"authority": "pay.local:7070"}, "pay-read", "/v1/a"),
    ("by listener", "/v1/a", {"listener_target": "pay"}, "pay-read", "/v1/a"),
    ("the listener's before the prefix", "/vendor/a", {"listener_target": "vendor"}, "vendor-read", "/vendor/a"),
    ("the prefix before the host", "/vendor/a", {"authority": "tickets.local"}, "vendor-read", "/a"),
    ("another method of the route", "/tickets/api/tickets/7", {"method": "HEAD"}, "tickets-read", "/api/tickets/7"),
    ("the most specific", "/tickets/api/other/7", {}, "tickets-rest", "/api/other/7"),
    ("empty query", "/tickets/api/tickets/7?", {}, "tickets-read", "/api/tickets/7?"),
    ("query", "/tickets/api/tickets/7?a=1&b", {}, "tickets-read", "/api/tickets/7?a=1&b"),
    ("query that looks like a path", "/tickets/api/tickets/7?/../..", {}, "tickets-read", "/api/tickets/7?/../.."),
    ("escapes go on as they came", "/tickets/api/tickets/%37", {}, "tickets-read", "/api/tickets/%37"),
    ("an encoded literal is the literal", "/tickets/%61pi/tickets/7", {}, "tickets-read", "/%61pi/tickets/7"),
    ("an encoded prefix is the prefix", "/%74icket%73/api/tickets/7", {}, "tickets-read", "/api/tickets/7"),
    ("a parameter within the same route", "/tickets/api/tickets/7;v=1", {}, "tickets-read", "/api/tickets/7;v=1"),
    ("a parameter beneath rest", "/vendor/a;b/c", {}, "vendor-read", "/a;b/c"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path", "facts", "route_id", "target"), ALLOWED, ids=[c[0] for c in ALLOWED]
)
def test_calls_that_need_a_credential(
    name: str, path: str, facts: dict[str, Any], route_id: str, target: str, snapshot: Snapshot
) -> None:
    needs = ask(snapshot, path, **facts)
    assert isinstance(needs, NeedsCredential), needs.reason  # type: ignore[union-attr]
    assert needs.route.id == route_id
    assert needs.request_target == target
    assert needs.dropped == ()


DENIED: list[tuple[str, str, dict[str, Any], Code, str, str | None]] = [
    ("no prefix, no host", "/nowhere/a", {}, codes.TARGET_NO_MATCH, "no target", None),
    ("a bare prefix has no path", "/tickets", {}, codes.TARGET_NO_MATCH, "no target", None),
    ("prefix in another case", "/Tickets/a", {}, codes.TARGET_NO_MATCH, "no target", None),
    ("host without its port", "/v1/a", {"authority": "pay.local"}, codes.TARGET_NO_MATCH, "no target", None),
    ("no host at all", "/v1/a", {"authority": ""}, codes.TARGET_NO_MATCH, "no target", None),
    ("a target's real host is no way to it", "/v1/a", {"authority": "pay.example.com:8443"}, codes.TARGET_NO_MATCH, "no target", None),
    ("a prefix with a parameter", "/tickets;x/api/tickets/7", {}, codes.TARGET_NO_MATCH, "no target", None),
    ("unknown path", "/tickets/other", {}, codes.ROUTE_NO_MATCH, "no route", "tickets"),
    ("unknown method", "/tickets/api/tickets/7", {"method": "DELETE"}, codes.ROUTE_NO_MATCH, "no route", "tickets"),
    ("method in lower case", "/tickets/api/tickets/7", {"method": "get"}, codes.ROUTE_NO_MATCH, "no route", "tickets"),
    ("method of another route", "/tickets/api/tickets/7/close", {"method": "PUT"}, codes.ROUTE_NO_MATCH, "no route", "tickets"),
    ("path in another case", "/tickets/API/tickets/7", {}, codes.ROUTE_NO_MATCH, "no route", "tickets"),
    ("dot-dot out of the prefix", "/tickets/../vendor/a", {}, codes.REQUEST_AMBIGUOUS_PATH, "not a plain", None),
    ("encoded dot-dot", "/tickets/%2e%2e/vendor", {}, codes.REQUEST_AMBIGUOUS_PATH, "dot segment", None),
    ("parameter that hides a literal", "/tickets/api/tickets;x/7", {}, codes.REQUEST_AMBIGUOUS_PATH, "parameters lead", "tickets"),
    ("encoded parameter that does so", "/tickets/api/tickets%3bx/7", {}, codes.REQUEST_AMBIGUOUS_PATH, "parameters lead", "tickets"),
    ("parameter that hides a route", "/tickets/api/tickets/7;/close;x", {}, codes.REQUEST_AMBIGUOUS_PATH, "parameters lead", "tickets"),
    ("control in the query", "/tickets/api/tickets/7?a\x01", {}, codes.REQUEST_MALFORMED, "outside RFC 3986", "tickets"),
    ("hash in the query", "/tickets/api/tickets/7?a#b", {}, codes.REQUEST_MALFORMED, "outside RFC 3986", "tickets"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "path", "facts", "code", "reason", "target"), DENIED, ids=[c[0] for c in DENIED]
)
def test_calls_that_are_refused(
    name: str,
    path: str,
    facts: dict[str, Any],
    code: Code,
    reason: str,
    target: str | None,
    snapshot: Snapshot,
) -> None:
    if name == "parameter that hides a route":
        facts = {"method": "GET"}
        routes = [
            *tree()["routes"],
            route("list", "/api/tickets/{id}/{what}"),
            route("show", "/api/tickets/{id}/close"),
        ]
        snapshot = compiled(tree(routes=routes))
    deny = ask(snapshot, path, **facts)
    assert isinstance(deny, Deny)
    assert deny.code is code
    assert reason in deny.reason
    assert (deny.target.name if deny.target else None) == target


PROTOCOLS = [
    ("", "/", True),
    ("", "/socket", True),
    ("websocket", "/socket", True),
    ("spdy/3.1", "/socket", True),
    ("websocket", "/", False),
    ("spdy/3", "/socket", False),
    ("spdy", "/socket", False),
    ("websocket, spdy/3.1", "/socket", False),
    ("WebSocket", "/socket", False),
    ("h2c", "/socket", False),
]


@pytest.mark.parametrize(("protocol", "path", "allowed"), PROTOCOLS)
def test_a_switch_of_protocols_is_the_route_s_to_allow(
    protocol: str, path: str, allowed: bool
) -> None:
    routes = [route("plain", "/"), route("socket", "/socket", upgrade=["websocket", "spdy/3.1"])]
    verdict = ask(compiled(tree(routes=routes)), f"/tickets{path}", protocol=protocol)
    if allowed:
        assert isinstance(verdict, NeedsCredential)
        return
    assert isinstance(verdict, Deny)
    assert verdict.code is codes.REQUEST_UPGRADE
    assert verdict.route is not None
    assert verdict.path == path
    assert not protocol or protocol not in verdict.reason  # it is the caller's own text


def test_a_listener_of_a_target_that_is_gone_leads_nowhere(snapshot: Snapshot) -> None:
    deny = ask(snapshot, "/tickets/api/tickets/7", listener_target="removed")
    assert isinstance(deny, Deny)
    assert deny.code is codes.TARGET_NO_MATCH


def test_credentials_in_the_query_are_dropped_and_named(snapshot: Snapshot) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7?a=1&access_token=x&API_KEY=y")
    assert isinstance(needs, NeedsCredential)
    assert needs.request_target == "/api/tickets/7?a=1"
    assert needs.dropped == ("access_token", "api_key")


def test_the_key_of_the_workloads_own_credential(snapshot: Snapshot) -> None:
    needs = ask(snapshot, "/v1/a", listener_target="pay")
    assert isinstance(needs, NeedsCredential)
    assert needs.key == CacheKey(
        tenant="https://idp.example",
        subject="bot",
        actors=(),
        audience="urn:pay",
        resource=needs.key.resource,
        details=needs.key.details,
        scopes="a b",  # sorted, each once
        endpoint="https://broker.example:7080/token",
        thumbprint=THUMBPRINT,
        policy_digest=snapshot.policy_digest,
        epoch=3,
    )
    assert json.loads(needs.key.details) == [
        {
            "type": "valetkey_http_call",
            "locations": ["urn:pay"],
            "actions": ["GET"],
            "identifier": "pay-read",
            "path": "/v1/{rest*}",
        }
    ]
    again = ask(snapshot, "/v1/b?c", listener_target="pay")
    assert isinstance(again, NeedsCredential)
    assert again.key == needs.key  # one credential for the whole route


def test_only_bound_credentials_depend_on_the_proof_key(snapshot: Snapshot) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7")
    assert isinstance(needs, NeedsCredential)
    assert needs.key.thumbprint == ""


def test_a_users_token_makes_a_key_by_its_digest(snapshot: Snapshot) -> None:
    token = Secret("user-token-of-alice")
    needs = ask(snapshot, "/tickets/api/tickets/7", subject_token=token)
    assert isinstance(needs, NeedsCredential)
    assert needs.key.subject == f"token:{hashlib.sha256(b'user-token-of-alice').hexdigest()}"
    assert needs.key.actors == ("bot",)
    assert "user-token-of-alice" not in repr(needs.key)
    own, other = (
        ask(snapshot, "/tickets/api/tickets/7", subject_token=subject)
        for subject in (None, Secret("user-token-of-bob"))
    )
    assert isinstance(own, NeedsCredential)
    assert isinstance(other, NeedsCredential)
    assert len({needs.key, own.key, other.key}) == 3


def test_an_empty_users_token_is_not_the_workload(snapshot: Snapshot) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7", subject_token=Secret(""))
    assert isinstance(needs, NeedsCredential)
    assert needs.key.subject.startswith("token:")


def test_per_request_details_name_the_exact_call(snapshot: Snapshot) -> None:
    path = "/tickets/api/tickets/%37/close?because=x"
    needs = ask(snapshot, path, method="POST")
    assert isinstance(needs, NeedsCredential)
    [details] = json.loads(needs.key.details)
    assert details["path"] == "/api/tickets/%37/close"  # as sent, without prefix and query
    assert details["actions"] == ["POST"]
    assert details["exact"] is True


LAX = [
    ("another case", "/Admin/7", {}, [], "admin"),
    ("a last slash", "/admin/7/", {}, [], "admin"),
    ("a parameter and case", "/ADMIN;x/7", {}, [], "admin"),
    ("an encoded capital", "/%41dmin/7", {}, [], "admin"),
    ("case, and it counts", "/Admin/7", {}, ["case"], None),
    ("a last slash, and it counts", "/admin/7/", {}, ["last_slash"], None),
    ("a last slash, and case counts", "/admin/7/", {}, ["case"], "admin"),
    ("behind a prefix", "/vendor/Admin/7", {"listener_target": None}, [], "admin"),
    ("another method", "/Admin/7", {"method": "PUT"}, [], None),
    ("nothing narrower", "/Users/7/", {}, [], None),
]


@pytest.mark.parametrize(
    ("name", "path", "facts", "tells_apart", "shadow"), LAX, ids=[c[0] for c in LAX]
)
def test_a_wide_route_does_not_answer_for_a_narrow_one(
    name: str, path: str, facts: dict[str, Any], tells_apart: list[str], shadow: str | None
) -> None:
    document = tree(
        routes=[
            route("all", "/{rest*}", target="vendor", methods=["GET", "PUT"]),
            route("admin", "/admin/{id}", target="vendor", scopes=["admin"]),
        ]
    )
    document["targets"]["vendor"]["tells_apart"] = tells_apart
    verdict = ask(compiled(document), path, **{"listener_target": "vendor", **facts})
    if shadow is None:
        assert isinstance(verdict, NeedsCredential)
        assert verdict.route.id == "all"
        return
    assert isinstance(verdict, Deny)
    assert verdict.code is codes.REQUEST_AMBIGUOUS_PATH
    assert "read laxly" in verdict.reason
    assert verdict.route is not None
    assert verdict.route.id == "all"  # the record says whose scopes it would have been
    assert verdict.path == path.removeprefix("/vendor")


# --- admission ------------------------------------------------------------------------------------


def credential(key: CacheKey, *, expires_at: float = 100.0) -> Credential:
    return Credential(
        key,
        Secret("minted-token-0123456789"),
        b"authorization: Bearer minted-token-0123456789\r\n",
        expires_at=expires_at,
        refresh_at=80,
        subject="bot",
        actor="bot",
        jti="j",
        txn="t",
        policy_digest="d",
    )


ADMISSIONS: list[tuple[str, float, dict[str, Any], bool, Code | None]] = [
    ("good", 99.9, {}, True, None),
    ("at its end", 100.0, {}, False, codes.BROKER_UNAVAILABLE),
    ("long expired", 1e6, {}, False, codes.BROKER_UNAVAILABLE),
    ("fetched for this call", 100.0, {"fresh": True}, True, None),
]


@pytest.mark.parametrize(
    ("name", "now", "how", "permitted", "code"), ADMISSIONS, ids=[c[0] for c in ADMISSIONS]
)
def test_admission(
    name: str,
    now: float,
    how: dict[str, Any],
    permitted: bool,
    code: Code | None,
    snapshot: Snapshot,
) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7?a=1")
    assert isinstance(needs, NeedsCredential)
    verdict = needs.admit(credential(needs.key), now, **how)
    if not permitted:
        assert isinstance(verdict, Deny)
        assert verdict.code is code
        assert verdict.route is needs.route
        return
    assert isinstance(verdict, Permit)
    assert verdict.target is needs.route.target
    assert verdict.path == "/api/tickets/7"
    assert verdict.request_target == "/api/tickets/7?a=1"


@pytest.mark.parametrize("field", CacheKey._fields)
@pytest.mark.parametrize("fresh", [False, True])
def test_a_credential_for_any_other_key_is_refused(
    field: str, fresh: bool, snapshot: Snapshot
) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7")
    assert isinstance(needs, NeedsCredential)
    other = needs.key._replace(**{field: {"actors": ("x",), "epoch": 99}.get(field, "x")})
    verdict = needs.admit(credential(other), 0, fresh=fresh)
    assert isinstance(verdict, Deny)
    assert verdict.code is codes.PROXY_INTERNAL


def test_an_equal_key_that_is_another_object_serves(snapshot: Snapshot) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7")
    assert isinstance(needs, NeedsCredential)
    assert isinstance(needs.admit(credential(needs.key._replace()), 0), Permit)


@pytest.mark.parametrize("mint", [None, object(), True, "mint"])
def test_nobody_else_makes_a_permit(mint: object, snapshot: Snapshot) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7")
    assert isinstance(needs, NeedsCredential)
    with pytest.raises(TypeError, match="decision alone"):
        Permit(mint, needs.route, credential(needs.key), "/", "/", ())


def test_a_credential_does_not_show_its_token(snapshot: Snapshot) -> None:
    needs = ask(snapshot, "/tickets/api/tickets/7")
    assert isinstance(needs, NeedsCredential)
    assert "minted" not in repr(credential(needs.key))


MADE = compiled(tree())


@settings(deadline=None)
@given(
    st.text(alphabet="/.;%2eft icksap7\\?#\0é", max_size=30),
    st.sampled_from(["GET", "POST", "get", "PRI", ""]),
    st.sampled_from(["", "tickets.local", "pay.local:7070", "x"]),
)
def test_whatever_is_asked_the_answer_is_a_denial_or_a_configured_route(
    path: str, method: str, authority: str
) -> None:
    verdict = ask(MADE, f"/{path}", method=method, authority=authority)
    if isinstance(verdict, Deny):
        assert 400 <= verdict.code.status < 600
        return
    assert verdict.route in MADE.routes
    assert method in verdict.route.methods
    assert verdict.path.startswith("/")
    assert f"/{path}".partition("?")[0].endswith(verdict.path)
    assert ".." not in verdict.path.split("/")

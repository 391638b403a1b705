"""Parameters of an exchange: form by form, with the code that says what is wrong."""

from __future__ import annotations

import json
from typing import Any

import pytest

from valetkey.broker.core.form import Form
from valetkey.broker.core.request import MAX_DETAILS, parse_exchange
from valetkey.contracts import oauth
from valetkey.contracts.errors import CallerError

AUDIENCE = "https://t.example"
DETAIL = {
    "type": oauth.DETAILS_HTTP_CALL,
    "locations": [AUDIENCE],
    "actions": ["GET", "HEAD"],
    "identifier": "r",
    "path": "/a/{id}",
}
GOOD = {
    "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
    "subject_token": "subject-token",
    "subject_token_type": oauth.TOKEN_TYPE_JWT,
    "audience": AUDIENCE,
    "scope": "read write",
}


def form(**changes: Any) -> Form:
    return Form([(name, value) for name, value in {**GOOD, **changes}.items() if value is not None])


def details(**changes: Any) -> str:
    return json.dumps([{**DETAIL, **changes}])


def test_a_good_request() -> None:
    request = parse_exchange(
        form(
            authorization_details=details(), actor_token="a", actor_token_type=oauth.TOKEN_TYPE_JWT
        )
    )
    assert request.audience == AUDIENCE
    assert request.scopes == ("read", "write")
    assert request.issued_token_type == oauth.TOKEN_TYPE_ACCESS
    assert request.subject_token.reveal() == "subject-token"
    assert request.actor_token.reveal() == "a"
    assert list(request.details) == [
        DETAIL | {"locations": (AUDIENCE,), "actions": ("GET", "HEAD")}
    ]
    assert [sorted(call.methods) for call in request.calls] == [["GET"], ["HEAD"]]
    assert "subject-token" not in repr(request)


def test_messages_are_asked_about_one_by_one_and_echoed() -> None:
    mcp = {"methods": ["ping", "tools/call"], "tools": ["a", "b_*"]}
    request = parse_exchange(form(authorization_details=details(actions=["POST"], mcp=mcp)))
    [echoed] = request.details
    assert echoed["mcp"] == {"methods": ("ping", "tools/call"), "tools": ("a", "b_*")}
    asked = [(str(m.method), str(m.tool)) for call in request.calls for m in call.messages or ()]
    assert asked == [("ping", "*"), ("tools/call", "a"), ("tools/call", "b_*")]


@pytest.mark.parametrize(
    ("name", "changes", "code"),
    [
        ("no grant type", {"grant_type": None}, "service.bad_request"),
        ("another grant type", {"grant_type": "password"}, "exchange.grant_type"),
        ("no subject", {"subject_token": ""}, "service.bad_request"),
        ("subject type", {"subject_token_type": "saml"}, "exchange.token_type"),
        ("actor without type", {"actor_token": "a"}, "exchange.token_type"),
        ("type without actor", {"actor_token_type": oauth.TOKEN_TYPE_JWT}, "exchange.token_type"),
        ("requested type", {"requested_token_type": "saml"}, "exchange.token_type"),
        ("no audience", {"audience": None}, "service.bad_request"),
        ("relative resource", {"resource": "/a"}, "exchange.target"),
        ("no scope", {"scope": None}, "exchange.scope"),
        ("outer space in scope", {"scope": " read"}, "exchange.scope"),
        ("tab in scope", {"scope": "a\tb"}, "exchange.scope"),
        ("backslash in scope", {"scope": "a\\b"}, "exchange.scope"),
        ("long scope", {"scope": "a" * 257}, "exchange.scope"),
        ("no json", {"authorization_details": "x"}, "exchange.details"),
        ("deep json", {"authorization_details": "[" * 5000}, "exchange.details"),
        ("null", {"authorization_details": "null"}, "exchange.details"),
        ("too many", {"authorization_details": json.dumps([DETAIL] * (MAX_DETAILS + 1))},
         "exchange.details"),
        ("type", {"authorization_details": details(type="x")}, "exchange.details"),
        ("field", {"authorization_details": details(x=1)}, "exchange.details"),
        ("locations", {"authorization_details": details(locations=["x"])}, "exchange.details"),
        ("exact is text", {"authorization_details": details(exact="yes")}, "exchange.details"),
        ("identifier too long", {"authorization_details": details(identifier="x" * 257)},
         "exchange.details"),
        ("path", {"authorization_details": details(path="/a//b")}, "exchange.details"),
        ("exact pattern", {"authorization_details": details(exact=True)}, "exchange.details"),
        ("too many methods", {"authorization_details": details(actions=["GET"] * 65)},
         "exchange.details"),
        ("mcp is a list", {"authorization_details": details(mcp=[])}, "exchange.details"),
        ("mcp without methods", {"authorization_details": details(mcp={"methods": []})},
         "exchange.details"),
        ("mcp field", {"authorization_details": details(mcp={"methods": ["a"], "x": 1})},
         "exchange.details"),
        ("mcp name", {"authorization_details": details(mcp={"methods": ["a\n"]})},
         "exchange.details"),
        ("mcp pattern", {"authorization_details": details(mcp={"methods": ["a*b*"]})},
         "exchange.details"),
        ("too many messages", {"authorization_details": details(mcp={"methods": ["tools/call"],
         "tools": [f"t{n}" for n in range(1025)]})}, "exchange.details"),
        ("too many calls", {"authorization_details": details(actions=[f"A{c}" for c in
         "ABCDE"], mcp={"methods": ["tools/call"], "tools": [f"t{n}" for n in range(1000)]})},
         "exchange.details"),
    ],
)  # fmt: skip
def test_what_is_wrong_has_its_code(name: str, changes: dict[str, Any], code: str) -> None:
    with pytest.raises(CallerError) as refused:
        parse_exchange(form(**changes))
    assert refused.value.code.name == code, name


@pytest.mark.parametrize("field", ["audience", "resource"])
def test_one_of_what_may_repeat(field: str) -> None:
    fields = [*GOOD.items(), ("resource", AUDIENCE), (field, "https://other.example")]
    with pytest.raises(CallerError) as refused:
        parse_exchange(Form(fields))
    assert refused.value.code.name == "exchange.target"

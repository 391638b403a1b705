"""Problem documents: RFC 9457 members, and nothing but the code's own words."""

from __future__ import annotations

import json

import pytest

from valetkey.contracts import codes, problem
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import PolicyError


def test_the_document_in_full() -> None:
    assert json.loads(problem.render(codes.ROUTE_NO_MATCH, instance="00ab-7")) == {
        "type": "/docs/codes#route.no_match",
        "title": "route: no match",
        "status": 403,
        "code": "route.no_match",
        "detail": "No route of the target allows this method and path.",
        "instance": "00ab-7",
    }


@pytest.mark.parametrize("code", codes.all_codes(), ids=lambda code: code.name)
def test_each_code_renders(code: Code) -> None:
    document = json.loads(problem.render(code))
    assert document["status"] == code.status
    assert document["code"] == code.name
    assert document["detail"] == code.help
    assert "instance" not in document


def test_an_error_keeps_its_reason_from_the_document() -> None:
    error = PolicyError(codes.GRANT_SCOPE, "grant g1 lacks tickets:admin")
    assert str(error) == "grant.scope: grant g1 lacks tickets:admin"
    assert b"tickets:admin" not in problem.render(error.code)
    assert str(PolicyError(codes.GRANT_SCOPE)) == "grant.scope"

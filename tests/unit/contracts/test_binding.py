"""Bound tokens: only with what they are bound to (RFC 8705 §3, RFC 9449 §7.2)."""

from __future__ import annotations

from typing import Any

import pytest

from valetkey.contracts.binding import check_binding, thumbprint
from valetkey.contracts.errors import CallerError

OWN, OTHER = thumbprint(b"own"), thumbprint(b"other")
CASES: dict[str, tuple[dict[str, Any], str, bool]] = {
    "not bound": ({}, "", True),
    "not bound, with a certificate": ({}, OWN, True),
    "its certificate": ({"cnf": {"x5t#S256": OWN}}, OWN, True),
    "another certificate": ({"cnf": {"x5t#S256": OWN}}, OTHER, False),
    "no certificate": ({"cnf": {"x5t#S256": OWN}}, "", False),
    "bound to nothing": ({"cnf": {"x5t#S256": ""}}, "", False),
    "bound to a list": ({"cnf": {"x5t#S256": [OWN]}}, OWN, False),
    "bound to a DPoP key": ({"cnf": {"jkt": "x"}}, OWN, False),
    "bound to both": ({"cnf": {"x5t#S256": OWN, "jkt": "x"}}, OWN, False),
    "bound in a way nobody knows": ({"cnf": {}}, OWN, False),
    "cnf is a text": ({"cnf": OWN}, OWN, False),
    "not ASCII": ({"cnf": {"x5t#S256": "ü"}}, OWN, False),
}


@pytest.mark.parametrize(("claims", "certificate", "good"), CASES.values(), ids=CASES)
def test_bound_tokens(claims: dict[str, Any], certificate: str, good: bool) -> None:
    if good:
        check_binding(claims, certificate)
        return
    with pytest.raises(CallerError) as refused:
        check_binding(claims, certificate)
    code = refused.value.code
    assert (code.name, code.status, code.oauth) == ("mtls.mismatch", 401, "invalid_token")


@pytest.mark.parametrize(
    ("cnf", "good"),
    [
        ({"jkt": "key"}, True),
        ({"jkt": "other"}, False),
        ({"jkt": "key", "x5t#S256": OWN}, True),
        ({"jkt": "key", "x5t#S256": OTHER}, False),
        ({"jkt": "key", "kid": "k"}, False),
        ({"jkt": ["key"]}, False),
    ],
)
def test_tokens_that_are_bound_to_a_key(cnf: dict[str, Any], good: bool) -> None:
    if good:
        check_binding({"cnf": cnf}, OWN, proof="key")
        return
    with pytest.raises(CallerError):
        check_binding({"cnf": cnf}, OWN, proof="key")


def test_a_thumbprint_is_base64url_of_sha256() -> None:
    assert OWN == "Wzl1ZRw8q5LQRMCW3DChwtlSVJdFdHLeSMUeyzY9H0o"

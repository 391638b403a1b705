"""Every code has its OAuth error and HTTP status at the token endpoint."""

from __future__ import annotations

import json

import pytest

from valetkey.broker.api.wire import description, error_answer, json_answer
from valetkey.contracts import codes

# RFC 6749 §5.2, RFC 8693 §2.2.2, RFC 9396 §5, RFC 9449 §5 and §8, RFC 7009 §2.2.1
KNOWN = {
    "invalid_request", "invalid_client", "invalid_grant", "unauthorized_client", "invalid_scope",
    "unsupported_grant_type", "invalid_target", "invalid_authorization_details",
    "invalid_dpop_proof", "use_dpop_nonce", "server_error", "temporarily_unavailable",
    "invalid_token",  # RFC 6750 §3.1
    # RFC 8628 §3.5, OpenID Connect Core §3.1.2.6
    "authorization_pending", "slow_down", "access_denied", "expired_token", "interaction_required",
}  # fmt: skip


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        (codes.SERVICE_BAD_REQUEST, 400, "invalid_request"),
        (codes.SERVICE_UNAUTHENTICATED, 401, "invalid_client"),
        (codes.ACTOR_INVALID, 401, "invalid_client"),
        (codes.ACTOR_REPLAYED, 401, "invalid_client"),
        (codes.SUBJECT_REVOKED, 400, "invalid_grant"),
        (codes.GRANT_MISSING, 400, "invalid_target"),
        (codes.DPOP_NONCE, 400, "use_dpop_nonce"),
        (codes.SERVICE_TOO_LARGE, 413, "invalid_request"),
        (codes.SERVICE_INTERNAL, 500, "server_error"),
        (codes.SERVICE_UNAVAILABLE, 503, "temporarily_unavailable"),
    ],
)
def test_error(code: codes.Code, status: int, error: str) -> None:
    answer = error_answer(code, nonce="n")
    assert answer.status == status
    assert json.loads(answer.body or b"") == {
        "error": error,
        "error_description": description(code),
        "code": code.name,
    }
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["DPoP-Nonce"] == "n"
    assert ("Retry-After" in answer.headers) == (code.retry_after is not None)


def test_every_oauth_error_is_a_registered_one() -> None:
    for code in codes.all_codes():
        assert code.oauth in {"", *KNOWN}, code.name


def test_descriptions_keep_to_the_charset() -> None:
    """RFC 6749 §5.2: %x20-21 / %x23-5B / %x5D-7E."""
    for code in codes.all_codes():
        text = description(code)
        assert text.isascii(), code.name
        assert text.isprintable(), code.name
        assert not set(text) & set('"\\'), code.name
    assert "RFC 8693 section 4.4)" in description(codes.ACTOR_NOT_ALLOWED)


def test_no_nonce_no_header() -> None:
    assert "DPoP-Nonce" not in json_answer({}).headers

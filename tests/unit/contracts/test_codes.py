"""Codes: each is fit to be shown, and the lookup knows them all."""

from __future__ import annotations

import re

import pytest

from valetkey.contracts import codes
from valetkey.contracts.codes import Code, CommandCode

# RFC 6749 §5.2, RFC 6750 §3.1, RFC 8693 §2.2.2, RFC 8707 §2, RFC 9396 §5, RFC 9449 §5 and §8, RFC
# 8628 §3.5, OpenID Connect Core §3.1.2.6.
OAUTH_ERRORS = {
    "",
    "invalid_request",
    "invalid_client",
    "invalid_grant",
    "unauthorized_client",
    "unsupported_grant_type",
    "invalid_scope",
    "invalid_target",
    "invalid_authorization_details",
    "invalid_dpop_proof",
    "use_dpop_nonce",
    "invalid_token",
    "server_error",
    "temporarily_unavailable",
    "authorization_pending",
    "slow_down",
    "access_denied",
    "expired_token",
    "interaction_required",
}

ALL = pytest.mark.parametrize("code", codes.all_codes(), ids=lambda code: code.name)


@ALL
def test_the_name_is_dotted_and_found(code: Code) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z0-9_]+", code.name)
    assert codes.by_name(code.name) is code
    assert code.family == code.name.split(".")[0]


@ALL
def test_a_code_never_means_success(code: Code) -> None:
    assert 400 <= code.status <= 599
    assert code.oauth in OAUTH_ERRORS


@ALL
def test_the_help_is_one_printable_line(code: Code) -> None:
    assert code.help.endswith(".")
    assert code.help.isprintable()
    # RFC 6749 §5.2: error_description excludes the double quote and the backslash.
    assert not set('"\\') & set(code.help)


@ALL
def test_retry_is_only_advised_where_the_fault_passes(code: Code) -> None:
    # RFC 9110 §15.6: the 5xx class says that the request itself may be fine; RFC 6585 §4: so does
    # 429. And people may still decide.
    passes = code.status in {429, 502, 503, 504} or code.family == "approval"
    assert code.retry_after is None or (code.retry_after > 0 and passes)
    assert code.status != 503 or code.retry_after is not None


def test_an_unknown_name_has_no_code() -> None:
    assert codes.by_name("route.nomatch") is None
    assert codes.by_name("") is None


def test_a_name_is_defined_once() -> None:
    names = [code.name for code in codes.all_codes()]
    assert len(names) == len(set(names))
    with pytest.raises(AssertionError, match=r"route\.no_match"):
        codes._code("route.no_match", 403, "Again.")


COMMANDS = pytest.mark.parametrize("code", codes.command_codes(), ids=lambda code: code.name)


@COMMANDS
def test_a_command_s_code_is_fit_to_be_shown_and_no_decision_s(code: CommandCode) -> None:
    assert re.fullmatch(r"[a-z]+\.[a-z_]+", code.name)
    assert code.help[0].isupper()
    assert code.help.endswith(".")
    assert codes.by_name(code.name) is None
    assert codes.by_command_name(code.name) is code

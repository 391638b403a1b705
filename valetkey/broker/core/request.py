"""A token request, from decoded form fields to typed parameters (RFC 8693 §2.1, RFC 9396).

Invariants:

- Whatever is not understood is refused here, before any token in the request is looked at. The
  one exception is unknown *parameters*, which RFC 6749 §3.2 tells servers to ignore.
- The result holds nothing that was not checked for form; what a token says is checked elsewhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from valetkey.broker.core.form import Form
from valetkey.broker.core.grants import METHOD, SCOPE_TOKEN, Call
from valetkey.broker.core.patterns import PatternInvalid
from valetkey.broker.core.resources import ResourceInvalid, parse_resource
from valetkey.broker.core.transactions import Transaction, read_context
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.mcp import NameInvalid
from valetkey.contracts.oauth import (
    COMPLETION_DEFERRED,
    DETAILS_HTTP_CALL,
    GRANT_TOKEN_EXCHANGE,
    TOKEN_TYPE_ACCESS,
    TOKEN_TYPE_JWT,
    TOKEN_TYPE_TXN,
    HttpCallDetails,
)
from valetkey.contracts.secret import Secret

MAX_DETAILS: Final = 16
MAX_PURPOSE: Final = 500
_CAPABILITY: Final = re.compile(r"[a-z][a-z_]{0,31}")
_MAX_CAPABILITIES: Final = 32
_MAX_SCOPES: Final = 64
_MAX_IDENTIFIER: Final = 256
_MAX_ACTIONS: Final = 64
# One for each method and message: each is a question to every grant that could cover it.
_MAX_CALLS: Final = 4096
_TOKEN_TYPES: Final = frozenset({TOKEN_TYPE_ACCESS, TOKEN_TYPE_JWT})
# Controls, surrogates, private use, line and paragraph separators.
_UNSHOWN: Final = frozenset({"Cc", "Cs", "Co", "Cn", "Zl", "Zp"})
# Unicode UAX #9: embeddings, overrides, isolates and marks (they make text read as another one).
_DIRECTIONS: Final = frozenset(
    "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
)
_DETAILS: Final = msgspec.json.Decoder(list[HttpCallDetails])


@dataclass(frozen=True, slots=True)
class ExchangeRequest:
    """A token exchange as asked for. ``actor_token`` is empty when none was sent.

    ``details`` are plain data, as they will be echoed; ``calls`` are the same, compiled.
    ``deferred`` says that the client takes a deferral for an answer. ``purpose`` is what the asking
    side says of itself: for people to read, never for a decision. ``transaction`` is there where a
    transaction token is asked for; it ``replaces`` one where the subject token is such a token.
    ``capabilities`` are the restrictions that the client says it enforces (`core.capabilities`).
    """

    subject_token: Secret
    actor_token: Secret
    issued_token_type: str
    audience: str
    resource: str
    scopes: tuple[str, ...]
    details: tuple[dict[str, Any], ...]
    calls: tuple[Call, ...]
    deferred: bool = False
    purpose: str = ""
    transaction: Transaction | None = None
    replaces: bool = False
    capabilities: frozenset[str] = frozenset()

    def saved(self) -> dict[str, Any]:
        """What of it can be kept until people have decided: all but the tokens."""
        return {
            "issued_token_type": self.issued_token_type,
            "audience": self.audience,
            "resource": self.resource,
            "scope": " ".join(self.scopes),
            "details": list(self.details),
            "capabilities": sorted(self.capabilities),
        }

    @classmethod
    def restore(cls, saved: dict[str, Any]) -> ExchangeRequest:
        """A request that was `saved`, checked as it was when it came."""
        text = msgspec.json.encode(saved["details"]).decode() if saved["details"] else ""
        details = _details(text, saved["audience"])
        return cls(
            subject_token=Secret(""),
            actor_token=Secret(""),
            issued_token_type=saved["issued_token_type"],
            audience=saved["audience"],
            resource=saved["resource"],
            scopes=_scopes(saved["scope"]),
            details=tuple(msgspec.to_builtins(detail) for detail in details),
            calls=_calls(details),
            capabilities=frozenset(saved.get("capabilities", ())),
        )


def parse_exchange(form: Form) -> ExchangeRequest:
    """Raises `CallerError` with the code that says which parameter is wrong."""
    if form.required("grant_type") != GRANT_TOKEN_EXCHANGE:
        raise CallerError(codes.EXCHANGE_GRANT_TYPE, "another grant_type")
    subject_token = form.required("subject_token")
    subject_token_type = form.required("subject_token_type")
    if subject_token_type not in _TOKEN_TYPES | {TOKEN_TYPE_TXN}:
        raise CallerError(codes.EXCHANGE_TOKEN_TYPE, "subject_token_type")
    actor_token, actor_token_type = form.get("actor_token"), form.get("actor_token_type")
    # RFC 8693 §2.1: the type is required with the token and must not come without it.
    if bool(actor_token) != bool(actor_token_type):
        raise CallerError(codes.EXCHANGE_TOKEN_TYPE, "actor_token and its type come together")
    if actor_token_type and actor_token_type not in _TOKEN_TYPES:
        raise CallerError(codes.EXCHANGE_TOKEN_TYPE, "actor_token_type")
    requested = form.get("requested_token_type") or TOKEN_TYPE_ACCESS
    if requested not in _TOKEN_TYPES | {TOKEN_TYPE_TXN}:
        raise CallerError(codes.EXCHANGE_TOKEN_TYPE, "requested_token_type")
    replaces = subject_token_type == TOKEN_TYPE_TXN
    if replaces and requested != TOKEN_TYPE_TXN:
        # Transaction tokens are no access tokens, and none is to be had for one.
        raise CallerError(codes.EXCHANGE_TOKEN_TYPE, "a transaction token for another token")
    audience = _audience(form.all("audience"))
    details = _details(form.get("authorization_details"), audience)
    return ExchangeRequest(
        subject_token=Secret(subject_token),
        actor_token=Secret(actor_token),
        issued_token_type=requested,
        audience=audience,
        resource=_resource(form.all("resource")),
        scopes=_scopes(form.get("scope")),
        details=tuple(msgspec.to_builtins(detail) for detail in details),
        calls=_calls(details),
        deferred=_deferred(form.get("completion_mode")),
        purpose=_purpose(form.get("purpose")),
        transaction=_transaction(form, requested),
        replaces=replaces,
        capabilities=parse_capabilities(form.get("capabilities")),
    )


def parse_capabilities(text: str) -> frozenset[str]:
    """The parameter ``capabilities``: names separated by spaces; unknown ones say nothing to us.

    Raises `CallerError`.
    """
    names = text.split(" ") if text else []
    if len(names) > _MAX_CAPABILITIES or not all(_CAPABILITY.fullmatch(name) for name in names):
        raise CallerError(codes.SERVICE_BAD_REQUEST, "capabilities is malformed")
    return frozenset(names)


def _transaction(form: Form, requested: str) -> Transaction | None:
    names = ("request_context", "request_details")
    if requested != TOKEN_TYPE_TXN:
        if any(form.get(name) for name in names):
            raise CallerError(codes.EXCHANGE_CONTEXT, "a context without a transaction token")
        return None
    tokens = [form.get(name) for name in ("subject_token", "actor_token", "client_assertion")]
    context, details = (read_context(form.get(name), name, tokens=tokens) for name in names)
    return Transaction(context, details)


def _deferred(mode: str) -> bool:
    """The opt-in of draft-ietf-oauth-deferred-token-response."""
    if mode not in {"", COMPLETION_DEFERRED}:
        raise CallerError(codes.SERVICE_BAD_REQUEST, "unknown completion_mode")
    return bool(mode)


def _purpose(text: str) -> str:
    """Text that people will read: no controls, no lines, nothing that reverses its direction."""
    if len(text) > MAX_PURPOSE or any(
        unicodedata.category(character) in _UNSHOWN or character in _DIRECTIONS
        for character in text
    ):
        raise CallerError(codes.APPROVAL_PURPOSE, "purpose is too long, or has control characters")
    return text


def _audience(values: Sequence[str]) -> str:
    if not values:
        raise CallerError(codes.SERVICE_BAD_REQUEST, "audience is missing")
    if len(values) > 1:
        raise CallerError(codes.EXCHANGE_TARGET, "more than one audience")
    return values[0]


def _resource(values: Sequence[str]) -> str:
    if not values:
        return ""
    if len(values) > 1:  # one resource per minted token, RFC 8707 §2.2 and standards
        raise CallerError(codes.EXCHANGE_TARGET, "more than one resource")
    try:
        parse_resource(values[0])
    except ResourceInvalid as error:
        raise CallerError(codes.EXCHANGE_TARGET, str(error)) from error
    return values[0]


def _scopes(text: str) -> tuple[str, ...]:
    # RFC 6749 §3.3: scope-token *( SP scope-token ); one space, no other white space.
    scopes = text.split(" ")
    if len(scopes) > _MAX_SCOPES or not all(SCOPE_TOKEN.fullmatch(scope) for scope in scopes):
        raise CallerError(codes.EXCHANGE_SCOPE, "scope is missing or malformed")
    return tuple(dict.fromkeys(scopes))


def _details(text: str, audience: str) -> list[HttpCallDetails]:
    if not text:
        return []
    try:
        details = _DETAILS.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        # RFC 9396 §5: unknown types and fields are refused, never passed over.
        raise CallerError(codes.EXCHANGE_DETAILS, "not a list of our type") from error
    if not 1 <= len(details) <= MAX_DETAILS:
        raise CallerError(codes.EXCHANGE_DETAILS, "no entries, or too many")
    for detail in details:
        if detail.type != DETAILS_HTTP_CALL:
            raise CallerError(codes.EXCHANGE_DETAILS, "unknown type")
        if detail.locations != (audience,):
            raise CallerError(codes.EXCHANGE_DETAILS, "locations is not the audience alone")
        if not 1 <= len(detail.actions) <= _MAX_ACTIONS or not all(
            METHOD.fullmatch(method) for method in detail.actions
        ):
            raise CallerError(codes.EXCHANGE_DETAILS, "actions are not HTTP methods")
        if not 1 <= len(detail.identifier) <= _MAX_IDENTIFIER:
            raise CallerError(codes.EXCHANGE_DETAILS, "identifier is empty or too long")
        if detail.mcp is not None and not detail.mcp.methods:
            raise CallerError(codes.EXCHANGE_DETAILS, "mcp names no method")
    return details


def _calls(details: Sequence[HttpCallDetails]) -> tuple[Call, ...]:
    calls: list[Call] = []
    try:
        for detail in details:
            calls += Call.all_of(detail)
            if len(calls) > _MAX_CALLS:
                raise CallerError(codes.EXCHANGE_DETAILS, "too many calls")
    except PatternInvalid as error:
        raise CallerError(codes.EXCHANGE_DETAILS, f"path: {error}") from error
    except NameInvalid as error:
        raise CallerError(codes.EXCHANGE_DETAILS, f"mcp: {error}") from error
    return tuple(calls)

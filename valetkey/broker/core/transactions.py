"""Transaction tokens (draft-ietf-oauth-transaction-tokens): who started what, within one domain.

Invariants:

- What a transaction token says is never taken back: whoever gets another one in its place keeps
  ``txn``, ``sub``, ``aud`` and every member of ``tctx`` and ``rctx``, and can only add members.
- Another one never opens more: its scopes and calls are among those of the one before, and it
  ends no later.
- Nobody's token is in it (§ "Access Tokens" of the draft).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import msgspec

from valetkey.broker.core.grants import Call
from valetkey.broker.core.patterns import PatternInvalid
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.mcp import NameInvalid
from valetkey.contracts.oauth import HttpCallDetails

# A header of 8 KiB is what most servers take; the token has more in it than these two.
MAX_CONTEXT: Final = 2048
_MAX_DEPTH: Final = 8
_OBJECT: Final = msgspec.json.Decoder(dict[str, Any])


@dataclass(frozen=True, slots=True)
class Transaction:
    """What a request says of its transaction: ``request_context`` and ``request_details``."""

    request: Mapping[str, Any]
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Earlier:
    """The transaction token that another one is to take the place of."""

    audience: str
    scopes: frozenset[str]
    calls: tuple[Call, ...] | None
    """Those that it is limited to; ``None``: to none."""
    rctx: Mapping[str, Any]
    tctx: Mapping[str, Any]

    @classmethod
    def of(cls, claims: Mapping[str, Any]) -> Earlier | None:
        """Read from verified claims of a token of ours; ``None`` where they are no such token's."""
        scope, details = claims.get("scope"), claims.get("authorization_details")
        rctx, tctx = claims.get("rctx", {}), claims.get("tctx", {})
        if not isinstance(scope, str) or not isinstance(rctx, dict) or not isinstance(tctx, dict):
            return None
        try:
            calls = None if details is None else _calls(details)
        except (msgspec.ValidationError, PatternInvalid, NameInvalid):
            return None
        return cls(str(claims.get("aud", "")), frozenset(scope.split(" ")), calls, rctx, tctx)

    def covers(self, scopes: Iterable[str], calls: Iterable[Call]) -> bool:
        """Whether all of it is within what the earlier token opens."""
        asked = tuple(calls)
        within = self.calls is None or (
            bool(asked) and all(any(own.includes(call) for own in self.calls) for call in asked)
        )
        return within and self.scopes.issuperset(scopes)


def read_context(text: str, name: str, *, tokens: Iterable[str]) -> dict[str, Any]:
    """One of the two parameters: a JSON object without any of ``tokens`` in it.

    Raises `CallerError`.
    """
    if not text:
        return {}
    if len(text) > MAX_CONTEXT:
        raise CallerError(codes.EXCHANGE_CONTEXT, f"{name} is too long")
    try:
        value = _OBJECT.decode(text)
    except (msgspec.DecodeError, RecursionError) as error:
        raise CallerError(codes.EXCHANGE_CONTEXT, f"{name} is no JSON object") from error
    secrets = [token for token in tokens if token]
    if not _is_plain(value, _MAX_DEPTH, secrets):
        raise CallerError(codes.EXCHANGE_CONTEXT, f"{name} is too deep or holds a token")
    return value


def added(before: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any] | None:
    """Both together; ``None`` if a member would get another value."""
    if any(name in before and before[name] != value for name, value in more.items()):
        return None
    return {**before, **more}


def _is_plain(value: Any, depth: int, secrets: list[str]) -> bool:
    if depth < 0:
        return False
    if isinstance(value, str):
        return not any(secret in value for secret in secrets)
    if isinstance(value, dict):
        return all(
            _is_plain(name, depth, secrets) and _is_plain(item, depth - 1, secrets)
            for name, item in value.items()
        )
    if isinstance(value, list):
        return all(_is_plain(item, depth - 1, secrets) for item in value)
    return True


def _calls(details: Any) -> tuple[Call, ...]:
    read = msgspec.convert(details, list[HttpCallDetails])
    return tuple(call for detail in read for call in Call.all_of(detail))

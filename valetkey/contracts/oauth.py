"""Token exchange on the wire: names and messages of RFC 8693, as sidecar and broker use them."""

from __future__ import annotations

from typing import Any, Final, Literal

import msgspec

# RFC 8693 §2.1
GRANT_TOKEN_EXCHANGE: Final = "urn:ietf:params:oauth:grant-type:token-exchange"  # noqa: S105
# draft-ietf-oauth-deferred-token-response: the poll for an answer that takes people
GRANT_DEFERRED: Final = "urn:ietf:params:oauth:grant-type:deferred"
COMPLETION_DEFERRED: Final = "deferred"
# RFC 8693 §3
TOKEN_TYPE_ACCESS: Final = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105
# draft-ietf-oauth-transaction-tokens, "Txn-Token Request"
TOKEN_TYPE_TXN: Final = "urn:ietf:params:oauth:token-type:txn_token"  # noqa: S105
TOKEN_TYPE_JWT: Final = "urn:ietf:params:oauth:token-type:jwt"  # noqa: S105
# RFC 7523 §2.2
ASSERTION_JWT_BEARER: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
# draft-ietf-oauth-spiffe-client-auth §3.1: a JWT-SVID, which has no `iss` and no `jti`
ASSERTION_JWT_SPIFFE: Final = "urn:ietf:params:oauth:client-assertion-type:jwt-spiffe"

# Ours, the parameter `capabilities`: restrictions that a caller enforces on what it gets. Once a
# proof is sent, a client certificate shown or a transaction token asked for, that much is clear.
Capability = Literal["dpop", "feed", "mcp_filter", "mtls", "single_use", "txn_token"]

# The one `type` of RFC 9396 details that the spine speaks: a call that the sidecar is about to
# make. `locations` is the target's resource, `actions` the HTTP methods, `identifier` the route,
# `path` the exact path (per-request) or the route's pattern.
DETAILS_HTTP_CALL: Final = "valetkey_http_call"


class McpDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Which messages of MCP: JSON-RPC methods, and of ``tools/call`` which tools (none: any).

    Names or patterns as in `contracts.mcp`; names alone where the details are ``exact``.
    """

    methods: tuple[str, ...]
    tools: tuple[str, ...] = ()


class HttpCallDetails(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """RFC 9396 authorization details for calls over HTTP.

    ``path`` is what the sidecar will send: a literal path when the credential is for one request,
    otherwise the route's pattern (``/api/tickets/{id}``). ``exact`` says which of the two.
    ``mcp`` narrows the calls down to those that carry such a message.
    """

    type: str
    locations: tuple[str, ...]
    actions: tuple[str, ...]
    identifier: str
    path: str
    exact: bool = False
    mcp: McpDetails | None = None


class TokenResponse(msgspec.Struct, frozen=True, omit_defaults=True):
    """A successful exchange (RFC 8693 §2.2.1). Unknown members are ignored (RFC 6749 §5.1)."""

    access_token: str
    issued_token_type: str
    token_type: str
    expires_in: int
    scope: str = ""
    authorization_details: list[dict[str, Any]] = []
    # Ours: lets the sidecar put on record which policy decided, under which transaction.
    policy_digest: str = ""
    policies: list[str] = []
    txn: str = ""
    jti: str = ""
    # Ours: who the broker found the subject and the acting workload to be, after verification.
    sub: str = ""
    act: dict[str, Any] = {}
    # Ours: the epochs of the subject and of the client, that the token counts under.
    epoch: int = 0
    client_epoch: int = 0
    # Ours: the approval that the token rests on. With `single_use` its uses are counted, and the
    # token is for one call: nobody may keep it for another.
    approval: str = ""
    single_use: bool = False
    # Ours: the grants and deployment windows that the token rests on; it ends with any of them.
    grants: list[str] = []


class Introspection(msgspec.Struct, frozen=True):
    """What a client needs of an introspection response (RFC 7662 §2.2)."""

    active: bool


class TokenError(msgspec.Struct, frozen=True, omit_defaults=True):
    """A refused exchange (RFC 6749 §5.2). ``code`` is the Valetkey code behind ``error``.

    ``policies`` are the ids of those that refused it, for the record.
    Where people have to approve it, ``approval_id`` names what is before them; to a client that
    takes deferrals come ``deferral_code``, ``expires_in`` and ``interval`` (both in seconds).
    """

    error: str
    error_description: str = ""
    code: str = ""
    policies: list[str] = []
    approval_id: str = ""
    deferral_code: str = ""
    expires_in: int = 0
    interval: int = 0


_CANONICAL: Final = msgspec.json.Encoder(order="deterministic")


def canonical_details(details: Any) -> str:
    """Authorization details as canonical JSON: sorted keys, no spaces, so that equal means equal.

    Numbers in details are integers or absent, so RFC 8785's number formatting has no say here.
    """
    return _CANONICAL.encode(details).decode()

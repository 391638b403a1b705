"""Decision codes: what a refused caller is told, defined once.

Every denial and every failure that a caller can see has one dotted code. A code fixes the HTTP
status, the OAuth ``error`` (RFC 6749 §5.2 and its extensions) where a token endpoint would say
it, and one line of help that is safe to show to anyone: it names what to do, never a secret.
``docs/reference/codes.md`` and the README's table are generated from this module.

What a command says for why it did nothing has a code as well, a `CommandCode`: nobody is refused a
call by it, so it has no HTTP status.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Code:
    """One way in which a call can be refused.

    ``status`` is the HTTP status sent to the caller, ``oauth`` the ``error`` member that a token
    endpoint answers with (empty where no token endpoint ever says it), ``retry_after`` the
    seconds after which a repeat makes sense (``None``: repeating changes nothing).
    """

    name: str
    status: int
    help: str
    oauth: str = ""
    retry_after: int | None = None

    @property
    def family(self) -> str:
        """The part before the dot: whose fault it is."""
        return self.name.partition(".")[0]


_ALL: dict[str, Code] = {}


def _code(
    name: str, status: int, help_: str, oauth: str = "", retry_after: int | None = None
) -> Code:
    code = Code(name, status, help_, oauth, retry_after)
    assert name not in _ALL, name
    _ALL[name] = code
    return code


# --- request: the caller sent bytes that no two readers would surely read alike -----------------
REQUEST_MALFORMED: Final = _code(
    "request.malformed", 400, "The request is not well-formed HTTP/1.1 (RFC 9112)."
)
REQUEST_VERSION: Final = _code(
    "request.version_unsupported", 505, "Only HTTP/1.0 and HTTP/1.1 are spoken here."
)
REQUEST_HEAD_TOO_LARGE: Final = _code(
    "request.head_too_large", 431, "Request line and headers are larger than is allowed here."
)
REQUEST_TOO_MANY_HEADERS: Final = _code(
    "request.too_many_headers", 431, "The request has more header fields than allowed."
)
REQUEST_AMBIGUOUS_FRAMING: Final = _code(
    "request.ambiguous_framing",
    400,
    "Send exactly one of Content-Length or Transfer-Encoding: chunked, once (RFC 9112 §6).",
)
REQUEST_AMBIGUOUS_HOST: Final = _code(
    "request.ambiguous_host",
    400,
    "Send exactly one valid Host that agrees with the request target.",
)
REQUEST_AMBIGUOUS_PATH: Final = _code(
    "request.ambiguous_path",
    400,
    "The path has dot segments, empty segments, encoded delimiters, a double encoding or "
    "characters outside RFC 3986, or in another case, without its last slash or its parameters it "
    "is another route's: send it in its plain form.",
)
REQUEST_CONNECTION_HEADER: Final = _code(
    "request.connection_header", 400, "Connection may not name an end-to-end header."
)
REQUEST_OVERRIDE: Final = _code(
    "request.override",
    400,
    "A header or parameter asks the target to take the call for one of another method, path or "
    "host (X-HTTP-Method-Override, X-Original-URL, X-Forwarded-Host, _method, …): leave it out, or "
    "let the target's settings pass it.",
)
REQUEST_REPEATED_HEADER: Final = _code(
    "request.repeated_header",
    400,
    "A header that can have one value only (Content-Type, Range, …) occurs twice (RFC 9110 §5.3).",
)
REQUEST_EXPECTATION: Final = _code(
    "request.expectation_failed", 417, "The only expectation understood is 100-continue."
)
REQUEST_UPGRADE: Final = _code(
    "request.upgrade_denied", 403, "This route does not allow a switch to this protocol."
)
REQUEST_UPGRADE_INVALID: Final = _code(
    "request.upgrade_invalid",
    400,
    "Ask for an upgrade without a body; for a WebSocket with GET, version 13 and one key (RFC 6455 "
    "§4.1).",
)
REQUEST_CONNECT: Final = _code(
    "request.connect_denied", 405, "CONNECT is served by listeners in forward mode only."
)
REQUEST_NO_ORIGIN: Final = _code(
    "request.no_origin",
    400,
    "This listener is a forward proxy: send the whole URL in the request line, as clients do that "
    "take it from HTTP_PROXY.",
)
REQUEST_MISDIRECTED: Final = _code(
    "request.misdirected",
    421,
    "The tunnel was opened for another host than the request names (RFC 9110 §15.5.20).",
)
REQUEST_NOT_REDIRECTED: Final = _code(
    "request.not_redirected",
    421,
    "This listener serves connections that redirect rules lead to it, and no others: call the host "
    "itself.",
)
REQUEST_LOOP: Final = _code(
    "request.loop",
    508,
    "A connection of the sidecar's own was redirected to it: the rules must name the workload's "
    "user, and the sidecar must run as another.",
)
REQUEST_TIMEOUT: Final = _code(
    "request.timeout", 408, "The request did not arrive within the time allowed."
)
REQUEST_BODY_MALFORMED: Final = _code(
    "request.body_malformed", 400, "The chunked body is not well-formed (RFC 9112 §7.1)."
)
REQUEST_BODY_TOO_LARGE: Final = _code(
    "request.body_too_large", 413, "The request body exceeds the limit for this route."
)

# --- tunnel: what came through CONNECT is not what it is for --------------------------------------
TUNNEL_EARLY_DATA: Final = _code(
    "tunnel.early_data",
    400,
    "Wait for the answer to CONNECT before you send what is for the tunnel.",
)
TUNNEL_NOT_INTERCEPTED: Final = _code(
    "tunnel.not_intercepted",
    403,
    "The target is reached by HTTPS, and this sidecar has no CA to open tunnels with (settings: "
    "interception).",
)

# --- caller: who may use a listener --------------------------------------------------------------
CALLER_UNAUTHENTICATED: Final = _code(
    "caller.unauthenticated",
    407,
    "This listener wants its token in Proxy-Authorization (Basic, as the password, or Bearer).",
)
CALLER_UID: Final = _code(
    "caller.uid_denied", 403, "This Unix socket is not for processes of this user."
)

# --- tls: how a redirected connection begins -----------------------------------------------------
TLS_HELLO_MALFORMED: Final = _code(
    "tls.hello_malformed",
    400,
    "The connection does not begin with one well-formed TLS ClientHello (RFC 8446 §4.1.2).",
)
TLS_NO_SERVER_NAME: Final = _code(
    "tls.no_server_name",
    400,
    "Name the host in the TLS server_name extension, one DNS name and no address (RFC 6066 §3).",
)

# --- target, route: the settings know no way for this call --------------------------------------
TARGET_NO_MATCH: Final = _code(
    "target.no_match",
    403,
    "No target is configured for this origin, listener, path prefix or Host.",
)
ROUTE_NO_MATCH: Final = _code(
    "route.no_match", 403, "No route of the target allows this method and path."
)

# --- settings: what a workload's owner may take away from the operator's (and not add) -----------
SETTINGS_OWNER_UNUSABLE: Final = _code(
    "settings.owner_unusable",
    503,
    "The routes file of the workload's owner can't be used, so no call leaves; /readyz says why.",
    retry_after=10,
)

# --- mcp: the message in the body (MCP over streamable HTTP, JSON-RPC 2.0) ----------------------
MCP_MALFORMED: Final = _code(
    "mcp.malformed",
    400,
    "The body is not one JSON-RPC 2.0 message that every reader reads alike: UTF-8, no name twice "
    "in an object, no second spelling of a member, at most 64 levels.",
)
MCP_BATCH: Final = _code(
    "mcp.batch", 400, "Send each message by itself: MCP has no batches (since 2025-06-18)."
)
MCP_MEDIA_TYPE: Final = _code(
    "mcp.media_type",
    415,
    "Send the message as application/json in UTF-8, without a content coding.",
)
MCP_HEADER_MISMATCH: Final = _code(
    "mcp.header_mismatch", 400, "Mcp-Method and Mcp-Name must say what the body says, once."
)
MCP_NO_MATCH: Final = _code(
    "mcp.no_match", 403, "No route of the target allows this method or tool."
)

# --- identity, subject: who calls ---------------------------------------------------------------
IDENTITY_UNAVAILABLE: Final = _code(
    "identity.unavailable",
    503,
    "The sidecar has no usable workload identity (token file missing, empty or expired; SPIFFE "
    "agent away for longer than its SVIDs live).",
    retry_after=5,
)
SUBJECT_INVALID: Final = _code(
    "subject.invalid",
    403,
    "The user's token that came with the call is not acceptable: malformed, expired, from an "
    "unknown issuer or for another audience.",
    oauth="invalid_request",
)
SUBJECT_REVOKED: Final = _code(
    "subject.revoked", 403, "The subject's access was revoked.", oauth="invalid_grant"
)
SUBJECT_CONTAINED: Final = _code(
    "subject.contained",
    403,
    "There was an incident about this subject. It gets tokens again once it attests itself anew: "
    "with an identity token that was issued, and a proof key that was made, after the incident "
    "(restart the workload).",
    oauth="invalid_grant",
)
SUBJECT_INACTIVE: Final = _code(
    "subject.inactive",
    403,
    "The directory does not know the user or the workload, or says that it is deactivated.",
    oauth="invalid_grant",
)
ACTOR_INVALID: Final = _code(
    "actor.invalid",
    403,
    "The workload's token is not acceptable to the broker: malformed, expired, from an unknown "
    "issuer or for another audience.",
    oauth="invalid_client",
)
ACTOR_NOT_ALLOWED: Final = _code(
    "actor.not_allowed",
    403,
    "The user's token does not let this workload act for the user (may_act, RFC 8693 §4.4).",
    oauth="invalid_request",
)

ACTOR_KEY_REVOKED: Final = _code(
    "actor.key_revoked",
    403,
    "The key that signed the DPoP proof was revoked: make a new one (restart the sidecar).",
    oauth="invalid_grant",
)
ACTOR_TOO_MANY_KEYS: Final = _code(
    "actor.too_many_keys",
    429,
    "The workload comes with more new proof keys than it may (limits.new_keys of the broker): use "
    "one key for as long as the process runs, and try again later.",
    oauth="temporarily_unavailable",
    retry_after=60,
)
ACTOR_REPLAYED: Final = _code(
    "actor.replayed",
    403,
    "This client assertion was used before: a self-signed assertion is good for one request.",
    oauth="invalid_client",
)
ACTOR_MISMATCH: Final = _code(
    "actor.mismatch",
    403,
    "For a user's token send the acting workload's own token as actor_token, valid and of the same "
    "issuer and subject as the client assertion; for the workload itself send none.",
    oauth="invalid_request",
)

# --- exchange: the parameters of a token request ------------------------------------------------
EXCHANGE_GRANT_TYPE: Final = _code(
    "exchange.grant_type",
    400,
    "The only grant_type is urn:ietf:params:oauth:grant-type:token-exchange (RFC 8693).",
    "unsupported_grant_type",
)
EXCHANGE_TOKEN_TYPE: Final = _code(
    "exchange.token_type",
    400,
    "Token types are urn:ietf:params:oauth:token-type:access_token, :jwt and, for a trust domain "
    "and nothing else, :txn_token; a type comes with its token.",
    oauth="invalid_request",
)
EXCHANGE_CAPABILITY: Final = _code(
    "exchange.capability",
    403,
    "The credential comes with a restriction (one use, MCP messages, the feed) that the caller "
    "does not say it enforces: use a newer sidecar, or send capabilities.",
    oauth="invalid_request",
)
EXCHANGE_CONTEXT: Final = _code(
    "exchange.context",
    400,
    "request_context and request_details go with a request for a transaction token: JSON objects "
    "of at most 2048 bytes, without a token in them, that take back nothing of an earlier one.",
    oauth="invalid_request",
)
EXCHANGE_TARGET: Final = _code(
    "exchange.target",
    400,
    "Name one audience, and at most one resource: absolute, without fragment, of the same target "
    "(RFC 8707).",
    "invalid_target",
)
EXCHANGE_SCOPE: Final = _code(
    "exchange.scope", 400, "Name the scopes, separated by spaces (RFC 6749 §3.3).", "invalid_scope"
)
EXCHANGE_DETAILS: Final = _code(
    "exchange.details",
    400,
    "authorization_details is a JSON array of 1 to 16 valetkey_http_call objects without unknown "
    "members, with locations naming the audience alone.",
    "invalid_authorization_details",
)

# --- dpop: the proof at the token endpoint (RFC 9449) -------------------------------------------
DPOP_MISSING: Final = _code(
    "dpop.missing",
    403,
    "Send one DPoP proof: the target's tokens are bound to a key, or the client's token is one "
    "that may be presented more than once.",
    oauth="invalid_dpop_proof",
)
DPOP_INVALID: Final = _code(
    "dpop.invalid",
    403,
    "The DPoP proof does not hold: form, key, signature, method, URL or time.",
    oauth="invalid_dpop_proof",
)
DPOP_NONCE: Final = _code(
    "dpop.nonce",
    403,
    "Repeat the request with a proof that carries the nonce of the DPoP-Nonce header.",
    oauth="use_dpop_nonce",
)
DPOP_REPLAYED: Final = _code(
    "dpop.replayed",
    403,
    "This DPoP proof was used before: make a fresh one for each request.",
    oauth="invalid_dpop_proof",
)

# --- mtls: client certificates (RFC 8705) --------------------------------------------------------
MTLS_MISSING: Final = _code(
    "mtls.missing",
    403,
    "The target's tokens are bound to a client certificate: come with one, to the endpoint that "
    "mtls_endpoint_aliases of the metadata names.",
    oauth="invalid_request",
)
MTLS_INVALID: Final = _code(
    "mtls.invalid",
    401,
    "The client certificate is not acceptable: chain, time, trust domain, or not one SPIFFE ID.",
    oauth="invalid_client",
)
MTLS_HEADER: Final = _code(
    "mtls.header",
    400,
    "A certificate in Client-Cert is taken from the broker's own TLS terminator alone.",
    oauth="invalid_request",
)
MTLS_MISMATCH: Final = _code(
    "mtls.mismatch",
    401,
    "The token is bound to a key or certificate that did not come with the request.",
    oauth="invalid_token",
)

# --- grant: the policy says no ------------------------------------------------------------------
GRANT_SUSPENDED: Final = _code(
    "grant.suspended",
    403,
    "An incident suspends this target, or the grant for it, for everybody.",
    oauth="invalid_target",
)
GRANT_MISSING: Final = _code(
    "grant.missing", 403, "No grant gives this workload access to the target.", "invalid_target"
)
GRANT_SCOPE: Final = _code(
    "grant.scope",
    403,
    "A grant exists, but not for the scopes that the route needs.",
    "invalid_scope",
)
GRANT_CONDITION: Final = _code(
    "grant.condition",
    403,
    "A grant exists, but not for this method and path, or not for this MCP method and tool.",
    "invalid_authorization_details",
)

GRANT_OUTSIDE_WINDOW: Final = _code(
    "grant.outside_window",
    403,
    "A grant exists, but not for now: it has not begun, or its deployment window is not open.",
    "invalid_target",
)
GRANT_USED_UP: Final = _code(
    "grant.used_up", 403, "A grant exists, but all of its uses are spent.", "invalid_target"
)
GRANT_ENDED: Final = _code(
    "grant.ended", 403, "A grant existed, but has ended or was revoked.", "invalid_target"
)
GRANT_CONFLICT: Final = _code(
    "grant.conflict",
    409,
    "Another grant has this id, with other content: choose another id.",
)
GRANT_UNKNOWN: Final = _code("grant.unknown", 404, "There is no grant of this id.")
GRANT_OF_FILE: Final = _code(
    "grant.of_file",
    409,
    "The grant stands in the grants file: take it out there, the API can't revoke it.",
)

# --- window: a deployment announces itself, and its end -----------------------------------------
WINDOW_DENIED: Final = _code(
    "window.denied",
    403,
    "No deployment grant of this id lets the token's identity open or close a window.",
)
WINDOW_ENDED: Final = _code(
    "window.ended",
    409,
    "The window that was opened with this token has ended: announce again with a fresh token.",
)
WINDOW_UNKNOWN: Final = _code("window.unknown", 404, "There is no window of this id.")

# --- policy: the Cedar policies say no -----------------------------------------------------------
POLICY_DENIED: Final = _code(
    "policy.denied",
    403,
    "A policy forbids this call, or none permits it.",
    "invalid_target",
)
POLICY_ERROR: Final = _code(
    "policy.error",
    403,
    "A policy could not be evaluated for this call, which is a deny; the broker's log says which.",
    "invalid_target",
)
POLICY_OPEN: Final = _code(
    "policy.open",
    403,
    "A policy looks at what the request leaves open (path, method, tool): ask for one call, with "
    "per_request on the route.",
    "invalid_authorization_details",
)

# --- approval: a person has to say yes ----------------------------------------------------------
APPROVAL_REQUIRED: Final = _code(
    "approval.required",
    403,
    "A person has to approve this call. It was put before them under the id given; repeat it once "
    "they have decided.",
    oauth="interaction_required",
    retry_after=15,
)
APPROVAL_PENDING: Final = _code(
    "approval.pending",
    403,
    "A person has to approve this call, and has not decided yet; repeat it later.",
    oauth="authorization_pending",
    retry_after=5,
)
APPROVAL_SLOW_DOWN: Final = _code(
    "approval.slow_down",
    400,
    "Asked again too soon: wait for the interval given, and five seconds more from now on "
    "(RFC 8628 §3.5).",
    oauth="slow_down",
)
APPROVAL_DENIED: Final = _code(
    "approval.denied", 403, "The approval was denied or taken back.", oauth="access_denied"
)
APPROVAL_EXPIRED: Final = _code(
    "approval.expired",
    403,
    "Nobody decided in time, or the approval has run out: repeat the call to ask anew.",
    oauth="expired_token",
)
APPROVAL_CODE: Final = _code(
    "approval.code_invalid",
    400,
    "The deferral code is unknown, was used, belongs to another client or key, or what was asked "
    "for can't be had any more: begin with a new token exchange.",
    oauth="invalid_grant",
)
APPROVAL_PURPOSE: Final = _code(
    "approval.purpose",
    400,
    "purpose is at most 500 characters long, without control characters.",
    oauth="invalid_request",
)
APPROVAL_NOT_ASKED: Final = _code(
    "approval.not_asked",
    403,
    "This route wants calls that a person approved, and no policy of the broker asks for one.",
)
APPROVAL_SELF: Final = _code(
    "approval.self", 403, "Who asks does not approve: neither for themselves nor as an actor."
)
APPROVAL_NOT_ELIGIBLE: Final = _code(
    "approval.not_eligible",
    403,
    "Policy wants approvers with another role, or of another group.",
)
APPROVAL_VOTED: Final = _code(
    "approval.voted", 409, "You have approved this already; the quorum counts people."
)
APPROVAL_CLOSED: Final = _code(
    "approval.closed", 409, "It is no longer in a state in which this can be done."
)
APPROVAL_TERMS: Final = _code(
    "approval.terms", 400, "Policy does not allow that many uses, or that long a time."
)

# --- broker: the policy could not be asked ------------------------------------------------------
BROKER_UNAVAILABLE: Final = _code(
    "broker.unavailable",
    503,
    "The broker can't be reached and no valid credential is cached; try again.",
    oauth="temporarily_unavailable",
    retry_after=5,
)
BROKER_REFUSED: Final = _code(
    "broker.refused", 403, "The broker refused the exchange.", oauth="invalid_request"
)
BROKER_BAD_RESPONSE: Final = _code(
    "broker.bad_response",
    502,
    "The broker answered with something that is not a usable credential.",
    retry_after=5,
)

# --- target: the way to the target --------------------------------------------------------------
TARGET_ADDRESS_DENIED: Final = _code(
    "target.address_denied",
    403,
    "The target's name resolves to an address that the settings do not allow.",
)
TARGET_UNREACHABLE: Final = _code(
    "target.unreachable", 502, "No connection to the target could be made.", retry_after=1
)
TARGET_TLS: Final = _code(
    "target.tls_failed", 502, "The target's certificate could not be verified."
)
TARGET_TIMEOUT: Final = _code(
    "target.timeout", 504, "The target did not answer within the time allowed.", retry_after=1
)
TARGET_CLOSED: Final = _code(
    "target.closed", 502, "The target closed the connection before it answered.", retry_after=1
)
TARGET_ENCODED: Final = _code(
    "target.encoded",
    502,
    "Answers of this route are searched for the credential, and the target encoded this one, or a "
    "part of it, although it was asked not to.",
)
TARGET_BAD_RESPONSE: Final = _code(
    "target.bad_response", 502, "The target's answer is not well-formed HTTP/1.1 (RFC 9112)."
)

# --- interception: TLS between the client and this sidecar ---------------------------------------
INTERCEPTION_NO_CERTIFICATE: Final = _code(
    "interception.no_certificate",
    502,
    "The sidecar can't make a certificate for this host: its CA has expired or is constrained to "
    "other names.",
)
INTERCEPTION_NOT_TLS: Final = _code(
    "interception.not_tls", 400, "Only TLS is spoken in a tunnel to this host."
)
INTERCEPTION_SERVER_NAME: Final = _code(
    "interception.server_name",
    421,
    "The server name in the TLS handshake (SNI, RFC 6066) must be the host of the tunnel.",
)
INTERCEPTION_UNTRUSTED: Final = _code(
    "interception.untrusted",
    400,
    "The client refused the sidecar's certificate: let it trust the sidecar's CA.",
)
INTERCEPTION_HANDSHAKE_FAILED: Final = _code(
    "interception.handshake_failed", 400, "The TLS handshake between client and sidecar failed."
)

# --- stream: an answer or a connection that lasts, decided on again -----------------------------
STREAM_EXPIRED: Final = _code(
    "stream.expired", 403, "The credential of this stream ended before there was a new one."
)
STREAM_REROUTED: Final = _code(
    "stream.rerouted", 403, "The settings now lead this call to another place: open it anew."
)
STREAM_IDLE: Final = _code(
    "stream.idle", 504, "Nothing came through this stream for as long as timeouts.stream."
)

# --- audit, proxy: this sidecar itself ----------------------------------------------------------
AUDIT_UNAVAILABLE: Final = _code(
    "audit.unavailable",
    503,
    "The decision can't be put on record (spool full or disk failing), so the call may not leave.",
    retry_after=5,
)
PROXY_DRAINING: Final = _code("proxy.draining", 503, "The sidecar is shutting down.", retry_after=1)
PROXY_OVERLOADED: Final = _code(
    "proxy.overloaded", 503, "The sidecar has no connection to spare; try again.", retry_after=1
)
PROXY_INTERNAL: Final = _code(
    "proxy.internal", 500, "The sidecar failed on this call; the reason is in its log."
)

# --- feed: how sidecars and other receivers learn what has ended ----------------------------------
FEED_LOST: Final = _code(
    "feed.lost",
    503,
    "The sidecar does not hear from the broker what was revoked, and its settings let no call "
    "leave like that.",
    retry_after=5,
)
FEED_NO_STREAM: Final = _code(
    "feed.no_stream",
    404,
    "There is no such stream (any more): forget what rests on it, and create a new one.",
)
FEED_TOO_MANY_STREAMS: Final = _code(
    "feed.too_many_streams", 409, "This identity has as many streams as it may: delete one."
)

# --- service: the broker's and the collector's own endpoints ------------------------------------
SERVICE_NOT_FOUND: Final = _code("service.not_found", 404, "There is no such endpoint.")
SERVICE_METHOD: Final = _code(
    "service.method_not_allowed", 405, "The endpoint does not take this method."
)
SERVICE_BAD_REQUEST: Final = _code(
    "service.bad_request", 400, "The request can't be understood.", oauth="invalid_request"
)
SERVICE_UNAUTHENTICATED: Final = _code(
    "service.unauthenticated",
    401,
    "Authenticate with a token of a trusted issuer.",
    "invalid_client",
)
SERVICE_FORBIDDEN: Final = _code(
    "service.forbidden", 403, "The authenticated caller may not do this.", "unauthorized_client"
)
SERVICE_MEDIA_TYPE: Final = _code(
    "service.media_type", 415, "The request body is not of the media type of this endpoint."
)
SERVICE_TOO_LARGE: Final = _code("service.too_large", 413, "The request body is too large.")
SERVICE_RATE_LIMITED: Final = _code(
    "service.rate_limited",
    429,
    "The caller sends more requests than it may; wait and try again.",
    oauth="temporarily_unavailable",
    retry_after=1,
)
SERVICE_INTERNAL: Final = _code(
    "service.internal",
    500,
    "The service failed on this request; the reason is in its log.",
    oauth="server_error",
)
SERVICE_UNAVAILABLE: Final = _code(
    "service.unavailable",
    503,
    "The service is not ready; try again.",
    oauth="temporarily_unavailable",
    retry_after=5,
)

# --- incident: what administrators do about them ------------------------------------------------
INCIDENT_UNKNOWN: Final = _code("incident.unknown", 404, "There is no incident of this id.")
INCIDENT_TOKEN_UNKNOWN: Final = _code(
    "incident.token_unknown",
    422,
    "This is no token of the broker's, nor one that holds of an issuer that it trusts: name the "
    "subject instead.",
)
INCIDENT_OPEN: Final = _code(
    "incident.open",
    409,
    "The incident can't be closed: its subject has not attested itself since, or it is closed.",
)

# --- audit: what the collector refuses to put on record -----------------------------------------
AUDIT_BATCH_INVALID: Final = _code(
    "audit.batch_invalid",
    400,
    "Send a JSON array of well-formed events of one source and one boot (CloudEvents 1.0.2).",
)
AUDIT_SOURCE_TAKEN: Final = _code(
    "audit.source_taken",
    403,
    "Another identity writes this source: a source belongs to the workload that was seen first.",
)
AUDIT_CONFLICT: Final = _code(
    "audit.conflict",
    409,
    "An event of this id is on record with other bytes: nothing of the batch was stored.",
)

AUDIT_HANDOFF_UNAVAILABLE: Final = _code(
    "audit.handoff_unavailable",
    503,
    "The batch is stored, but could not be handed on, and settings acknowledge none like that: "
    "send it again.",
    retry_after=5,
)

# --- inject: what the injector says of a pod ----------------------------------------------------
INJECT_NOT_A_POD: Final = _code("inject.not_a_pod", 400, "This is not a well-formed pod.")
INJECT_ANNOTATION_UNKNOWN: Final = _code(
    "inject.annotation_unknown", 422, "There is no such annotation under valetkey/."
)
INJECT_INJECT_INVALID: Final = _code(
    "inject.inject_invalid", 422, "valetkey/inject is true or false."
)
INJECT_MODE_INVALID: Final = _code(
    "inject.mode_invalid", 422, "valetkey/mode is forward, reverse or transparent."
)
INJECT_TARGETS_INVALID: Final = _code(
    "inject.targets_invalid",
    422,
    "valetkey/targets lists names of targets, each once, with commas between them and no spaces.",
)
INJECT_ROUTES_INVALID: Final = _code(
    "inject.routes_invalid", 422, "valetkey/routes is the name of a ConfigMap."
)
INJECT_RESOURCES_INVALID: Final = _code(
    "inject.resources_invalid",
    422,
    "valetkey/resources is an object with requests and limits, each of cpu, memory and "
    "ephemeral-storage, as in a container; no request is larger than its limit.",
)
INJECT_TARGET_UNKNOWN: Final = _code(
    "inject.target_unknown", 403, "The injector's settings have no target of this name."
)
INJECT_OPERATOR_MISSING: Final = _code(
    "inject.operator_missing",
    503,
    "The operator's file is not in this namespace yet; the injector is putting it there.",
    retry_after=5,
)
INJECT_OPERATOR_PROTECTED: Final = _code(
    "inject.operator_protected",
    403,
    "The operator's file is written by the injector alone; narrow it by one of your own.",
)
INJECT_OPT_OUT: Final = _code(
    "inject.opt_out", 403, "Pods of this cluster may not go without a sidecar."
)
INJECT_NAME_TAKEN: Final = _code(
    "inject.name_taken",
    409,
    "A container or volume is named as the sidecar's and is not what the injector would put there: "
    "rename it, or inject into the pod as it was before.",
)
INJECT_TOKEN_MOUNTED: Final = _code(
    "inject.token_mounted", 403, "Only the sidecar may mount its token and its key."
)
INJECT_TOKEN_REQUESTED: Final = _code(
    "inject.token_requested",
    403,
    "A volume asks for a token that broker or collector would take: only the sidecar has one.",
)
INJECT_VOLUME_MOUNTED: Final = _code(
    "inject.volume_mounted", 403, "A container mounts a volume of the sidecar's."
)
INJECT_PATH_TAKEN: Final = _code(
    "inject.path_taken", 409, "A container mounts something where the sidecar's CA belongs."
)
INJECT_PORT_TAKEN: Final = _code(
    "inject.port_taken", 409, "A container uses a port of the sidecar's: 7070 to 7073."
)
INJECT_HOST_NETWORK: Final = _code(
    "inject.host_network",
    403,
    "On the host's network every process of the node could call through the sidecar.",
)
INJECT_SHARED_PROCESSES: Final = _code(
    "inject.shared_processes",
    403,
    "With shared process namespaces the workload could read the sidecar's files.",
)
INJECT_OS: Final = _code("inject.os", 422, "The sidecar runs on Linux only.")
INJECT_NEVER_ENDS: Final = _code(
    "inject.never_ends",
    422,
    "Without native sidecars (Kubernetes 1.29) a pod that is to end would not.",
)
INJECT_REDIRECT_OFF: Final = _code(
    "inject.redirect_off", 403, "The injector's settings have no redirect: transparent mode is off."
)
INJECT_REDIRECT_USER: Final = _code(
    "inject.redirect_user",
    422,
    "Transparent mode goes by user: each container needs a runAsUser that is not 0.",
)
INJECT_SAME_USER: Final = _code(
    "inject.same_user",
    403,
    "A container runs as the sidecar's user: the redirect would cut it off.",
)
INJECT_SIDECAR_MISSING: Final = _code(
    "inject.sidecar_missing", 403, "The pod lacks the sidecar, or a part of it."
)
INJECT_SIDECAR_CHANGED: Final = _code(
    "inject.sidecar_changed", 403, "The pod's sidecar is not the one that was put there."
)


def by_name(name: str) -> Code | None:
    """The code of that dotted name, or ``None`` where none is defined."""
    return _ALL.get(name)


@dataclass(frozen=True, slots=True)
class CommandCode:
    """Why a command did nothing (exit status 2). ``help`` is what it says, for whoever runs it."""

    name: str
    help: str

    @property
    def family(self) -> str:
        """The part before the dot: the command."""
        return self.name.partition(".")[0]


_OF_COMMANDS: dict[str, CommandCode] = {}


def _command_code(name: str, help_: str) -> CommandCode:
    code = CommandCode(name, help_)
    assert name not in _OF_COMMANDS, name
    _OF_COMMANDS[name] = code
    return code


# --- reseal: `valetkey reseal` changed nothing --------------------------------------------------
RESEAL_SAME_KEY: Final = _command_code(
    "reseal.same_key", "The old and the new master key are the same: make a new one."
)
RESEAL_NO_DATABASE: Final = _command_code(
    "reseal.no_database", "There is no such database file; the command makes none."
)
RESEAL_IN_USE: Final = _command_code(
    "reseal.in_use", "The database is in use: stop every broker, and end what else has it open."
)
RESEAL_OTHER_VERSION: Final = _command_code(
    "reseal.other_version",
    "Another version ran last on the database: use that one, or start this one's broker first.",
)
RESEAL_WRONG_KEY: Final = _command_code(
    "reseal.wrong_key",
    "A value opens under neither key: give the right old key, or the database was changed.",
)
RESEAL_DATABASE: Final = _command_code(
    "reseal.database", "The database can't be used; the kind of its error is named."
)

# --- restored: `valetkey restored` changed nothing ----------------------------------------------
RESTORED_NO_DATABASE: Final = _command_code(
    "restored.no_database", "There is no such database file: put the backup in its place first."
)
RESTORED_IN_USE: Final = _command_code(
    "restored.in_use", "The database is in use: stop every broker, and end what else has it open."
)
RESTORED_DATABASE: Final = _command_code(
    "restored.database", "The database can't be used; the kind of its error is named."
)
RESTORED_UNDECLARED: Final = _command_code(
    "restored.undeclared",
    "The broker does not start: its database is a copy, or was moved. Run valetkey restored first.",
)


@dataclass(frozen=True, slots=True)
class SettingsCode:
    """Why a settings file, or a route of one, is not in force in a running sidecar."""

    name: str
    help: str


_OF_SETTINGS: dict[str, SettingsCode] = {}


def _settings_code(name: str, help_: str) -> SettingsCode:
    code = SettingsCode(name, help_)
    assert name not in _OF_SETTINGS, name
    assert name not in _ALL, name
    _OF_SETTINGS[name] = code
    return code


# --- settings: what a sidecar does not take up, and goes on without ------------------------------
SETTINGS_UNREADABLE: Final = _settings_code(
    "settings.unreadable", "The file is missing, or can't be read."
)
SETTINGS_TOO_LARGE: Final = _settings_code(
    "settings.too_large", "The file is larger than is taken."
)
SETTINGS_INVALID: Final = _settings_code(
    "settings.invalid", "The file is not what settings must be; file, line and key are named."
)
SETTINGS_RESTART: Final = _settings_code(
    "settings.restart", "The file changes what is read only at the start."
)
SETTINGS_WIDENS: Final = _settings_code(
    "settings.widens",
    "A route of the workload's owner allows more than the operator's does; both are named.",
)


def by_settings_name(name: str) -> SettingsCode | None:
    """The code of settings with this dotted name, if it is one of ours."""
    return _OF_SETTINGS.get(name)


def settings_codes() -> tuple[SettingsCode, ...]:
    """Every code of settings that are not in force, in the order of definition."""
    return tuple(_OF_SETTINGS.values())


def command_codes() -> tuple[CommandCode, ...]:
    """Every code of a command, in the order of definition."""
    return tuple(_OF_COMMANDS.values())


def by_command_name(name: str) -> CommandCode | None:
    """The command's code with this dotted name, if it is one of ours."""
    return _OF_COMMANDS.get(name)


def all_codes() -> tuple[Code, ...]:
    """Every code, in the order of definition."""
    return tuple(_ALL.values())

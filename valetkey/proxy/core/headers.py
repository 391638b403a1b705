"""Which header fields of a call go on, and which never do.

Order of work: names that belong to one hop are taken out first (RFC 9110 §7.6.1), then every
inbound copy of a managed header, and the credential is put in last, by the caller of this module.
What would make the target take the call for another one than was decided on is refused.

Names are compared in one normal form in which whatever is no letter or digit is ``-``, since many
targets read them alike (CGI and what descends from it: RFC 3875 §4.1.18).

Fields come as ``(normal name, raw name, raw value)`` and keep their order and spelling.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

Field = tuple[str, bytes, bytes]

# RFC 9110 §7.6.1 and what older software treats as hop-by-hop. `te` is not offered to targets:
# trailers are not relayed. `proxy` is no field of HTTP, but CGI makes HTTP_PROXY of it (httpoxy).
HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade", "proxy-authenticate", "proxy-authentication-info", "http2-settings", "proxy",
})  # fmt: skip

# Credentials that a workload may carry, knowingly or not; all are replaced by ours.
MANAGED: Final = frozenset({
    "authorization", "proxy-authorization", "dpop", "txn-token", "cookie",
    "x-api-key", "api-key", "apikey", "x-auth-token", "x-access-token", "private-token",
    "job-token", "deploy-token", "x-amz-security-token", "x-goog-api-key",
    "x-goog-iam-authorization-token", "ocp-apim-subscription-key", "x-functions-key",
    "x-vault-token", "x-shopify-access-token", "dd-api-key", "dd-application-key",
})  # fmt: skip

# Passing these through would let a caller speak with a credential of its own.
ALWAYS_MANAGED: Final = frozenset({"authorization", "proxy-authorization", "dpop", "txn-token"})

# By one of these a target may serve another call than the one that was decided on: frameworks and
# gateways take from it the method, the path (SCRIPT_NAME and PATH_INFO: CGI's own, gunicorn) or
# the host. `forwarded` belongs here where it has a host (RFC 7239 §5.3).
OVERRIDES: Final = frozenset({
    "x-http-method-override", "x-http-method", "x-method-override", "x-original-method",
    "x-forwarded-method",
    "x-original-url", "x-rewrite-url", "x-override-url", "x-original-uri", "x-forwarded-uri",
    "x-envoy-original-path", "script-name", "path-info",
    "x-forwarded-host", "x-original-host", "x-http-host-override", "x-host", "forwarded",
})  # fmt: skip
_FORWARDED_HOST: Final = re.compile(rb"(?:^|[;,])[ \t]*host[ \t]*=", re.IGNORECASE)

# One value each (RFC 9110 §5.3; RFC 4918 §10.3), on which it hangs what the request asks for: of
# two, one reader takes the first and another the last.
SINGLE: Final = ("content-type", "content-range", "range", "if-range", "origin", "destination")

# RFC 6455 §11.3: of a handshake, which is written anew where there is one (`http1.upgrade`).
HANDSHAKE: Final = frozenset({
    "sec-websocket-key", "sec-websocket-version", "sec-websocket-protocol",
    "sec-websocket-extensions", "sec-websocket-accept",
})  # fmt: skip

# What the workload says that a call is for: people who approve it read that, no target does.
PURPOSE: Final = "x-valetkey-purpose"

# The sidecar writes these itself, or they are for it.
_OWN: Final = frozenset({"host", "content-length", "via", PURPOSE}) | HANDSHAKE

# A Connection list that names one of these would make the next hop drop it (smuggling by
# hop-by-hop removal); no honest client does.
_NEVER_LISTED: Final = MANAGED | HANDSHAKE | {
    "host", "content-length", "content-type", "content-encoding", "content-range", "via",
    "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "traceparent",
    "tracestate", "cache-control", "expect", "range",
}  # fmt: skip

# RFC 6750 §2.3, the common spellings of keys in queries, and signatures that are a credential.
CREDENTIAL_PARAMETERS: Final = frozenset({
    "access_token", "api_key", "apikey", "x_api_key", "auth_token", "client_secret",
    "x_amz_security_token", "x_amz_signature", "x_goog_signature",
})  # fmt: skip

# What frameworks take for the method, in the query as in a form (Symfony, WordPress, Jersey).
OVERRIDE_PARAMETERS: Final = frozenset({"_method"})

_SEPARATOR: Final = re.compile(r"[^a-z0-9]")

# What a target says about credentials is for the sidecar, not for the workload (RFC 9110 §11,
# RFC 9449 §8, RFC 8053). Alt-Svc (RFC 7838) would lead a client to the target around the sidecar.
RESPONSE_STRIPPED: Final = frozenset({
    "www-authenticate", "authentication-info", "dpop-nonce", "optional-www-authenticate",
    "authentication-control", "alt-svc",
})  # fmt: skip
# All that is said between proxies, but for the report on them that is meant for the client too
# (RFC 9209 §2).
_PROXY: Final = "proxy-"
_PROXY_STATUS: Final = "proxy-status"

# A session that was begun with the injected credential is the sidecar's (RFC 6265 §4.1, RFC 2965).
SESSION: Final = frozenset({"set-cookie", "set-cookie2"})

# What a target says of an answer as a whole, byte for byte (RFC 9110 §8.8.3, RFC 9530): untrue of
# one from which something was taken out.
OF_THE_WHOLE: Final = frozenset({
    "etag", "content-digest", "repr-digest", "digest", "content-md5", "accept-ranges",
})  # fmt: skip


# Asked for, these would make an answer one that can't be read here.
_UNREADABLE: Final = frozenset({"accept-encoding", "range", "if-range"})
# RFC 9110 §12.5.3: no Accept-Encoding at all would mean that any coding is welcome.
_IDENTITY: Final = b"accept-encoding: identity\r\n"


class HeaderPolicy:
    """What one target manages on top of `MANAGED`, and what it lets through of it.

    Equality is identity: one per target and snapshot, and a quick key.
    """

    __slots__ = ("added", "dropped", "managed", "passes_sessions", "refused", "subject")

    def __init__(
        self,
        managed: frozenset[str],
        refused: frozenset[str],
        subject: str,
        dropped: frozenset[str] = _OWN,
        added: bytes = b"",
    ) -> None:
        self.managed = managed
        self.refused = refused
        self.subject = subject
        self.dropped = dropped
        """What does not go on and is no credential."""
        self.added = added
        """Lines of our own, behind the caller's."""
        self.passes_sessions = "cookie" not in managed
        """Whether cookies are the workload's own: they go in and come back."""

    def without(self, names: Iterable[str], added: bytes = b"") -> HeaderPolicy:
        """The same, with more names (in normal form) that do not go on, and lines that do."""
        return HeaderPolicy(
            self.managed,
            self.refused,
            self.subject,
            self.dropped.union(names),
            self.added + added,
        )

    def for_reading(self) -> HeaderPolicy:
        """The same, for a call whose answer is read here: whole, and without a content coding."""
        return self.without(_UNREADABLE, _IDENTITY)

    @classmethod
    def of(
        cls, *, injected: str | None, subject_header: str, passed: Iterable[str]
    ) -> HeaderPolicy:
        """``injected`` is the header that the credential goes into, if it has a name of its own."""
        let_through = {normal(name) for name in passed}
        names = set(MANAGED - let_through)
        names.add(normal(subject_header))
        if injected:
            names.add(normal(injected))
        managed = frozenset(names | ALWAYS_MANAGED)
        return cls(managed, OVERRIDES - let_through - managed, normal(subject_header))


def normal(name: str) -> str:
    """Lower case, and ``-`` for all that is no letter or digit."""
    return _SEPARATOR.sub("-", name.lower())


def request_fields(
    fields: Iterable[Field], listed: frozenset[str], policy: HeaderPolicy
) -> tuple[bytes, tuple[str, ...]]:
    """The header lines to send on, and the names of the credentials that were dropped.

    The user's token in the subject header does not go on either, but is not among those: it is
    what the call is decided by.

    ``listed`` are the normal names in ``Connection``; see `check_connection`.
    """
    lines: list[bytes] = []
    dropped: list[str] = []
    for name, raw, value in fields:
        if name in policy.managed:
            if name != policy.subject:
                dropped.append(name)
        elif name in HOP_BY_HOP or name in listed or name in policy.dropped:
            continue
        else:
            lines.append(b"%b: %b\r\n" % (raw, value))
    return b"".join(lines) + policy.added, tuple(dropped)


def check_connection(listed: frozenset[str], policy: HeaderPolicy) -> None:
    """Refuse a ``Connection`` list that names a header with a meaning beyond this hop."""
    if listed & _NEVER_LISTED or listed & policy.managed:
        raise CallerError(codes.REQUEST_CONNECTION_HEADER, "Connection names an end-to-end header")


def check_overrides(names: Mapping[str, list[bytes]], policy: HeaderPolicy) -> None:
    """Refuse what would have the target serve another method, path or host. Raises `CallerError`.

    ``names``: the values of each field, by normal name.
    """
    for name in policy.refused.intersection(names):
        if name != "forwarded" or any(map(_FORWARDED_HOST.search, names[name])):
            raise CallerError(codes.REQUEST_OVERRIDE, f"the header {name}")


def check_single(names: Mapping[str, list[bytes]]) -> None:
    """Refuse fields of one value that occur twice. Raises `CallerError`."""
    for name in SINGLE:
        if len(names.get(name, ())) > 1:
            raise CallerError(codes.REQUEST_REPEATED_HEADER, f"{name} twice")


def response_fields(fields: Iterable[Field], listed: frozenset[str]) -> bytes:
    """The header lines of a response that go on to the workload, without framing and sessions."""
    return b"".join(
        b"%b: %b\r\n" % (raw, value)
        for name, raw, value in fields
        if name not in HOP_BY_HOP
        and name not in RESPONSE_STRIPPED
        and name not in SESSION
        and name != "content-length"
        and name not in listed
        and (not name.startswith(_PROXY) or name == _PROXY_STATUS)
    )


def session_fields(fields: Iterable[Field]) -> bytes:
    """The lines of a response that set cookies; see `HeaderPolicy.passes_sessions`."""
    return b"".join(b"%b: %b\r\n" % (raw, value) for name, raw, value in fields if name in SESSION)

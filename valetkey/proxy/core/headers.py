"""Which header fields of a call go on, and which never do.

Order of work: names that belong to one hop are taken out first (RFC 9110 §7.6.1), then every
inbound copy of a managed header, and the credential is put in last, by the caller of this module.
Names are compared in one normal form in which ``_`` is ``-``, since many targets read them alike.

Fields come as ``(normal name, raw name, raw value)`` and keep their order and spelling.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

Field = tuple[str, bytes, bytes]

# RFC 9110 §7.6.1 and what older software treats as hop-by-hop. `te` is not offered to targets:
# trailers are not relayed.
HOP_BY_HOP: Final = frozenset({
    "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding",
    "upgrade", "proxy-authenticate", "proxy-authentication-info", "http2-settings",
})  # fmt: skip

# Credentials that a workload may carry, knowingly or not; all are replaced by ours.
MANAGED: Final = frozenset({
    "authorization", "proxy-authorization", "dpop", "txn-token", "cookie",
    "x-api-key", "api-key", "apikey", "x-auth-token", "x-access-token", "private-token",
    "x-amz-security-token", "x-goog-iam-authorization-token", "ocp-apim-subscription-key",
})  # fmt: skip

# Passing these through would let a caller speak with a credential of its own.
ALWAYS_MANAGED: Final = frozenset({"authorization", "proxy-authorization", "dpop", "txn-token"})

# The sidecar writes these itself.
_OWN: Final = frozenset({"host", "content-length", "via"})

# A Connection list that names one of these would make the next hop drop it (smuggling by
# hop-by-hop removal); no honest client does.
_NEVER_LISTED: Final = MANAGED | {
    "host", "content-length", "content-type", "content-encoding", "content-range", "via",
    "forwarded", "x-forwarded-for", "x-forwarded-host", "x-forwarded-proto", "traceparent",
    "tracestate", "cache-control", "expect", "range",
}  # fmt: skip

# RFC 6750 §2.3 and the common spellings of keys in queries.
CREDENTIAL_PARAMETERS: Final = frozenset(
    {"access_token", "api_key", "apikey", "api-key", "x-api-key", "auth_token", "client_secret"}
)

# What a target says about credentials is for the sidecar, not for the workload.
RESPONSE_STRIPPED: Final = frozenset(
    {"www-authenticate", "authentication-info", "dpop-nonce", "proxy-authenticate",
     "proxy-authentication-info"}
)  # fmt: skip


class HeaderPolicy:
    """What one target manages on top of `MANAGED`, and what it lets through of it.

    Equality is identity: one per target and snapshot, and a quick key.
    """

    __slots__ = ("managed", "subject")

    def __init__(self, managed: frozenset[str], subject: str) -> None:
        self.managed = managed
        self.subject = subject

    @classmethod
    def of(
        cls, *, injected: str | None, subject_header: str, passed: Iterable[str]
    ) -> HeaderPolicy:
        """``injected`` is the header that the credential goes into, if it has a name of its own."""
        names = set(MANAGED - {normal(name) for name in passed})
        names.add(normal(subject_header))
        if injected:
            names.add(normal(injected))
        return cls(frozenset(names | ALWAYS_MANAGED), normal(subject_header))


def normal(name: str) -> str:
    """Lower case, ``_`` as ``-``."""
    return name.lower().replace("_", "-")


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
        elif name in HOP_BY_HOP or name in listed or name in _OWN:
            continue
        else:
            lines.append(b"%b: %b\r\n" % (raw, value))
    return b"".join(lines), tuple(dropped)


def check_connection(listed: frozenset[str], policy: HeaderPolicy) -> None:
    """Refuse a ``Connection`` list that names a header with a meaning beyond this hop."""
    if listed & _NEVER_LISTED or listed & policy.managed:
        raise CallerError(codes.REQUEST_CONNECTION_HEADER, "Connection names an end-to-end header")


def response_fields(fields: Iterable[Field], listed: frozenset[str]) -> bytes:
    """The header lines of a response that go on to the workload, without framing."""
    return b"".join(
        b"%b: %b\r\n" % (raw, value)
        for name, raw, value in fields
        if name not in HOP_BY_HOP
        and name not in RESPONSE_STRIPPED
        and name != "content-length"
        and name not in listed
    )

"""Grants as people write them: in the grants file, and in the body of the API."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal

import msgspec

from valetkey.broker.core.approvals import ApprovalRuleSettings
from valetkey.broker.core.patterns import PathPattern, WorkloadPattern
from valetkey.contracts.mcp import message_patterns
from valetkey.contracts.settings import Duration, Settings, plain

# RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
# RFC 9110 §5.6.2 token; the methods themselves are case-sensitive (§9.1).
METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
# A deployment that takes longer is announced again.
MAX_WINDOW: Final = 86_400.0
_MAX_USES: Final = 1_000_000_000
_MAX_NOTE: Final = 1024
_MAX_CLAIM: Final = 1024
GRANT_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


class McpConditionSettings(Settings, frozen=True, kw_only=True, omit_defaults=True):
    """Messages of MCP that a grant is good for, as in the sidecar's routes.

    ``methods`` are JSON-RPC methods, ``tools`` the tools of ``tools/call`` (left out: any). Each
    is a name, or has one ``*`` for any run of characters.
    """

    methods: tuple[str, ...]
    tools: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if not self.methods or (self.tools is not None and not self.tools):
            raise ValueError("methods and tools are non-empty lists; leave tools out for any")
        patterns = message_patterns(self.methods, self.tools or ())
        if self.tools and not any(pattern.calls_tools for pattern in patterns):
            raise ValueError("tools without tools/call among the methods")


class ConditionSettings(Settings, frozen=True, kw_only=True, omit_defaults=True):
    """Calls that a grant is good for: these methods on the paths of this pattern.

    With ``mcp``, only calls that carry such a message; without, whatever they carry.
    """

    methods: tuple[str, ...]
    path: str
    mcp: McpConditionSettings | None = None

    def __post_init__(self) -> None:
        if not self.methods or not all(METHOD.fullmatch(method) for method in self.methods):
            raise ValueError("methods must be a non-empty list of HTTP methods in capitals")
        PathPattern.parse(self.path)


# RFC 3339, always with its offset: no two readers take it for different times.
Timestamp = Annotated[datetime, msgspec.Meta(tz=True)]


class OpenerSettings(Settings, frozen=True, kw_only=True, omit_defaults=True):
    """An identity that may open a window: a CI job, by its OIDC token.

    ``issuer`` is the exact issuer of the token, ``subject`` its exact subject, ``claims`` the exact
    text of claims that it must have. At least one of ``subject`` and ``claims`` is needed; where
    both are given, both must hold.
    """

    issuer: str
    subject: str | None = None
    claims: dict[str, str] | None = None

    def __post_init__(self) -> None:
        if not self.issuer:
            raise ValueError("issuer must not be empty")
        if self.subject is None and self.claims is None:
            raise ValueError("give subject or claims: an issuer alone is everybody that it knows")
        if self.subject is not None and not 1 <= len(self.subject) <= _MAX_CLAIM:
            raise ValueError("subject must not be empty")
        if self.claims is not None and (
            not self.claims
            or not all(name and 1 <= len(text) <= _MAX_CLAIM for name, text in self.claims.items())
        ):
            raise ValueError("claims must name at least one claim, each with a non-empty text")


class WindowSettings(Settings, frozen=True, kw_only=True):
    """A deployment window: any of ``opened_by`` opens it, for ``longest`` at the most (up to 24h).

    It closes at its end, which who opened it announces, or at its deadline, whichever is first.
    """

    opened_by: tuple[OpenerSettings, ...]
    longest: Duration

    def __post_init__(self) -> None:
        if not self.opened_by:
            raise ValueError("opened_by is empty: nobody could ever open the window")
        if not 1 <= self.longest <= MAX_WINDOW:
            raise ValueError("longest is between 1s and 24h")


class GrantSettings(Settings, frozen=True, kw_only=True, omit_defaults=True):
    """One grant, as the grants file and the API write it.

    ``workload`` is the exact subject of the workload's token, or has one ``*`` for exactly one
    segment; ``issuer`` is the exact issuer of that token. ``on_behalf_of: users`` lets the
    workload also act for a user; ``nobody`` lets it act only for itself. With ``conditions`` every
    request must say in ``authorization_details`` what it will call, and one condition must cover
    it. ``ttl`` can only shorten the target's lifetime. With ``approval`` it gives nothing before
    people have said yes to the very request, also where another grant covers the same.

    It gives from ``not_before`` on and until ``not_after``, and as many tokens as ``max_uses``
    says. With ``use: deployment`` it gives only while a ``window`` of it is open. ``reason``,
    ``ticket`` and ``owner`` are for people.
    """

    id: str
    workload: str
    issuer: str
    target: str
    scopes: tuple[str, ...]
    on_behalf_of: Literal["users", "nobody"] = "nobody"
    conditions: tuple[ConditionSettings, ...] | None = None
    ttl: Duration | None = None
    approval: ApprovalRuleSettings | None = None
    use: Literal["standing", "deployment"] = "standing"
    window: WindowSettings | None = None
    not_before: Timestamp | None = None
    not_after: Timestamp | None = None
    max_uses: int | None = None
    reason: str = ""
    ticket: str = ""
    owner: str = ""

    def __post_init__(self) -> None:
        if not GRANT_ID.fullmatch(self.id):
            raise ValueError("id must be lower-case letters, digits, '.', '_' and '-'")
        WorkloadPattern.parse(self.workload)
        if not self.scopes or not all(SCOPE_TOKEN.fullmatch(scope) for scope in self.scopes):
            raise ValueError("scopes must be a non-empty list of scope tokens (RFC 6749 §3.3)")
        if self.conditions is not None and not self.conditions:
            raise ValueError("conditions is empty: leave it out, or say what the grant is good for")
        if self.ttl is not None and self.ttl < 1:
            raise ValueError("ttl must be at least 1s")
        self._check_bounds()
        for note in (self.reason, self.ticket, self.owner):
            if len(note) > _MAX_NOTE or not note.isprintable():
                raise ValueError("reason, ticket and owner are one line of at most 1024 characters")

    def _check_bounds(self) -> None:
        if (self.use == "deployment") is not (self.window is not None):
            raise ValueError("use: deployment and window come together")
        if self.max_uses is not None and not 1 <= self.max_uses <= _MAX_USES:
            raise ValueError("max_uses must be at least 1")
        if self.not_before and self.not_after and self.not_before >= self.not_after:
            raise ValueError("not_before must be earlier than not_after")


class GrantsFile(Settings, frozen=True, kw_only=True):
    """The grants file."""

    grants: tuple[GrantSettings, ...]


def document_of(written: GrantSettings) -> dict[str, Any]:
    """A grant as plain data, in one form: times in UTC, nothing that is a default anyway."""
    times = {
        name: time.astimezone(UTC)
        for name, time in (("not_before", written.not_before), ("not_after", written.not_after))
        if time is not None
    }
    return plain(msgspec.structs.replace(written, **times))

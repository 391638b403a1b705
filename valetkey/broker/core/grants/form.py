"""Grants as people write them: in the grants file, and in the body of the API."""

from __future__ import annotations

import re
from typing import Final, Literal

from valetkey.broker.core.approvals import ApprovalRuleSettings
from valetkey.broker.core.patterns import PathPattern, WorkloadPattern
from valetkey.contracts.mcp import message_patterns
from valetkey.contracts.settings import Duration, Settings

# RFC 6749 §3.3: scope-token = 1*( %x21 / %x23-5B / %x5D-7E )
SCOPE_TOKEN: Final = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]{1,256}")
# RFC 9110 §5.6.2 token; the methods themselves are case-sensitive (§9.1).
METHOD: Final = re.compile(r"[A-Z][A-Z-]{0,31}")
_GRANT_ID: Final = re.compile(r"[a-z0-9][a-z0-9._-]{0,127}")


class McpConditionSettings(Settings, frozen=True, kw_only=True):
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


class ConditionSettings(Settings, frozen=True, kw_only=True):
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


class GrantSettings(Settings, frozen=True, kw_only=True):
    """One grant as the grants file writes it.

    ``workload`` is the exact subject of the workload's token, or has one ``*`` for exactly one
    segment; ``issuer`` is the exact issuer of that token. ``on_behalf_of: users`` lets the
    workload also act for a user; ``nobody`` lets it act only for itself. With ``conditions`` every
    request must say in ``authorization_details`` what it will call, and one condition must cover
    it. ``ttl`` can only shorten the target's lifetime. With ``approval`` it gives nothing before
    people have said yes to the very request, also where another grant covers the same.
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

    def __post_init__(self) -> None:
        if not _GRANT_ID.fullmatch(self.id):
            raise ValueError("id must be lower-case letters, digits, '.', '_' and '-'")
        WorkloadPattern.parse(self.workload)
        if not self.scopes or not all(SCOPE_TOKEN.fullmatch(scope) for scope in self.scopes):
            raise ValueError("scopes must be a non-empty list of scope tokens (RFC 6749 §3.3)")
        if self.conditions is not None and not self.conditions:
            raise ValueError("conditions is empty: leave it out, or say what the grant is good for")
        if self.ttl is not None and self.ttl < 1:
            raise ValueError("ttl must be at least 1s")


class GrantsFile(Settings, frozen=True, kw_only=True):
    """The grants file."""

    grants: tuple[GrantSettings, ...]

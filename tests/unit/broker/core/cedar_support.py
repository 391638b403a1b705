"""What tests of policies ask about: a target with routes and tools, people and programs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from valetkey.broker.core.cedar import Policies, Principal, Verdict
from valetkey.broker.core.grants import Call
from valetkey.broker.core.patterns import PathPattern
from valetkey.broker.core.permission import Asking, Permission, permission
from valetkey.broker.core.places import TargetFacts
from valetkey.contracts.mcp import message_patterns

NOW = 1_800_000_000.0  # Friday, 15 January 2027, 08:00 UTC
IDP = "https://idp.example"
USERS = "https://users.example"
SCOPE = "(principal, action, resource)"


def call(
    method: str, path: str, mcp: Iterable[str] | None = None, tools: Iterable[str] = ()
) -> Call:
    messages = None if mcp is None else message_patterns(tuple(mcp), tuple(tools))
    return Call(frozenset({method}), PathPattern.parse(path), messages)


TICKETS = TargetFacts(
    "tickets",
    environment="production",
    risk="high",
    routes={
        "close": call("POST", "/tickets/{id}/close"),
        "admin": Call(frozenset({"GET", "POST"}), PathPattern.parse("/admin/{rest*}")),
    },
)
OTHER = TargetFacts("other")
BOT = Principal("Workload", IDP, "bot", frozenset({"robots"}), frozenset({"night"}))
AGENT = Principal("Agent", IDP, "agent")
ALICE = Principal("User", USERS, "alice", frozenset({"support"}))
READ = call("GET", "/tickets/7")


def compiled(text: str | None) -> Policies:
    return Policies.compile(None if text is None else {"p.cedar": text}, [TICKETS, OTHER])


def ask(
    text: str | None,
    *calls: Call,
    scopes: tuple[str, ...] = ("tickets:read",),
    actor: Principal = BOT,
    user: Principal | None = None,
    target: str = "tickets",
    now: float = NOW,
) -> Permission | Verdict:
    return permission(compiled(text), Asking(target, actor, user, scopes, calls, now))


def outcome(text: str | None, *calls: Call, **more: Any) -> str:
    """``permit``, ``approve``, or why not; with the policies that decided, where they did."""
    found = ask(text, *calls, **more)
    if isinstance(found, Permission):
        return " ".join(["approve" if found.approvals else "permit", *found.policy_ids])
    return " ".join([found.outcome, *found.policy_ids])

"""The example policies load with the example settings, and decide what they say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from valetkey.broker.cedar_files import read_policy_files
from valetkey.broker.core.cedar import Policies, Principal
from valetkey.broker.core.cedar_text import read_policies
from valetkey.broker.core.grants import Call
from valetkey.broker.core.patterns import PathPattern
from valetkey.broker.core.permission import Asking, Permission, permission
from valetkey.broker.settings import BrokerSettings
from valetkey.contracts import settings

ROOT = Path(__file__).parents[3]
CONFIG = ROOT / "config"
FRIDAY, SUNDAY = 1_800_000_000.0, 1_800_000_000.0 + 2 * 86_400
WORKLOAD = Principal("Workload", "https://i", "w")
AGENT = Principal("Agent", "https://i", "a")
SUPPORT = Principal("User", "https://u", "alice", frozenset({"support"}))
CONTRACTOR = Principal(
    "User", "https://u", "carol", frozenset({"support"}), frozenset({"contractors"})
)
STRANGER = Principal("User", "https://u", "bob")
READ = ("GET", "/api/tickets/{id}")
CLOSE = ("POST", "/api/tickets/{id}/close")


@pytest.fixture(scope="module")
def policies() -> Policies:
    loaded = settings.load(BrokerSettings, CONFIG / "broker.yaml", program="broker", environ={})
    return Policies.compile(read_policy_files([CONFIG / "policies"]), loaded.compiled_places())


@pytest.mark.parametrize(
    ("target", "actor", "user", "call", "now", "expected"),
    [
        ("tickets", WORKLOAD, None, READ, FRIDAY, "permit"),
        ("tickets", WORKLOAD, None, CLOSE, FRIDAY, "permit"),
        ("tickets", AGENT, SUPPORT, READ, FRIDAY, "permit"),
        ("tickets", AGENT, STRANGER, READ, FRIDAY, "deny"),
        ("tickets", AGENT, SUPPORT, CLOSE, FRIDAY, "approve"),
        ("tickets", AGENT, CONTRACTOR, READ, FRIDAY, "permit"),
        ("tickets", AGENT, CONTRACTOR, READ, SUNDAY, "deny"),
        ("payments", WORKLOAD, None, READ, FRIDAY, "permit"),
        ("payments", AGENT, None, READ, FRIDAY, "deny"),
        ("payments", WORKLOAD, SUPPORT, READ, FRIDAY, "deny"),
    ],
)
def test_examples(
    policies: Policies, target: str, actor: Principal, user: Principal | None,
    call: tuple[str, str], now: float, expected: str,
) -> None:  # fmt: skip
    calls = (Call(frozenset({call[0]}), PathPattern.parse(call[1])),)
    found = permission(policies, Asking(target, actor, user, ("tickets:read",), calls, now))
    if isinstance(found, Permission):
        assert expected == ("approve" if found.approvals else "permit")
    else:
        assert found.outcome == expected


def test_the_policies_of_the_how_to_load() -> None:
    page = (ROOT / "docs/how-to/write-a-policy.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```cedar\n(.*?)```", page, re.DOTALL)
    assert len(read_policies({f"block {n}": text for n, text in enumerate(blocks)})) >= 6

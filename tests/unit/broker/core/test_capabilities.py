"""Restrictions that a sidecar enforces, and what it says that it can."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from valetkey.broker.core.approvals import Requirement
from valetkey.broker.core.capabilities import needed
from valetkey.broker.core.exchange import Issue, NeedsApproval, Party
from valetkey.broker.core.request import parse_capabilities
from valetkey.contracts.errors import CallerError

ISSUE = Issue(
    client=Party("i", "s", 1.0),
    target="t",
    audience="https://t",
    subject="s",
    act=None,
    scopes=("a",),
    details=(),
    thumbprint="",
    expires_in=60,
    txn="",
    policy_digest="p",
    grant_ids=("g",),
    subject_issuer="i",
    epoch=0,
    client_epoch=0,
    decided_at=0.0,
)
ASKED = NeedsApproval(ISSUE, Requirement.of(1, (), (), reason="r"))
HTTP: dict[str, Any] = {"type": "valetkey_http_call", "path": "/a"}


@pytest.mark.parametrize(
    ("name", "decision", "of_target", "expected"),
    [
        ("bearer", ISSUE, (), set()),
        ("bound", replace(ISSUE, thumbprint="key", certificate=""), (), set()),
        ("one use", replace(ISSUE, single_use=True), (), {"single_use"}),
        ("approval", ASKED, (), {"single_use"}),
        ("calls", replace(ISSUE, details=(HTTP,)), (), set()),
        ("messages", replace(ISSUE, details=(HTTP, {**HTTP, "mcp": {}})), (), {"mcp_filter"}),
        ("target", ISSUE, ("feed", "dpop"), {"feed", "dpop"}),
        ("all", ASKED, ("feed",), {"feed", "single_use"}),
    ],
)
def test_what_is_needed(name: str, decision: Any, of_target: Any, expected: set[str]) -> None:
    assert needed(decision, of_target=of_target) == expected, name


def test_what_a_caller_says() -> None:
    assert parse_capabilities("") == frozenset()
    assert parse_capabilities("feed dpop of_tomorrow") == {"feed", "dpop", "of_tomorrow"}


@pytest.mark.parametrize("text", [" ", "feed ", "feed  dpop", "Feed", "feed,dpop", "a " * 40, "-"])
def test_what_is_malformed(text: str) -> None:
    with pytest.raises(CallerError):
        parse_capabilities(text)

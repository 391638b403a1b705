"""The state machine of approvals: every transition, who may make it, and what the digest binds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pytest

from valetkey.broker.core.approval_document import document_of
from valetkey.broker.core.approvals import (
    Approval,
    ApprovalRuleSettings,
    Holders,
    Identity,
    Request,
    Requirement,
    State,
    Voter,
    chain_of,
)
from valetkey.contracts.errors import CallerError

NOW = 1_800_000_000.0
BOT = Identity("https://idp", "bot")
ALICE = Identity("https://users", "alice")
CALL: dict[str, Any] = {
    "type": "valetkey_http_call",
    "locations": ["https://t"],
    "actions": ["POST", "PUT"],
    "identifier": "close",
    "path": "/t/7/close",
    "mcp": {"methods": ["a", "b"], "tools": ["x", "y"]},
}


def request(**changes: Any) -> Request:
    values: dict[str, Any] = {
        "client": BOT,
        "subject": ALICE,
        "actors": (BOT, Identity("", "helper")),
        "audience": "https://t",
        "resource": "https://t",
        "scopes": ("close", "read"),
        "details": (CALL, {**CALL, "path": "/t/8/close"}),
        "thumbprint": "key",
        "policy_digest": "policy",
        "epochs": (0, 0),
        "requirement": Requirement(),
        **changes,
    }
    return Request(**values)


def pending(requirement: Requirement | None = None, **changes: Any) -> Approval:
    asked = request(requirement=requirement or Requirement())
    values: dict[str, Any] = {
        "id": "apr_1", "request": asked, "opened_at": NOW, "expires_at": NOW + 600, "valid": 3600.0,
        **changes,
    }  # fmt: skip
    return Approval(**values)


def voter(name: str, *, issuer: str = "https://people", **more: Any) -> Voter:
    return Voter(Identity(issuer, name), **more)


def yes(
    approval: Approval,
    by: Voter | str = "olga",
    *,
    now: float = NOW + 1,
    uses: int | None = None,
    until: float | None = None,
) -> Approval:
    by = voter(by) if isinstance(by, str) else by
    return approval.approve(by, now=now, reason="ok", uses=uses, until=until)


def code_of(error: pytest.ExceptionInfo[CallerError]) -> str:
    return error.value.code.name


# --- states ----------------------------------------------------------------------------------------


def test_from_pending_to_used() -> None:
    approval = pending()
    assert approval.state(NOW) == "pending"
    approval = yes(approval)
    assert (approval.state(NOW + 1), approval.uses_left) == ("approved", 1)
    approval = approval.use(now=NOW + 2)
    assert approval.state(NOW + 2) == "used"


@dataclass(frozen=True)
class Closed:
    name: State
    approval: Approval
    now: float = NOW + 2


CLOSED = [
    Closed("denied", pending().deny(voter("olga"), now=NOW + 1, reason="no")),
    Closed("expired", pending(), NOW + 600),
    Closed("used", yes(pending()).use(now=NOW + 1)),
    Closed("ended", yes(pending(), until=NOW + 60), NOW + 60),
    Closed("revoked", yes(pending()).revoke(now=NOW + 1)),
]


@pytest.mark.parametrize("case", CLOSED, ids=lambda case: case.name)
def test_what_is_over_stays_over(case: Closed) -> None:
    approval, now = case.approval, case.now
    assert approval.state(now) == case.name
    assert approval.state(now + 1e9) in {case.name, "expired"}
    for act in (
        lambda: yes(approval, "otto", now=now),
        lambda: approval.deny(voter("otto"), now=now, reason="no"),
        lambda: approval.revoke(now=now),
        lambda: approval.use(now=now),
    ):
        with pytest.raises(CallerError) as error:
            act()
        assert code_of(error) == "approval.closed"
        assert case.name in error.value.reason


def test_what_is_pending_is_neither_used_nor_revoked() -> None:
    for act in (lambda: pending().use(now=NOW), lambda: pending().revoke(now=NOW)):
        with pytest.raises(CallerError) as error:
            act()
        assert code_of(error) == "approval.closed"


def test_what_is_approved_is_not_decided_again() -> None:
    approval = yes(pending())
    with pytest.raises(CallerError, match="not pending"):
        approval.deny(voter("otto"), now=NOW + 2, reason="no")


# --- who -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("issuer", "subject"),
    [
        BOT,
        ALICE,
        ("https://people", "helper"),  # an actor whose token named no issuer: it may be anybody's
        ("https://idp", "helper"),
        ("https://people", "eve"),  # known by a token of our own, which hides the first issuer
    ],
)
def test_nobody_who_asks_approves(issuer: str, subject: str) -> None:
    asked = request(also_asking=(Identity("", "eve"),))
    with pytest.raises(CallerError) as error:
        yes(pending(request=asked), voter(subject, issuer=issuer))
    assert code_of(error) == "approval.self"


def test_the_same_subject_of_another_issuer_is_another_person() -> None:
    assert yes(pending(), voter("alice")).decision == "approved"


def test_who_asks_may_take_it_back() -> None:
    denied = pending().deny(Voter(ALICE), now=NOW + 1, reason="not needed")
    assert denied.state(NOW + 1) == "denied"


@pytest.mark.parametrize(
    ("roles", "groups", "fits"),
    [
        ((), (), False),
        (("owner",), (), False),
        (("owner",), ("leads",), True),
        (("owner", "x"), ("leads", "y"), True),
        ((), ("leads",), False),
        (("leads",), ("owner",), False),
    ],
)
def test_an_approver_belongs_to_each_of_the_holders(
    roles: tuple[str, ...], groups: tuple[str, ...], fits: bool
) -> None:
    requirement = Requirement(holders=(Holders(("owner",), ()), Holders(("chief",), ("leads",))))
    by = voter("olga", roles=frozenset(roles), groups=frozenset(groups))
    if fits:
        assert yes(pending(requirement), by).decision == "approved"
    else:
        with pytest.raises(CallerError) as error:
            yes(pending(requirement), by)
        assert code_of(error) == "approval.not_eligible"


@pytest.mark.parametrize(
    ("claims", "roles", "groups"),
    [
        ({}, set(), set()),
        ({"roles": ["a", "b"], "groups": ["c"]}, {"a", "b"}, {"c"}),
        ({"roles": "a"}, {"a"}, set()),
        ({"roles": [1, "a"], "groups": {"x": 1}}, set(), set()),
        ({"roles": None, "groups": 7}, set(), set()),
    ],
)
def test_roles_and_groups_of_a_token(
    claims: dict[str, Any], roles: set[str], groups: set[str]
) -> None:
    found = Voter.of("https://people", "olga", claims)
    assert (found.roles, found.groups) == (roles, groups)


# --- quorum and terms -------------------------------------------------------------------------------


def test_the_quorum_counts_people_once() -> None:
    approval = yes(pending(Requirement(quorum=2)))
    assert approval.decision == "pending"
    with pytest.raises(CallerError) as error:
        yes(approval)
    assert code_of(error) == "approval.voted"
    assert yes(approval, voter("olga", issuer="https://other")).decision == "approved"


def test_the_strictest_terms_count() -> None:
    approval = yes(pending(Requirement(quorum=3)), "a", until=NOW + 900)
    approval = yes(approval, "b", uses=5)
    approval = yes(approval, "c", uses=7, until=NOW + 300)
    assert (approval.uses_left, approval.until) == (5, NOW + 300)


def test_a_yes_that_has_run_out_counts_no_more_and_may_be_said_again() -> None:
    approval = yes(pending(Requirement(quorum=2)), "a", until=NOW + 10)
    later = yes(approval, "b", now=NOW + 20)
    assert later.decision == "pending"
    assert yes(later, "a", now=NOW + 21).decision == "approved"


def test_a_no_ends_it_also_from_who_said_yes() -> None:
    approval = yes(pending(Requirement(quorum=2)))
    denied = approval.deny(voter("olga"), now=NOW + 2, reason="changed my mind")
    assert denied.decision == "denied"
    assert [vote.approves for vote in denied.votes] == [False]


@pytest.mark.parametrize(
    ("uses", "until", "expected"),
    [
        (None, None, (1, 3601.0)),
        (3, None, (3, 3601.0)),
        (None, 60.0, (None, 60.0)),
        (2, 60.0, (2, 60.0)),
    ],
)
def test_terms_as_the_approver_chose(
    uses: int | None, until: float | None, expected: tuple[int | None, float]
) -> None:
    approval = yes(pending(), uses=uses, until=None if until is None else NOW + until)
    assert (approval.uses_left, approval.until) == (expected[0], NOW + expected[1])


@pytest.mark.parametrize(
    ("uses", "until"), [(0, None), (10_001, None), (4, None), (None, 60.0), (1, 0.0), (1, 3700.0)]
)
def test_terms_beyond_what_policy_allows(uses: int | None, until: float | None) -> None:
    approval = pending(Requirement(uses=3))
    with pytest.raises(CallerError) as error:
        yes(approval, uses=uses, until=None if until is None else NOW + until)
    assert code_of(error) == "approval.terms"


# --- requirements -----------------------------------------------------------------------------------


def test_a_requirement_from_several() -> None:
    one = ApprovalRuleSettings(quorum=1, roles=("b", "a", "a"), uses=5).compiled("grant one")
    other = ApprovalRuleSettings(quorum=2, groups=("g",)).compiled("grant other")
    other = replace(other, expires=60.0, valid=90.0)
    found = Requirement.strictest([one, other])
    assert found == Requirement(
        quorum=2,
        holders=(Holders((), ("g",)), Holders(("a", "b"), ())),
        expires=60.0,
        uses=5,
        valid=90.0,
        reasons=("grant one", "grant other"),
    )
    assert Requirement.strictest([]) is None


# --- the digest ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "changes",
    [
        {"client": BOT._replace(subject="x")},
        {"client": BOT._replace(issuer="x")},
        {"subject": ALICE._replace(subject="x")},
        {"subject": ALICE._replace(issuer="x")},
        {"actors": (BOT,)},
        {"actors": (Identity("", "helper"), BOT)},
        {"audience": "x"},
        {"resource": "x"},
        {"scopes": ("close",)},
        {"details": (CALL,)},
        {"details": (CALL, {**CALL, "path": "/t/9/close"})},
        {"details": (CALL, {**CALL, "path": "/t/8/close", "actions": ["POST"]})},
        {"thumbprint": "x"},
        {"policy_digest": "x"},
        {"epochs": (1, 0)},
        {"epochs": (0, 1)},
        {"requirement": Requirement(quorum=2)},
        {"requirement": Requirement(holders=(Holders(("a",), ()),))},
        {"requirement": Requirement(uses=1)},
    ],
    ids=str,
)
def test_whatever_makes_the_token_what_it_is_changes_the_digest(changes: dict[str, Any]) -> None:
    assert request(**changes).digest() != request().digest()


@pytest.mark.parametrize(
    "changes",
    [
        {"scopes": ("read", "close", "read")},
        {"details": ({**CALL, "path": "/t/8/close"}, CALL, CALL)},
        {"details": (CALL, dict(reversed({**CALL, "path": "/t/8/close"}.items())))},
        {"details": (CALL, {**CALL, "path": "/t/8/close", "actions": ["PUT", "POST"]})},
        {"details": (CALL, {**CALL, "path": "/t/8/close", "mcp": {"tools": ["y", "x"], "methods": ["b", "a"]}})},
        {"requirement": Requirement(reasons=("another grant",), expires=5.0)},
        {"target": "name", "grants": ("g",), "also_asking": (Identity("", "eve"),)},
    ],
    ids=str,
)  # fmt: skip
def test_what_is_incidental_does_not(changes: dict[str, Any]) -> None:
    assert request(**changes).digest() == request().digest()


def test_parts_do_not_run_into_one_another() -> None:
    one = request(client=Identity("ab", "c"), scopes=("a b",))
    other = request(client=Identity("a", "bc"), scopes=("a", "b"))
    assert one.digest() != other.digest()


def test_the_chain_of_an_act_claim() -> None:
    act = {"sub": "bot", "iss": "https://idp", "act": {"sub": "helper"}}
    assert chain_of(act) == (BOT, Identity("", "helper"))
    assert chain_of(None) == ()


# --- as it is shown ------------------------------------------------------------------------------------


def test_the_document_keeps_apart_what_was_said() -> None:
    approval = yes(pending(), until=NOW + 60)
    document = document_of(approval, purpose="trust me", used=2, now=NOW + 1)
    assert document["untrusted"] == {"purpose": "trust me"}
    assert "trust me" not in str({name: document[name] for name in document if name != "untrusted"})
    assert (document["state"], document["uses_left"], document["used"]) == ("approved", None, 2)
    assert document["until"] == "2027-01-15T08:01:00.000Z"
    assert document["request"]["actors"] == [
        {"subject": "bot", "issuer": "https://idp"},
        {"subject": "helper"},
    ]

"""What a directory found a subject by: read from what we sealed for that subject, and from nothing else."""

from __future__ import annotations

import base64
from typing import Any

import pytest

from valetkey.broker.issuers.found_by import CLAIM, FoundBy
from valetkey.broker.store.sealing import Sealer

USERS = "https://users"
FOUND_BY = FoundBy(Sealer(b"m" * 32))
SEALED = FOUND_BY.sealed(USERS, "s-1", [("email", "alice@demo.example"), ("login", "alice")])


def test_it_is_read_as_it_was() -> None:
    read = FoundBy(Sealer(b"m" * 32)).read(USERS, "s-1", {CLAIM: SEALED})
    assert read == {"email": "alice@demo.example", "login": "alice"}


def test_nobody_else_reads_it() -> None:
    raw = base64.urlsafe_b64decode(SEALED + "=" * (-len(SEALED) % 4))
    assert b"alice" not in raw
    assert b"login" not in raw


def test_the_same_looks_the_same_and_no_other_does() -> None:
    assert FOUND_BY.sealed(USERS, "s-1", [("a", "b")]) == FOUND_BY.sealed(
        USERS, "s-1", [("a", "b")]
    )
    assert FOUND_BY.sealed(USERS, "s-2", [("a", "b")]) != FOUND_BY.sealed(
        USERS, "s-1", [("a", "b")]
    )


def _changed() -> list[str]:
    """Each character replaced by another one whose bits all count."""
    return [
        SEALED[:at] + ("A" if SEALED[at] != "A" else "Q") + SEALED[at + 1 :]
        for at in range(len(SEALED) - 1)
    ]


@pytest.mark.parametrize(
    ("issuer", "subject", "claims"),
    [
        (USERS, "s-2", {CLAIM: SEALED}),
        ("https://users2", "s-1", {CLAIM: SEALED}),
        (USERS + "s", "-1", {CLAIM: SEALED}),
        (USERS, "s-1", {}),
        (USERS, "s-1", {"email": "alice@demo.example", "login": "alice"}),
        (USERS, "s-1", {CLAIM: {"login": "alice"}}),
        (USERS, "s-1", {CLAIM: ""}),
        (USERS, "s-1", {CLAIM: "A"}),
        (USERS, "s-1", {CLAIM: "%"}),
        (USERS, "s-1", {CLAIM: SEALED[:20]}),
        (USERS, "s-1", {CLAIM: SEALED + "AAAA"}),
        *((USERS, "s-1", {CLAIM: one}) for one in _changed()),
    ],
)
def test_what_was_not_sealed_for_the_subject_says_nothing(
    issuer: str, subject: str, claims: dict[str, Any]
) -> None:
    assert FOUND_BY.read(issuer, subject, claims) == {}


def test_another_master_key_opens_nothing() -> None:
    assert FoundBy(Sealer(b"n" * 32)).read(USERS, "s-1", {CLAIM: SEALED}) == {}

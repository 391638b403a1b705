"""Which credentials a signal ends, kind by kind: its own, and no other."""

from __future__ import annotations

import hashlib

import pytest

from valetkey.contracts.jose import b64url
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import KINDS, Signal
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import EVERYTHING, Ended

TOKEN = "a-token-that-is-long-enough"
IDP = "https://idp.example"
KEY = CacheKey(
    tenant=IDP, subject="token:0123", actors=("bot",), audience="https://a.example",
    resource="https://a.example", details="[]", scopes="t:read", endpoint="https://b/token",
    thumbprint="key-1", policy_digest="d", epoch=0,
)  # fmt: skip
CREDENTIAL = Credential(
    KEY, Secret(TOKEN), b"", expires_at=9.0, refresh_at=8.0, subject="alice", actor="bot",
    jti="j-1", txn="t-1", policy_digest="d", grants=("g-1", "g-2"),
)  # fmt: skip
HASH = b64url(hashlib.sha256(TOKEN.encode()).digest())

CASES = [
    ("token", "j-1", "", True),
    ("token", "t-1", "", False),
    ("hash", HASH, "", True),
    ("hash", HASH[:-1], "", False),
    ("txn", "t-1", "", True),
    ("txn", "j-1", "", False),
    ("grant", "g-2", "", True),
    ("grant", "g-", "", False),
    ("subject", "alice", "https://users.example", True),  # nobody here knows whose alice it is
    ("subject", "bot", IDP, True),
    ("subject", "bot", "https://other.example", False),
    ("subject", "bob", IDP, False),
    ("key", "key-1", "", True),
    ("key", "", "", False),
    ("target", "https://a.example", "", True),
    ("target", "https://b.example", "", False),
]


CERTAIN = {"token", "hash", "txn", "grant", "key"}


@pytest.mark.parametrize(("kind", "value", "issuer", "ends"), CASES)
def test_what_a_signal_ends(kind, value: str, issuer: str, ends: bool) -> None:
    ended = Ended([Signal(kind=kind, value=value, issuer=issuer, at=0)])
    assert ended(CREDENTIAL) is ends
    assert ended.certain(CREDENTIAL) is (ends and kind in CERTAIN)


def test_every_kind_is_in_the_table() -> None:
    assert {kind for kind, *_ in CASES} == set(KINDS)


def test_everything() -> None:
    assert EVERYTHING(CREDENTIAL)
    assert not EVERYTHING.certain(CREDENTIAL)


def test_nothing() -> None:
    assert not Ended()(CREDENTIAL)


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def test_many_signals_end_what_any_of_them_does(case) -> None:
    kind, value, issuer, ends = case
    others = [Signal(kind=other, value=f"x{n}", at=0) for n, other in enumerate(KINDS * 20)]
    signal = Signal(kind=kind, value=value, issuer=issuer, at=0)
    assert Ended([*others, signal, *others])(CREDENTIAL) is ends


def test_names_and_issuers_of_two_signals_are_not_mixed() -> None:
    signals = [
        Signal(kind="subject", value="bot", issuer="https://other.example", at=0),
        Signal(kind="subject", value="bob", issuer=IDP, at=0),
    ]
    assert not Ended(signals)(CREDENTIAL)


def test_a_hash_is_computed_where_a_signal_has_one_and_once(monkeypatch) -> None:
    made = Credential(
        KEY, Secret(TOKEN), b"", expires_at=9.0, refresh_at=8.0, subject="alice", actor="bot",
        jti="j-1", txn="t-1", policy_digest="d",
    )  # fmt: skip
    computed = []
    monkeypatch.setattr(
        "valetkey.proxy.core.credential.hashlib.sha256",
        lambda octets, sha256=hashlib.sha256: computed.append(octets) or sha256(octets),
    )
    assert not Ended([Signal(kind="txn", value="x", at=0)])(made)
    assert computed == []
    signals = [Signal(kind="hash", value=f"h{number}", at=0) for number in range(100)]
    assert not Ended(signals)(made)
    assert Ended([Signal(kind="hash", value=HASH, at=0)])(made)
    assert computed == [TOKEN.encode()]

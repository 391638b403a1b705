"""Which credentials a signal ends, kind by kind: its own, and no other."""

from __future__ import annotations

import hashlib

import pytest

from valetkey.contracts.jose import b64url
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import KINDS, Signal
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import ended_by, everything

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


@pytest.mark.parametrize(("kind", "value", "issuer", "ends"), CASES)
def test_what_a_signal_ends(kind, value: str, issuer: str, ends: bool) -> None:
    signal = Signal(kind=kind, value=value, issuer=issuer, at=0)
    assert ended_by(signal)(CREDENTIAL) is ends


def test_every_kind_is_in_the_table() -> None:
    assert {kind for kind, *_ in CASES} == set(KINDS)


def test_everything() -> None:
    assert everything(CREDENTIAL)

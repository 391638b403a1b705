"""Tokens as RFC 9068 wants them, and which of them are ours."""

from __future__ import annotations

import itertools
from typing import Any

import jwt
import msgspec
import pytest
import pytest_asyncio

from tests.integration.broker_support import Clock, mutate
from tests.unit.broker.issuers.test_keyring import ring
from valetkey.broker.core.exchange import Issue, Party
from valetkey.broker.issuers.found_by import FoundBy
from valetkey.broker.issuers.jwt import JwtIssuer
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.store.database import Database
from valetkey.broker.store.sealing import Sealer
from valetkey.contracts import es256
from valetkey.contracts.jose import b64url

URL = "https://broker.example"
CLIENT = Party("https://idp", "bot", 20_000)


def issue(**changes: Any) -> Issue:
    values: dict[str, Any] = {
        "client": CLIENT,
        "target": "tickets",
        "audience": "https://t",
        "subject": "bot",
        "act": None,
        "scopes": ("a", "b"),
        "details": (),
        "thumbprint": "",
        "expires_in": 60,
        "txn": "",
        "policy_digest": "digest",
        "policy_ids": ("a", "b"),
        "grant_ids": ("g",),
        "subject_issuer": "https://idp",
        "epoch": 0,
        "client_epoch": 0,
        "decided_at": 10_000,
        **changes,
    }
    return Issue(**values)


@pytest_asyncio.fixture
async def keys(database: Database) -> KeyRing:
    made = ring(database, Clock(10_000))
    await made.load()
    return made


def issuer(keys: KeyRing, *, now: float = 10_000, url: str = URL) -> JwtIssuer:
    numbers = itertools.count()
    return JwtIssuer(
        keys,
        issuer=url,
        clock=Clock(now),
        random_id=lambda: f"id-{next(numbers)}",
        found_by=FoundBy(Sealer(b"m" * 32)),
    )


def read(keys: KeyRing, token: str) -> dict[str, Any]:
    options: Any = {"verify_aud": False, "verify_exp": False, "verify_iat": False}
    public = keys.signer().private.public_key()
    claims: dict[str, Any] = jwt.decode(token, public, algorithms=["ES256"], options=options)
    return claims


async def test_a_plain_token(keys: KeyRing) -> None:
    minted = issuer(keys).mint(issue())
    token = minted.compact.reveal()
    assert jwt.get_unverified_header(token) == {
        "typ": "at+jwt",
        "alg": "ES256",
        "kid": keys.signer().times.kid,
    }
    assert read(keys, token) == {
        "iss": URL, "sub": "bot", "aud": "https://t", "client_id": "bot",
        "client_iss": "https://idp", "iat": 10_000, "exp": 10_060, "jti": "id-0", "txn": "id-1",
        "scope": "a b", "policy_digest": "digest", "policies": ["a", "b"], "grants": ["g"],
    }  # fmt: skip
    assert (minted.jti, minted.txn) == ("id-0", "id-1")
    assert token not in repr(minted)


async def test_everything_that_may_be_there(keys: KeyRing) -> None:
    details = ({"type": "t"},)
    minted = issuer(keys).mint(
        issue(
            act={"sub": "bot"}, thumbprint="jkt", details=details, txn="given", subject="alice",
            subject_issuer="https://users", epoch=3, client_epoch=4,
        )
    )  # fmt: skip
    claims = read(keys, minted.compact.reveal())
    assert claims["act"] == {"sub": "bot"}
    assert claims["cnf"] == {"jkt": "jkt"}
    assert claims["authorization_details"] == [{"type": "t"}]
    assert claims["txn"] == minted.txn == "given"
    assert (claims["sub"], claims["client_id"]) == ("alice", "bot")
    assert (claims["sub_iss"], claims["epoch"], claims["client_epoch"]) == ("https://users", 3, 4)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, ("https://idp", "bot", 0, 0)),
        ({"epoch": 2, "client_epoch": 2}, ("https://idp", "bot", 2, 2)),
        (
            {"act": {}, "subject": "alice", "subject_issuer": "https://users", "client_epoch": 4},
            ("https://users", "alice", 0, 4),
        ),
        # A user of the same name as the client is somebody else.
        (
            {"act": {}, "subject": "bot", "subject_issuer": "https://users", "epoch": 1},
            ("https://users", "bot", 1, 0),
        ),
        # And who acts for itself as a user is one and the same.
        (
            {"act": {}, "subject": "bot", "epoch": 5, "client_epoch": 5},
            ("https://idp", "bot", 5, 5),
        ),
    ],
)
async def test_whose_it_is_and_under_which_epochs(
    keys: KeyRing, changes: dict[str, Any], expected: tuple[Any, ...]
) -> None:
    minted = issuer(keys).mint(issue(thumbprint="jkt", **changes))
    own = issuer(keys).recognise(minted.compact.reveal())
    assert own is not None
    assert (own.subject_issuer, own.subject, own.epoch, own.client_epoch) == expected
    assert (own.client_issuer, own.client_id) == ("https://idp", "bot")
    assert (own.kid, own.bound_to) == (keys.signer().times.kid, ("jkt",))
    assert (own.audience, own.grants, own.issued) == ("https://t", ("g",), 10_000)


async def test_it_names_its_grants_and_windows_and_lives_from_the_decision_on(
    keys: KeyRing,
) -> None:
    """What bounds it was measured at the decision: claiming a use takes nothing from that."""
    minted = issuer(keys, now=10_007).mint(issue(windows=("win:1",)))
    claims = read(keys, minted.compact.reveal())
    assert claims["grants"] == ["g", "win:1"]
    assert (claims["iat"], claims["exp"]) == (10_000, 10_060)


async def test_the_header_follows_the_key(database: Database) -> None:
    clock = Clock(10_000)
    keys = ring(database, clock)
    await keys.load()
    mint = issuer(keys)
    first = jwt.get_unverified_header(mint.mint(issue()).compact.reveal())["kid"]
    clock.advance(900)
    await keys.rotate()
    clock.advance(100)
    second = jwt.get_unverified_header(mint.mint(issue()).compact.reveal())["kid"]
    assert second == keys.signer().times.kid != first


async def test_our_own(keys: KeyRing) -> None:
    own = issuer(keys).recognise(issuer(keys).mint(issue()).compact.reveal())
    assert own is not None
    assert (own.client_issuer, own.client_id, own.expires) == ("https://idp", "bot", 10_060)


def signed(keys: KeyRing, header: dict[str, Any], **claims: Any) -> str:
    payload = {"iss": URL, "sub": "bot", "jti": "j", "txn": "t", "iat": 10_000, "exp": 10_060}
    payload = {name: value for name, value in (payload | claims).items() if value is not None}
    full = {"alg": "ES256", "typ": "at+jwt", "kid": keys.signer().times.kid, **header}
    full = {name: value for name, value in full.items() if value is not None}
    # Not by PyJWT, half of whose signatures would not be ours.
    segments = ".".join(b64url(msgspec.json.encode(part)) for part in (full, payload))
    return es256.sign(keys.signer().private, segments.encode())


async def test_what_is_not_ours(keys: KeyRing) -> None:
    good = issuer(keys).mint(issue()).compact.reveal()
    assert issuer(keys).recognise(signed(keys, {})) is not None, "the control"
    for name, token in (
        ("garbage", "x.y.z"),
        ("changed", mutate(good, 1, 5, 1)),
        ("another issuer", issuer(keys, url="https://other").mint(issue()).compact.reveal()),
        ("another type", signed(keys, {"typ": "JWT"})),
        ("no type", signed(keys, {"typ": None})),
        ("unknown key", signed(keys, {"kid": "k"})),
        ("no jti", signed(keys, {}, jti=None)),
        ("no txn", signed(keys, {}, txn=None)),
        ("no exp", signed(keys, {}, exp=None)),
        ("no iat", signed(keys, {}, iat=None)),
        ("grants of another form", signed(keys, {}, grants="g")),
        ("cnf of another form", signed(keys, {}, cnf=[])),
    ):
        assert issuer(keys).recognise(token) is None, name


@pytest.mark.parametrize(("now", "active"), [(10_059.9, True), (10_060, False), (10_089, False)])
async def test_no_leeway_for_our_own_clock(keys: KeyRing, now: float, active: bool) -> None:
    token = issuer(keys).mint(issue()).compact.reveal()
    assert (issuer(keys, now=now).recognise(token) is not None) is active

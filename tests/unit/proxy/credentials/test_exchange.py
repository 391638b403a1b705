"""The exchange client against a broker that answers anything: a code each, never a credential."""

from __future__ import annotations

import asyncio
import json
import logging
import time

import pytest
from aiohttp import web

from tests.support.idp import Idp
from valetkey.contracts import codes, oauth
from valetkey.contracts.dpop import ProofKey, verify_proof
from valetkey.contracts.errors import (
    BrokerError,
    CallerError,
    ConfigError,
    PolicyError,
    ValetkeyError,
)
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import SIGNAL_HEADER
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.credentials.bearer import BearerInjector
from valetkey.proxy.credentials.dpop import DpopInjector
from valetkey.proxy.credentials.exchange import ExchangeClient
from valetkey.proxy.credentials.header import HeaderInjector
from valetkey.proxy.identity.file import FileIdentity

TOKEN = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJib3QifQ.c2lnbmF0dXJlLW9mLWEtdG9rZW4"
GOOD = {
    "access_token": TOKEN,
    "issued_token_type": oauth.TOKEN_TYPE_ACCESS,
    "token_type": "Bearer",
    "expires_in": 120,
}
KEY = CacheKey(
    tenant="https://idp.test.example", subject="bot", actors=(), audience="https://a",
    resource="https://a", details="[]", scopes="t:list t:read", endpoint="", thumbprint="",
    policy_digest="d", epoch=0,
)  # fmt: skip


class Broker:
    def __init__(self) -> None:
        self.forms: list[dict[str, str]] = []
        self.proofs: list[str] = []
        self.told: list[tuple[str, str]] = []
        self.answer = lambda _form: web.json_response(GOOD)
        self.url = ""

    async def post(self, request: web.Request) -> web.StreamResponse:
        self.forms.append(dict(await request.post()))
        self.told.append((request.path, request.headers[SIGNAL_HEADER]))
        self.proofs += request.headers.getall("DPoP")
        answer = self.answer(self.forms[-1])
        return await answer if asyncio.iscoroutine(answer) else answer


@pytest.fixture
async def broker(aiohttp_server):
    made = Broker()
    app = web.Application()
    app.router.add_post("/token", made.post)
    app.router.add_post("/introspect", made.post)
    app.router.add_post("/elsewhere", made.post)
    server = await aiohttp_server(app)
    made.url = str(server.make_url("/token"))
    return made


@pytest.fixture
def idp(tmp_path):
    return Idp(tmp_path / "idp")


@pytest.fixture
def identity(idp, tmp_path):
    idp.token_file(tmp_path / "token", "bot", "https://broker.example", 1000)
    made = FileIdentity(tmp_path / "token")
    made.refresh()
    return made


@pytest.fixture
async def client(broker, identity):
    made = ExchangeClient(broker.url, identity, ProofKey(), ca_file=None, timeout=10.0)
    yield made
    await made.close()


async def test_the_workloads_own_credential(client, broker, identity):
    credential = await client.exchange(KEY, BearerInjector(), None)
    (form,) = broker.forms
    own = identity.token()[0].reveal()
    assert form == {
        "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": own,
        "requested_token_type": oauth.TOKEN_TYPE_ACCESS,
        "capabilities": "dpop mcp_filter single_use txn_token",
        "audience": "https://a",
        "scope": "t:list t:read",
        "authorization_details": "[]",
        "subject_token": own,
        "subject_token_type": oauth.TOKEN_TYPE_JWT,
    }
    assert credential.line == b"authorization: Bearer " + TOKEN.encode() + b"\r\n"
    assert (credential.subject, credential.actor) == ("bot", "bot")
    assert TOKEN not in repr(credential)
    verified = verify_proof(broker.proofs[0], method="POST", url=broker.url, now=time.time())
    assert verified.jti


async def test_who_follows_the_feed_says_so(broker, identity):
    client = ExchangeClient(
        broker.url, identity, ProofKey(), ca_file=None, timeout=10.0, follows_feed=True
    )
    await client.exchange(KEY, BearerInjector(), None)
    assert broker.forms[-1]["capabilities"].split() == [
        "dpop", "mcp_filter", "single_use", "txn_token", "feed",
    ]  # fmt: skip
    await client.close()


async def test_every_question_names_the_signal_that_was_heard_last(client, broker):
    credential = await client.exchange(KEY, BearerInjector(), None)
    client.told = "e7"
    broker.answer = lambda _form: web.json_response({"active": False})
    assert not await client.is_active(credential)
    assert broker.told == [("/token", ""), ("/introspect", "e7")]


async def test_for_a_user_the_workload_is_the_actor(client, broker, identity, idp):
    user = idp.mint("alice", "https://broker.example", 50)
    broker.answer = lambda _form: web.json_response(
        GOOD
        | {
            "sub": "alice",
            "act": {"sub": "bot"},
            "jti": "j",
            "txn": "x",
            "policy_digest": "p",
            "policies": ["a"],
        }
    )
    credential = await client.exchange(
        KEY._replace(subject="token:0", actors=("bot",)), BearerInjector(), Secret(user)
    )
    (form,) = broker.forms
    own = identity.token()[0].reveal()
    assert (form["subject_token"], form["actor_token"]) == (user, own)
    assert form["actor_token_type"] == oauth.TOKEN_TYPE_JWT
    assert (credential.subject, credential.actor) == ("alice", "bot")
    assert (credential.jti, credential.txn, credential.policy_digest) == ("j", "x", "p")
    assert credential.policies == ("a",)
    # Never longer than the user's own token: 50 s, a tenth of it skew.
    assert 40 < credential.expires_at - time.monotonic() <= 45.5


async def test_never_longer_than_the_workloads_own_token(client, broker, idp, identity, tmp_path):
    idp.token_file(tmp_path / "token", "bot", "https://broker.example", 30)
    await asyncio.to_thread(identity.refresh)
    broker.answer = lambda _form: web.json_response(GOOD | {"expires_in": 10**30})
    credential = await client.exchange(KEY, BearerInjector(), None)
    assert 20 < credential.expires_at - time.monotonic() <= 27.5


INJECTORS = {
    "bearer": (BearerInjector(), "Bearer", b"authorization: Bearer %b\r\n"),
    "dpop": (DpopInjector(ProofKey()), "DPoP", b"authorization: DPoP %b\r\n"),
    "header": (HeaderInjector("X-Key"), "bearer", b"X-Key: %b\r\n"),
}


@pytest.mark.parametrize(("injector", "kind", "line"), INJECTORS.values(), ids=INJECTORS)
async def test_each_way_to_inject_takes_its_kind_of_token(client, broker, injector, kind, line):
    broker.answer = lambda _form: web.json_response(GOOD | {"token_type": kind})
    credential = await client.exchange(KEY, injector, None)
    assert credential.line == line % TOKEN.encode()


SCOPES = {
    "none: what was asked": None,
    "the same": "t:list t:read",
    "the same in another order": "t:read t:list",
}


@pytest.mark.parametrize("scope", SCOPES.values(), ids=SCOPES)
async def test_scopes_that_fit(client, broker, scope):
    more = {} if scope is None else {"scope": scope}
    broker.answer = lambda _form: web.json_response(GOOD | more)
    assert (await client.exchange(KEY, BearerInjector(), None)).key == KEY


def answering(status=200, **changes):
    body = {name: value for name, value in (GOOD | changes).items() if value is not None}
    return lambda _form: web.json_response(body, status=status)


def raw(body, status=200, **headers):
    return lambda _form: web.Response(body=body, status=status, headers=headers)


def refusing(error, code="", status=400, **headers):
    body = {"error": error, "code": code}
    return lambda _form: web.json_response(body, status=status, headers=headers)


BAD = codes.BROKER_BAD_RESPONSE
AWAY = codes.BROKER_UNAVAILABLE
REFUSED = codes.BROKER_REFUSED
HOSTILE = {
    "CR LF in the token": (answering(access_token="a\r\nX-Evil: 1"), BAD),
    "LF in the token": (answering(access_token="abc\n"), BAD),
    "NUL in the token": (answering(access_token="a\0b"), BAD),
    "a space in the token": (answering(access_token="a b"), BAD),
    "umlauts in the token": (answering(access_token="tökén"), BAD),
    "an empty token": (answering(access_token=""), BAD),
    "a token of 20 KiB": (answering(access_token="a" * 20_000), BAD),
    "a token that is a number": (answering(access_token=17), BAD),
    "no token": (answering(access_token=None), BAD),
    "bound instead of bearer": (answering(token_type="DPoP"), BAD),
    "token_type N_A": (answering(token_type="N_A"), BAD),
    "no token_type": (answering(token_type=None), BAD),
    "a refresh token": (
        answering(issued_token_type="urn:ietf:params:oauth:token-type:refresh_token"), BAD,
    ),
    "a transaction token": (answering(issued_token_type=oauth.TOKEN_TYPE_TXN), BAD),
    "an ID token": (answering(issued_token_type="urn:ietf:params:oauth:token-type:id_token"), BAD),
    "more scopes": (answering(scope="t:list t:read t:write"), BAD),
    "other scopes": (answering(scope="t:write"), BAD),
    "fewer scopes": (answering(scope="t:read"), codes.GRANT_SCOPE),
    "expires_in 0": (answering(expires_in=0), BAD),
    "expires_in negative": (answering(expires_in=-1), BAD),
    "expires_in as text": (answering(expires_in="120"), BAD),
    "expires_in a fraction": (answering(expires_in=1.5), BAD),
    "no expires_in": (answering(expires_in=None), BAD),
    "200 with garbage": (raw(b"\xff\xfe"), BAD),
    "200 with nothing": (raw(b""), BAD),
    "200 with HTML": (raw(b"<html>login</html>"), BAD),
    "200 with a list": (raw(b"[]"), BAD),
    "200 with deep nesting": (raw(b"[" * 50_000), BAD),
    "200 and huge": (raw(b" " * 200_000 + json.dumps(GOOD).encode()), BAD),
    "201": (answering(status=201), BAD),
    "204": (lambda _form: web.Response(status=204), BAD),
    "a redirect": (raw(b"", status=307, Location="/elsewhere"), BAD),
    "400 with garbage": (raw(b"nope", status=400), BAD),
    "400 without error": (refusing(""), BAD),
    "400 with an error that is no word": (refusing(TOKEN), BAD),
    "401 without a body": (raw(b"", status=401), BAD),
    "500": (raw(b"boom", status=500), AWAY),
    "502 from something in between": (raw(b"<html>", status=502), AWAY),
    "503": (refusing("temporarily_unavailable", "broker.unavailable", status=503), AWAY),
    "429": (refusing("slow_down", status=429), AWAY),
    "an unknown code": (refusing("invalid_request", "made.up"), REFUSED),
    "a code that is not the broker's to give": (refusing("invalid_request", "proxy.internal"), REFUSED),
    "an unknown error": (refusing("teapot"), REFUSED),
    "grant.missing": (refusing("invalid_target", "grant.missing"), codes.GRANT_MISSING),
    "policy.denied": (refusing("invalid_target", "policy.denied"), codes.POLICY_DENIED),
    "subject.revoked": (refusing("invalid_grant", "subject.revoked"), codes.SUBJECT_REVOKED),
    "actor.invalid": (refusing("invalid_client", "actor.invalid", 401), codes.ACTOR_INVALID),
    "a nonce asked for again and again": (refusing("use_dpop_nonce", "dpop.nonce", **{"DPoP-Nonce": "n"}), BAD),
    "a nonce asked for and none given": (refusing("use_dpop_nonce", "dpop.nonce"), BAD),
}  # fmt: skip


@pytest.mark.parametrize(("answer", "code"), HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_broker_gives_a_code_and_no_credential(
    client, broker, answer, code, caplog
):
    caplog.set_level(logging.DEBUG)
    broker.answer = answer
    with pytest.raises(ValetkeyError) as failed:
        await client.exchange(KEY, BearerInjector(), None)
    assert failed.value.code is code
    assert isinstance(failed.value, BrokerError if code in {BAD, AWAY} else PolicyError)
    assert len(broker.forms) <= 2
    assert TOKEN not in str(failed.value)
    assert TOKEN not in caplog.text


async def test_the_policies_that_refused_are_for_the_record(client, broker):
    names = ["no-exports", "x y", TOKEN * 3, *(f"p{number}" for number in range(9))]
    broker.answer = lambda _form: web.json_response(
        {"error": "invalid_target", "code": "policy.denied", "policies": names}, status=400
    )
    with pytest.raises(PolicyError) as failed:
        await client.exchange(KEY, BearerInjector(), None)
    assert failed.value.reason.endswith("; policies no-exports, p0, p1, p2, p3, p4")
    assert TOKEN not in failed.value.reason


async def test_a_bearer_token_for_a_bound_target(client):
    with pytest.raises(BrokerError) as failed:
        await client.exchange(KEY, DpopInjector(ProofKey()), None)
    assert failed.value.code is BAD


async def test_a_nonce_is_taken_up_and_kept(client, broker):
    def answer(_form):
        if len(broker.forms) == 1:
            return refusing("use_dpop_nonce", "dpop.nonce", **{"DPoP-Nonce": "first"})(None)
        return web.json_response(GOOD, headers={"DPoP-Nonce": "second"})

    broker.answer = answer
    for _ in range(2):
        await client.exchange(KEY, BearerInjector(), None)
    assert [_nonce(proof) for proof in broker.proofs] == [None, "first", "second"]
    assert len(set(broker.proofs)) == 3


def _nonce(proof):
    import base64

    part = proof.split(".")[1]
    return json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))).get("nonce")


async def test_a_broker_that_hangs(broker, identity):
    client = ExchangeClient(broker.url, identity, ProofKey(), ca_file=None, timeout=0.3)
    release = asyncio.Event()

    async def hang(_form=None):
        await release.wait()
        return web.Response()

    broker.answer = lambda _form: hang()
    begun = time.monotonic()
    with pytest.raises(BrokerError) as failed:
        await client.exchange(KEY, BearerInjector(), None)
    release.set()
    assert failed.value.code is AWAY
    assert time.monotonic() - begun < 5
    await client.close()


async def test_an_answer_that_takes_long_takes_it_from_the_life_of_the_credential(client, broker):
    """It may have been issued at once, and be late for what lies between."""
    issued = 0.0

    async def slow() -> web.Response:
        nonlocal issued
        issued = time.monotonic()
        await asyncio.sleep(0.3)
        return web.json_response(GOOD | {"expires_in": 2})

    broker.answer = lambda _form: slow()
    credential = await client.exchange(KEY, BearerInjector(), None)
    assert credential.expires_at <= issued + 1.8


async def test_nobody_there(identity):
    from tests.support.fleet import free_port

    client = ExchangeClient(
        f"http://127.0.0.1:{free_port()}/token", identity, ProofKey(), ca_file=None, timeout=10.0
    )
    with pytest.raises(BrokerError) as failed:
        await client.exchange(KEY, BearerInjector(), None)
    assert failed.value.code is AWAY
    await client.close()


async def test_a_connection_cut_in_the_answer(client, aiohttp_server):
    async def cut(request):
        await request.read()
        response = web.StreamResponse(headers={"Content-Length": "500"})
        await response.prepare(request)
        await response.write(b'{"access_token":')
        request.transport.abort()
        return response

    app = web.Application()
    app.router.add_post("/token", cut)
    server = await aiohttp_server(app)
    client._endpoint = str(server.make_url("/token"))
    with pytest.raises(BrokerError) as failed:
        await client.exchange(KEY, BearerInjector(), None)
    assert failed.value.code is AWAY


USERS = {
    "not a token": "hello",
    "empty": "",
    "expired": {"ttl": -10},
    "without exp": {"exp": None},
    "exp as text": {"exp": "tomorrow"},
    "exp true": {"exp": True},
    "exp of 400 digits": {"exp": 10**400},
}


@pytest.mark.parametrize("user", USERS.values(), ids=USERS)
async def test_a_users_token_that_can_not_be_one_is_not_sent(client, broker, idp, user):
    token = user
    if isinstance(user, dict):
        claims = dict(user)
        token = idp.mint("alice", "https://broker.example", claims.pop("ttl", 60), **claims)
    with pytest.raises(CallerError) as failed:
        await client.exchange(KEY, BearerInjector(), Secret(token))
    assert failed.value.code is codes.SUBJECT_INVALID
    assert broker.forms == []


async def test_without_identity_nothing_is_asked(broker, tmp_path):
    identity = FileIdentity(tmp_path / "none")
    client = ExchangeClient(broker.url, identity, ProofKey(), ca_file=None, timeout=10.0)
    with pytest.raises(BrokerError) as failed:
        await client.exchange(KEY, BearerInjector(), None)
    assert failed.value.code is codes.IDENTITY_UNAVAILABLE
    assert broker.forms == []


def test_a_ca_file_that_can_not_be_used(identity, tmp_path):
    with pytest.raises(ConfigError, match=r"broker\.ca_file"):
        ExchangeClient(
            "https://127.0.0.1:1/token", identity, ProofKey(), ca_file=tmp_path / "none",
            timeout=10.0,
        )  # fmt: skip

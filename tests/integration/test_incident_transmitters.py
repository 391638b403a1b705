"""Security events of other transmitters: pushed or polled, believed only as far as they prove it."""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import jwt
import pytest
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.integration.broker_support import (
    BOT,
    IDP,
    USERS,
    Issuer,
    Served,
    World,
    serving,
)
from tests.integration.test_broker_containment import active, code_of, issue
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.incidents import polling
from valetkey.contracts import keys
from valetkey.contracts.dpop import ProofKey

EVENTS = "https://events.idp.example"
CAEP = "https://schemas.openid.net/secevent/caep/event-type/"
SSF = "https://schemas.openid.net/secevent/ssf/event-type/"
PATH = "/v1/ssf/push/idp"


class Sender:
    """A transmitter with a key of its own."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.issuer = Issuer(EVENTS)
        self.secret = secrets.token_urlsafe(24)
        world.root.mkdir(parents=True, exist_ok=True)
        (world.root / "events.json").write_text(json.dumps(self.issuer.jwks()))
        (world.root / "push.token").write_text(self.secret + "\n")

    def settings(self, **more: Any) -> dict[str, Any]:
        return {
            "issuer": EVENTS,
            "audience": self.world.url,
            "jwks_file": str(self.world.root / "events.json"),
            "push": {"token_file": str(self.world.root / "push.token")},
            "subjects": [IDP, USERS, self.world.url],
            "identifiers": {"email": USERS},
            **more,
        }

    def claims(self, subject: Any = None, **more: Any) -> dict[str, Any]:
        now = self.world.clock()
        claims = {
            "iss": EVENTS,
            "aud": self.world.url,
            "iat": int(now),
            "jti": secrets.token_urlsafe(8),
            "sub_id": subject or {"format": "iss_sub", "iss": IDP, "sub": BOT},
            "events": {CAEP + "session-revoked": {"event_timestamp": now}},
            **more,
        }
        return {name: value for name, value in claims.items() if value is not None}

    def sign(self, claims: dict[str, Any], key: Any = None, **header: Any) -> str:
        headers = {"typ": "secevent+jwt", "kid": self.issuer.kid, **header}
        return jwt.encode(claims, key or self.issuer.key, algorithm="ES256", headers=headers)

    async def push(
        self, served: Served, compact: str, *, secret: str | None = None, path: str = PATH,
        media: str = "application/secevent+jwt",
    ) -> tuple[int, Any]:  # fmt: skip
        headers = {"Content-Type": media, "Authorization": f"Bearer {secret or self.secret}"}
        async with served.client.post(
            served.where + path, data=compact, headers=headers
        ) as response:
            text = await response.text()
            return response.status, json.loads(text) if text else None


@pytest.fixture
def sender(tmp_path: Path) -> Sender:
    world = World(tmp_path, free_url())
    made = Sender(world)
    world.overrides = {"incidents": {"transmitters": {"idp": made.settings()}}}
    return made


async def incidents(served: Served) -> list[dict[str, Any]]:
    return list((await served.manage("GET", "/v1/incidents?state=all"))[1]["items"])


async def test_a_pushed_event_contains_its_subject(sender: Sender) -> None:
    world = sender.world
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        world.clock.advance(40)
        body = {"event_timestamp": world.clock(), "reason_admin": {"en": "device lost"}}
        claims = sender.claims(events={CAEP + "session-revoked": body})
        compact = sender.sign(claims)
        assert await sender.push(broker, compact) == (202, None)
        assert not await active(broker, token)
        (incident,) = await incidents(broker)
        assert incident["source"] == "ssf:idp"
        assert incident["opened_by"] == EVENTS
        assert incident["reason"] == "session-revoked: device lost"
        assert incident["subject"]["subject"] == BOT
        # The same again, and another one of the same thing, change nothing.
        assert await sender.push(broker, compact) == (202, None)
        assert await sender.push(broker, sender.sign(sender.claims())) == (202, None)
        assert [one["subject"]["epoch"] for one in await incidents(broker)] == [1]
        world.clock.advance(40)
        world.proof_key = ProofKey()
        own = world.workload()
        assert await code_of(broker, world.form(own)) == "ok"
        # What happened before that, told late or again, contains nobody anew.
        late = sender.claims(
            events={CAEP + "session-revoked": {"event_timestamp": body["event_timestamp"] - 60}}
        )
        assert await sender.push(broker, sender.sign(late)) == (202, None)
        assert await code_of(broker, world.form(own)) == "ok"
        assert await sender.push(broker, sender.sign(sender.claims())) == (202, None)
        assert await code_of(broker, world.form(own)) == "subject.contained"


async def test_an_event_is_acted_on_once_also_after_a_restart(sender: Sender) -> None:
    world = sender.world
    compact = sender.sign(sender.claims())
    async with serving(world) as broker:
        assert (await sender.push(broker, compact))[0] == 202
    world.clock.advance(100)
    world.proof_key = ProofKey()
    async with serving(world) as broker:
        assert await code_of(broker, world.form(world.workload())) == "ok"
        assert (await sender.push(broker, compact))[0] == 202
        assert await code_of(broker, world.form(world.workload())) == "ok"


async def test_a_token_of_ours_by_its_id(sender: Sender) -> None:
    world = sender.world
    async with serving(world) as broker:
        issued = await issue(broker, world.form(world.workload()))
        subject = {"format": "jwt_id", "iss": world.url, "jti": issued["jti"]}
        event = {CAEP + "credential-change": {"change_type": "revoke", "credential_type": "jwt"}}
        claims = sender.claims(subject, events=event)
        assert (await sender.push(broker, sender.sign(claims)))[0] == 202
        assert not await active(broker, issued["access_token"])
        assert await code_of(broker, world.form(world.workload())) == "ok"


async def test_what_opens_nothing_is_acknowledged(sender: Sender) -> None:
    async with serving(sender.world) as broker:
        for name, claims in (
            ("an unknown event", sender.claims(events={"https://vendor.example/e": {}})),
            ("a subject of another issuer",
             sender.claims({"format": "iss_sub", "iss": "https://x", "sub": "y"})),
            ("an unknown format", sender.claims({"format": "did", "url": "did:x:y"})),
            ("verification", sender.claims({"format": "opaque", "id": "s"},
                                           events={SSF + "verification": {"state": "abc"}})),
            ("stream updated", sender.claims({"format": "opaque", "id": "s"},
                                             events={SSF + "stream-updated": {"status": "paused"}})),
        ):  # fmt: skip
            assert await sender.push(broker, sender.sign(claims)) == (202, None), name
        assert await incidents(broker) == []


def refused(sender: Sender) -> list[tuple[str, str, str]]:
    """Name, SET, the error of RFC 8935 §2.4."""
    good, sign = sender.claims, sender.sign
    stranger = Issuer(EVENTS)
    header, _, signature = sign(good()).partition(".")[0], "", "A" * 86
    unsigned = jwt.encode(good(), None, algorithm="none", headers={"typ": "secevent+jwt"})
    hmac = jwt.encode(
        good(), "x" * 40, algorithm="HS256", headers={"typ": "secevent+jwt", "kid": "k1"}
    )
    rs = jwt.encode(
        good(), rsa.generate_private_key(65537, 2048), algorithm="RS256",
        headers={"typ": "secevent+jwt", "kid": "k1"},
    )  # fmt: skip
    return [
        ("garbage", "x", "invalid_request"),
        ("empty", "", "invalid_request"),
        ("endless", "x" * 20_000, "invalid_request"),
        ("JSON serialisation", json.dumps({"payload": "x"}), "invalid_request"),
        ("alg none", unsigned, "invalid_request"),
        ("HMAC", hmac, "invalid_request"),
        ("another algorithm", rs, "invalid_key"),
        ("an unknown key", sign(good(), kid="k2"), "invalid_key"),
        ("another's key", sign(good(), stranger.key), "invalid_key"),
        ("no signature", f"{header}.{sign(good()).split('.')[1]}.{signature}", "invalid_key"),
        ("another type", sign(good(), typ="JWT"), "invalid_request"),
        ("an access token's type", sign(good(), typ="at+jwt"), "invalid_request"),
        ("no type", sign(good(), typ=None), "invalid_request"),
        (
            "a key in the header",
            sign(good(), jwk=sender.issuer.jwks()["keys"][0]),
            "invalid_request",
        ),
        ("another issuer", sign(good(iss="https://other")), "invalid_issuer"),
        ("no issuer", sign(good(iss=None)), "invalid_issuer"),
        ("another audience", sign(good(aud="https://other")), "invalid_audience"),
        ("no audience", sign(good(aud=None)), "invalid_audience"),
        ("a second audience", sign(good(aud=[sender.world.url, "https://x"])), "invalid_audience"),
        ("exp", sign(good(exp=int(sender.world.clock()) + 60)), "invalid_request"),
        ("sub", sign(good(sub=BOT)), "invalid_request"),
        ("no jti", sign(good(jti=None)), "invalid_request"),
        ("no iat", sign(good(iat=None)), "invalid_request"),
        ("from the future", sign(good(iat=int(sender.world.clock()) + 100)), "invalid_request"),
        (
            "eight days old",
            sign(good(iat=int(sender.world.clock()) - 8 * 86_400)),
            "invalid_request",
        ),
        ("no events", sign(good(events=None)), "invalid_request"),
        (
            "events that are none",
            sign(good(events={CAEP + "session-revoked": 1})),
            "invalid_request",
        ),
    ]


async def test_what_is_refused(sender: Sender, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "REFETCH_COOLDOWN", 0.0)
    async with serving(sender.world) as broker:
        for name, compact, err in refused(sender):
            status, body = await sender.push(broker, compact)
            assert (status, body["err"]) == (400, err), name
            assert body["description"], name
        good = sender.sign(sender.claims())
        for secret in ("wrong", sender.secret[:-1], sender.secret + "x"):
            status, body = await sender.push(broker, good, secret=secret)
            assert (status, body["err"]) == (400, "authentication_failed")
        status, body = await sender.push(broker, good, media="application/jwt")
        assert (status, body["err"]) == (400, "invalid_request")
        status, body = await sender.push(broker, good, path="/v1/ssf/push/other")
        assert (status, body["code"]) == (404, "service.not_found")
        assert await incidents(broker) == []
        assert await sender.push(broker, good) == (202, None), "the control"
        assert len(await incidents(broker)) == 1


async def test_a_list_of_one_audience_and_an_email(sender: Sender) -> None:
    async with serving(sender.world) as broker:
        subject = {"format": "email", "email": "alice@demo.example"}
        claims = sender.claims(subject, aud=[sender.world.url])
        assert (await sender.push(broker, sender.sign(claims)))[0] == 202
        (incident,) = await incidents(broker)
        assert incident["subject"]["subject"] == "alice@demo.example"


@asynccontextmanager
async def listening(url: str, route: web.RouteDef) -> AsyncIterator[None]:
    """A server of the transmitter's, with one route."""
    app = web.Application()
    app.add_routes([route])
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(url.rpartition(":")[2])).start()
    try:
        yield
    finally:
        await runner.cleanup()


class KeyServer:
    """The transmitter's JWK Set, at a URL that answers ``fails`` times with 500."""

    def __init__(self, sender: Sender) -> None:
        self.sender = sender
        self.asked = 0
        self.fails = 0
        self.url = free_url()

    def settings(self) -> dict[str, str]:
        return {"jwks_url": self.url + "/jwks"}

    async def _jwks(self, _request: web.Request) -> web.Response:
        self.asked += 1
        if self.fails:
            self.fails -= 1
            return web.Response(status=500)
        return web.json_response(self.sender.issuer.jwks())

    def listening(self) -> AbstractAsyncContextManager[None]:
        return listening(self.url, web.get("/jwks", self._jwks))


def rotate(sender: Sender) -> None:
    """A new key, which the transmitter signs with at once."""
    sender.issuer = Issuer(EVENTS, kid="k2")


def fetched(sender: Sender, server: KeyServer) -> None:
    """Have the broker fetch the transmitter's keys."""
    (settings,) = sender.world.overrides["incidents"]["transmitters"].values()
    del settings["jwks_file"]
    settings |= server.settings()


@pytest.mark.parametrize("rotated", [False, True], ids=["no keys", "a key newer than ours"])
async def test_a_push_is_not_refused_for_keys_that_could_not_be_had(
    sender: Sender, monkeypatch: pytest.MonkeyPatch, *, rotated: bool
) -> None:
    server = KeyServer(sender)
    fetched(sender, server)
    async with server.listening(), serving(sender.world) as broker:
        if rotated:
            other = {"format": "iss_sub", "iss": IDP, "sub": "another"}
            assert (await sender.push(broker, sender.sign(sender.claims(other))))[0] == 202
            rotate(sender)
        else:
            server.fails = 1
        known = len(await incidents(broker))
        compact = sender.sign(sender.claims())
        for _ in range(2):  # within the cooldown nothing else is fetched
            status, body = await sender.push(broker, compact)
            assert (status, body["code"]) == (503, "service.unavailable")
        assert server.asked == 1
        monkeypatch.setattr(keys, "REFETCH_COOLDOWN", 0.0)
        assert await sender.push(broker, compact) == (202, None)
        assert len(await incidents(broker)) == known + 1
        # A stranger's key is one that a set from after its arrival lacks, and not before.
        server.fails = 1
        alien = sender.sign(sender.claims(), kid="k9")
        assert (await sender.push(broker, alien))[0] == 503
        status, body = await sender.push(broker, alien)
        assert (status, body["err"]) == (400, "invalid_key")


class PollServer:
    """A transmitter that is polled: it gives what is not acknowledged, again and again."""

    def __init__(self) -> None:
        self.sets: dict[str, str] = {}
        self.asked: list[dict[str, Any]] = []
        self.errors: dict[str, Any] = {}
        self.acknowledged: list[str] = []
        self.fails = 0
        self.tokens: set[str] = set()
        self.url = free_url()

    async def _poll(self, request: web.Request) -> web.Response:
        document = await request.json()
        self.tokens.add(request.headers["Authorization"])
        self.asked.append(document)
        if self.fails:
            self.fails -= 1
            return web.Response(status=503)
        for jti in document.get("ack", []):
            self.acknowledged.append(jti)
            self.sets.pop(jti, None)
        for jti, error in document.get("setErrs", {}).items():
            self.errors[jti] = error
            self.sets.pop(jti, None)
        return web.json_response({"sets": self.sets, "moreAvailable": False})

    def listening(self) -> AbstractAsyncContextManager[None]:
        return listening(self.url, web.post("/poll", self._poll))


def polled(world: World, server: PollServer) -> Sender:
    sender = Sender(world)
    poll = {
        "url": server.url + "/poll",
        "token_file": str(world.root / "push.token"),
        "every": "100ms",
    }
    settings = {**sender.settings(), "poll": poll}
    del settings["push"]
    world.overrides = {**world.overrides, "incidents": {"transmitters": {"idp": settings}}}
    return sender


async def test_polled_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(polling, "_FIRST_RETRY", 0.05)
    server = PollServer()
    sender = polled(World(tmp_path, free_url()), server)
    server.fails = 2
    good, alien, renamed = sender.claims(), sender.claims(aud="https://x"), sender.claims()
    server.sets = {
        good["jti"]: sender.sign(good),
        alien["jti"]: sender.sign(alien),
        "other": sender.sign(renamed),
    }
    async with server.listening(), serving(sender.world) as broker:

        async def told() -> bool:
            return server.sets == {}

        await until(told, "the transmitter is told")
        assert server.acknowledged == [good["jti"]]
        assert {jti: error["err"] for jti, error in server.errors.items()} == {
            alien["jti"]: "invalid_audience",
            "other": "invalid_request",
        }
        assert server.asked[0] == {"maxEvents": 50, "returnImmediately": False}
        assert server.tokens == {f"Bearer {sender.secret}"}
        (incident,) = await incidents(broker)
        assert incident["source"] == "ssf:idp"


@pytest.mark.parametrize("rotated", [False, True], ids=["no keys", "a key newer than ours"])
async def test_a_polled_event_waits_for_keys_that_could_not_be_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, rotated: bool
) -> None:
    server = PollServer()
    sender = polled(World(tmp_path, free_url()), server)
    jwks = KeyServer(sender)
    fetched(sender, jwks)
    async with server.listening(), jwks.listening(), serving(sender.world) as broker:

        async def told() -> bool:
            return server.sets == {}

        async def asked_again() -> bool:
            return len(server.asked) > before + 2

        if rotated:
            other = sender.claims({"format": "iss_sub", "iss": IDP, "sub": "another"})
            server.sets = {other["jti"]: sender.sign(other)}
            await until(told, "the transmitter was told")
            rotate(sender)
        else:
            jwks.fails = 1
        known, before = len(server.acknowledged), len(server.asked)
        claims = sender.claims()
        server.sets = {claims["jti"]: sender.sign(claims)}
        await until(asked_again, "asked again")
        assert list(server.sets) == [claims["jti"]], "neither acknowledged nor refused"
        # It answers at once, and is not asked without pause for that.
        assert len(server.asked) < before + 20
        monkeypatch.setattr(keys, "REFETCH_COOLDOWN", 0.0)
        await until(told, "the transmitter was told")
        assert server.errors == {}
        assert server.acknowledged[known:] == [claims["jti"]]
        assert len(await incidents(broker)) == known + 1


async def test_polled_by_two_replicas_it_is_acted_on_once(
    tmp_path: Path, postgres: Postgres
) -> None:
    server = PollServer()
    world = World(tmp_path, free_url(), overrides={"database": postgres.database()})
    sender = polled(world, server)
    async with server.listening(), serving(world) as one, serving(world, free_url()):
        for _ in range(5):
            who = {"format": "iss_sub", "iss": IDP, "sub": f"bot-{secrets.token_hex(4)}"}
            claims = sender.claims(who)
            server.sets[claims["jti"]] = sender.sign(claims)

        async def told() -> bool:
            return server.sets == {}

        await until(told, "the transmitter is told")
        found = await incidents(one)
        assert [incident["subject"]["epoch"] for incident in found] == [1] * 5


async def test_what_is_not_in_force_is_not_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(polling, "_FIRST_RETRY", 0.05)
    monkeypatch.setattr(polling, "_LONGEST_RETRY", 0.1)
    server = PollServer()
    sender = polled(World(tmp_path, free_url()), server)
    async with server.listening(), serving(sender.world) as broker:
        take = broker.broker.base.response.open_within
        fails = True

        async def open_within(*arguments: Any) -> Any:
            if fails:
                raise OSError("the disk is full")
            return await take(*arguments)

        broker.broker.base.response.open_within = open_within  # type: ignore[method-assign]
        claims = sender.claims()
        server.sets = {claims["jti"]: sender.sign(claims)}
        await asyncio.sleep(0.5)
        assert len(server.asked) > 1, "it is asked for again"
        assert server.acknowledged == []
        assert await incidents(broker) == []
        fails = False

        async def told() -> bool:
            return server.acknowledged == [claims["jti"]]

        await until(told, "the transmitter is told")
        assert len(await incidents(broker)) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"push": None}, "one of push and poll"),
        ({"subjects": [], "identifiers": {}}, "speak of nobody"),
        ({"jwks_file": None}, "one of jwks_file and jwks_url"),
        ({"jwks_file": None, "jwks_url": "http://idp.example/jwks"}, "https URL"),
        ({"opens": []}, "opens is empty"),
        ({"opens": ["session-revokd"]}, "session-revokd"),
        ({"audience": ""}, "must not be empty"),
        ({"algorithms": []}, "algorithms is empty"),
        ({"push": None, "poll": {"url": "http://x.example", "token_file": "t"}}, "https URL"),
    ],
)
def test_settings_that_are_refused(sender: Sender, changes: dict[str, Any], message: str) -> None:
    from valetkey.contracts.errors import ConfigError

    settings = {**sender.settings(), **changes}
    settings = {name: value for name, value in settings.items() if value is not None}
    sender.world.overrides = {"incidents": {"transmitters": {"idp": settings}}}
    with pytest.raises(ConfigError, match=message):
        sender.world.settings()

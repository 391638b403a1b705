"""Following the feed: in force before it is acknowledged, nothing missed, closed when in doubt."""

from __future__ import annotations

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError
from valetkey.contracts.secret import Secret
from valetkey.contracts.sets import read_keys
from valetkey.contracts.signals import (
    MAX_SIGNAL,
    Signal,
    StreamUpdated,
    Verification,
    event_claims,
    fleet_audience,
)
from valetkey.proxy import feed as feed_module
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import Principal
from valetkey.proxy.credentials import cache as cache_module
from valetkey.proxy.credentials.cache import CredentialCache
from valetkey.proxy.feed import FeedReceiver
from valetkey.proxy.feed_client import NoStream
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.settings import FeedSettings

BROKER, IDP = "https://broker.example", "https://idp.example"
NOW = 1_793_500_000
KEY = CacheKey(
    tenant=IDP, subject="bot", actors=(), audience="https://a", resource="https://a", details="[]",
    scopes="t:read", endpoint="https://b/token", thumbprint="", policy_digest="d", epoch=0,
)  # fmt: skip


class Keys:
    """The broker's signing keys, as it publishes them."""

    def __init__(self) -> None:
        self.keys = {"k1": ec.generate_private_key(ec.SECP256R1())}

    def published(self):
        jwks = [
            {**json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key())), "kid": kid}
            for kid, key in self.keys.items()
        ]
        return read_keys(json.dumps({"keys": jwks}).encode())

    def sign(self, event, jti: str, kid: str = "k1", key=None, **changes: Any) -> str:
        claims = {
            "iss": BROKER, "aud": fleet_audience(BROKER), "iat": NOW, "jti": jti,
            **event_claims(event, issuer=BROKER, with_reason=False), **changes,
        }  # fmt: skip
        return jwt.encode(
            claims, key or self.keys[kid], algorithm="ES256",
            headers={"typ": "secevent+jwt", "kid": kid},
        )  # fmt: skip


class Transmitter:
    """A broker that says what is next; ``polled`` is what it was asked."""

    def __init__(self, keys: Keys) -> None:
        self.keys_of = keys
        self.created = 0
        self.deleted: list[str] = []
        self.polled: list[tuple[list[str], dict[str, str], int]] = []
        self.answers: list[Any] = []
        self.keys_asked = 0
        self.no_keys = False
        self.refuses: list[Exception] = []
        """To the next requests for a stream."""

    async def create(self, _description: str) -> str:
        if self.refuses:
            raise self.refuses.pop(0)
        self.created += 1
        return f"s-{self.created}"

    async def delete(self, stream: str) -> None:
        self.deleted.append(stream)

    async def close(self) -> None:
        self.closed = True

    async def keys(self):
        self.keys_asked += 1
        if self.no_keys:
            raise BrokerError(codes.BROKER_UNAVAILABLE, "down")
        return self.keys_of.published()

    async def poll(self, _stream, *, ack, errors, wait):
        self.polled.append((list(ack), {jti: one.err for jti, one in errors.items()}, wait))
        await asyncio.sleep(0)
        answer = self.answers.pop(0) if self.answers else {}
        if isinstance(answer, Exception):
            raise answer
        return (answer, False) if isinstance(answer, dict) else answer


class Streams:
    """Calls under way: unsettled until the test says so."""

    def __init__(self) -> None:
        self.open: list[Any] = []
        self.was_cut: list[Any] = []
        self.rechecks = 0

    def unsettled(self, calls):
        return [call for call in calls if call in self.open]

    def cut(self, calls, _reason) -> None:
        self.was_cut += calls
        self.open = []

    def changed(self) -> None:
        self.rechecks += 1


class Stand:
    """A receiver on a clock of its own, which the cache's is as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **settings: Any) -> None:
        self.now = 1000.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr(cache_module, "time", clock)
        self.keys = Keys()
        self.transmitter = Transmitter(self.keys)
        self.cache = CredentialCache(100)
        self.exchange = SimpleNamespace(told="")
        self.streams = Streams()
        self.revoked: list[Any] = []
        self.told_then: list[str] = []
        """What exchanges named as the last signal, at each revocation."""
        self.limited: list[float] = []
        self.resting: list[Any] = []
        self.principal = Principal(IDP, "bot", 1)
        self.metrics = Metrics()
        self.wall = float(NOW)
        self.receiver = FeedReceiver(
            self.transmitter,
            SimpleNamespace(principal=lambda: self.principal, raise_epoch=self._raise),
            SimpleNamespace(
                streams=self.streams, revoke=self._revoke, limit_lives=self._limit_lives
            ),
            self.cache,
            self.exchange,
            self.metrics,
            FeedSettings(**settings),
            issuer=BROKER,
            name="agent-0",
            clock=lambda: self.wall,
            monotonic=lambda: self.now,
        )

    def _raise(self, epoch: int) -> None:
        if epoch > self.principal.epoch:
            self.principal = Principal(IDP, "bot", epoch)

    def _revoke(self, ended):
        self.revoked.append(ended)
        self.told_then.append(self.exchange.told)
        self.cache.revoke(ended)
        return list(self.resting)

    def _limit_lives(self, seconds: float) -> None:
        self.cache.limit_lives(seconds)
        self.limited.append(seconds)

    def hold(self, jti: str = "j", **more: Any) -> Credential:
        """A credential in the cache."""
        key = KEY._replace(scopes=jti)
        made = Credential(
            key, Secret("a-token-that-is-long-enough"), b"", expires_at=self.now + 1000,
            refresh_at=self.now + 800, subject="bot", actor="bot", jti=jti, txn=f"t-{jti}",
            policy_digest="d", minted_at=self.now, **more,
        )  # fmt: skip
        self.cache.put(made)
        return made

    def has(self, jti: str) -> bool:
        return self.cache.get(KEY._replace(scopes=jti), self.now) is not None

    def told(self, **events: Any) -> None:
        """The next poll brings these: jti=event."""
        self.transmitter.answers.append(
            {jti: self.keys.sign(event, jti) for jti, event in events.items()}
        )


@pytest.fixture
def stand(monkeypatch):
    return Stand(monkeypatch)


def txn(value: str, **more: Any) -> Signal:
    return Signal(kind="txn", value=value, at=NOW - 0.25, **more)


async def test_an_event_is_in_force_and_then_acknowledged(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.hold("b")
    stand.told(e1=txn("t-a"))
    await stand.receiver.round()
    assert not stand.has("a")
    assert stand.has("b")
    assert stand.exchange.told == "e1"  # what is asked for from now on is asked for behind it
    assert stand.transmitter.polled[-1][0] == []
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][0] == ["e1"]
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][0] == []
    assert stand.metrics.feed_events == {"txn": 1}
    assert stand.metrics.feed_lag.buckets()[1] == 0.25


async def test_nothing_is_acknowledged_while_a_call_goes_on_by_it(stand) -> None:
    await stand.receiver.round()
    call = object()
    stand.resting, stand.streams.open = [call], [call]
    stand.told(e1=txn("t-a"))
    round_ = asyncio.ensure_future(stand.receiver.round())
    await asyncio.sleep(0.05)
    assert not round_.done()
    stand.streams.open = []
    await round_
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][0] == ["e1"]
    assert stand.streams.was_cut == []


async def test_a_call_that_nobody_permits_again_is_cut(stand, monkeypatch) -> None:
    monkeypatch.setattr("valetkey.proxy.feed._SETTLE_LOOKS", 3)
    await stand.receiver.round()
    call = object()
    stand.resting, stand.streams.open = [call], [call]
    stand.told(e1=txn("t-a"))
    await stand.receiver.round()
    assert stand.streams.was_cut == [call]


async def test_the_own_subjects_end_raises_the_epoch(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.told(e1=Signal(kind="subject", value="bot", issuer=IDP, epoch=7, at=NOW))
    await stand.receiver.round()
    assert stand.principal.epoch == 7
    assert not stand.has("a")


@pytest.mark.parametrize(
    "signal",
    [
        Signal(kind="subject", value="bot", issuer="https://other.example", epoch=7, at=NOW),
        Signal(kind="subject", value="alice", issuer=IDP, epoch=7, at=NOW),
    ],
)
async def test_anothers_end_does_not(stand, signal) -> None:
    await stand.receiver.round()
    stand.told(e1=signal)
    await stand.receiver.round()
    assert stand.principal.epoch == 1


async def test_a_stream_begins_with_nothing_cached(stand) -> None:
    """What ended between an exchange and the begin of the stream would never be told."""
    stand.hold("a")
    await stand.receiver.round()
    assert not stand.has("a")
    assert stand.transmitter.created == 1


async def test_a_stream_that_is_gone_begins_anew_with_nothing_cached(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.transmitter.answers.append(NoStream())
    task = asyncio.ensure_future(stand.receiver.run())
    async with asyncio.timeout(15):
        while stand.transmitter.created < 2:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not stand.has("a")
    assert stand.receiver.afresh == 3  # the start, the end of the first one, the second one
    assert stand.transmitter.deleted == []


async def following(stand, until) -> None:
    """Follow until something is so."""
    task = asyncio.ensure_future(stand.receiver.run())
    try:
        async with asyncio.timeout(15):
            while not until():
                await asyncio.sleep(0)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_nothing_is_used_without_a_stream_while_none_can_be_had(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.transmitter.answers.append(NoStream())
    stand.transmitter.refuses = [BrokerError(codes.BROKER_UNAVAILABLE, "down")] * 1000
    await following(stand, lambda: len(stand.transmitter.refuses) < 1000)
    assert not stand.has("a")
    assert stand.transmitter.created == 1
    assert stand.receiver.health == "down"


async def test_a_broker_that_knows_no_stream_is_not_asked_for_one_all_the_time(
    stand, monkeypatch
) -> None:
    """The first one comes at once; from then on each pause is longer than the one before."""
    passed, sleep = [], asyncio.sleep

    async def fake(seconds):
        if seconds == feed_module._LOOK:
            await asyncio.Event().wait()
        passed.append(seconds)
        await sleep(0)

    monkeypatch.setattr(feed_module.random, "uniform", lambda _low, high: high)
    await stand.receiver.round()
    stand.transmitter.answers = [NoStream()] * 100_000
    monkeypatch.setattr(asyncio, "sleep", fake)
    task = asyncio.ensure_future(stand.receiver.run())
    for _ in range(100_000):
        await sleep(0)
        if sum(passed) > 60:
            break
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert sum(passed) > 60
    assert [pause for pause in passed if pause][:3] == [0.1, 0.2, 0.4]
    assert 2 <= stand.transmitter.created <= 25


async def test_a_stream_that_the_broker_disabled_is_left_for_another_one(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.told(e1=StreamUpdated("s-1", "disabled", "too slow"))
    await following(stand, lambda: stand.transmitter.created == 2)
    assert not stand.has("a")
    assert stand.transmitter.deleted == ["s-1"]


async def test_a_disabled_stream_that_can_not_be_deleted_is_left_as_well(stand) -> None:
    async def delete(_stream):
        raise BrokerError(codes.BROKER_UNAVAILABLE, "down")

    stand.transmitter.delete = delete
    await stand.receiver.round()
    stand.told(e1=StreamUpdated("s-1", "disabled", "too slow"))
    await following(stand, lambda: stand.transmitter.created == 2)


# What exchanges name must be known to no replica, or one that lags gives out what has ended.


async def test_a_stream_that_begins_makes_replicas_catch_up(stand) -> None:
    stand.exchange.told = "old"
    await stand.receiver.round()
    (begun,) = stand.told_then
    assert begun not in {"", "old"}
    assert len(begun) <= MAX_SIGNAL
    stand.told(e1=txn("t-a"))
    stand.transmitter.answers.append(NoStream())
    await following(stand, lambda: stand.transmitter.created == 2)
    assert stand.told_then[:2] == [begun, "e1"]
    gone, again = stand.told_then[2:]
    assert len({begun, "e1", gone, again}) == 4


async def test_a_refused_event_makes_replicas_catch_up(stand) -> None:
    await stand.receiver.round()
    stand.told(e1=txn("t-a"))
    await stand.receiver.round()
    stand.transmitter.answers.append({"e2": "x.y.z"})
    await stand.receiver.round()
    begun, told, refused = stand.told_then
    assert told == "e1"
    assert refused not in {begun, told, ""}
    assert len(refused) <= MAX_SIGNAL


async def test_verification_is_acknowledged_and_ends_nothing(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.told(e1=Verification("s-1", "x"))
    await stand.receiver.round()
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][0] == ["e1"]
    assert stand.has("a")


async def test_what_comes_again_is_acknowledged_again_and_ends_nothing_more(stand) -> None:
    await stand.receiver.round()
    stand.told(e1=txn("t-a"))
    await stand.receiver.round()
    stand.hold("a")  # permitted since, by the broker
    stand.told(e1=txn("t-a"))
    await stand.receiver.round()
    assert stand.has("a")
    await stand.receiver.round()
    assert [ack for ack, _, _ in stand.transmitter.polled[-2:]] == [["e1"], ["e1"]]


async def test_an_acknowledgement_that_was_lost_is_sent_again(stand) -> None:
    await stand.receiver.round()
    stand.told(e1=txn("t-a"))
    await stand.receiver.round()
    stand.transmitter.answers.append(BrokerError(codes.BROKER_UNAVAILABLE, "reset"))
    with pytest.raises(BrokerError):
        await stand.receiver.round()
    await stand.receiver.round()
    assert [ack for ack, _, _ in stand.transmitter.polled[-2:]] == [["e1"], ["e1"]]


FORGED = {
    "another key": (lambda keys: keys.sign(txn("x"), "e1", key=Keys().keys["k1"]), "invalid_key"),
    "an unknown key": (
        lambda keys: keys.sign(txn("x"), "e1", kid="k9", key=keys.keys["k1"]), "invalid_key"),
    "another issuer": (lambda keys: keys.sign(txn("x"), "e1", iss="https://x"), "invalid_issuer"),
    "another audience": (lambda keys: keys.sign(txn("x"), "e1", aud="y"), "invalid_audience"),
    "an expiry": (lambda keys: keys.sign(txn("x"), "e1", exp=NOW + 9), "invalid_request"),
    "another jti": (lambda keys: keys.sign(txn("x"), "e2"), "invalid_request"),
    "an event that we do not know": (
        lambda keys: keys.sign(txn("x"), "e1", events={"https://x": {}}), "invalid_request"),
    "no token": (lambda keys: "x.y.z", "invalid_request"),
}  # fmt: skip


@pytest.mark.parametrize(("forge", "err"), FORGED.values(), ids=FORGED)
async def test_what_can_not_be_believed_is_refused_and_closes(stand, forge, err: str) -> None:
    """Something has ended, and nobody can say what: so nothing that is cached counts."""
    await stand.receiver.round()
    stand.hold("a")
    stand.transmitter.answers.append({"e1": forge(stand.keys)})
    await stand.receiver.round()
    assert not stand.has("a")
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][:2] == ([], {"e1": err})
    assert stand.metrics.feed_events == {"refused": 1}
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][:2] == ([], {})


async def test_a_new_key_of_the_broker_is_fetched(stand) -> None:
    await stand.receiver.round()
    stand.keys.keys["k2"] = ec.generate_private_key(ec.SECP256R1())
    stand.now += 60
    stand.transmitter.answers.append({"e1": stand.keys.sign(txn("x"), "e1", kid="k2")})
    await stand.receiver.round()
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][:2] == (["e1"], {})
    assert stand.transmitter.keys_asked == 2


async def test_without_keys_an_event_waits_and_is_neither_taken_nor_refused(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.keys.keys["k2"] = ec.generate_private_key(ec.SECP256R1())
    stand.now += 60
    stand.transmitter.no_keys = True
    event = stand.keys.sign(txn("t-a"), "e2", kid="k2")
    stand.transmitter.answers += [{"e1": stand.keys.sign(txn("y"), "e1"), "e2": event}]
    with pytest.raises(BrokerError):
        await stand.receiver.round()
    stand.transmitter.no_keys = False
    stand.transmitter.answers += [{"e2": event}]
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][:2] == (["e1"], {})  # the one that was in force
    assert not stand.has("a")


async def test_a_batch_looks_at_each_credential_once(stand) -> None:
    await stand.receiver.round()
    held = stand.hold("held")
    others = [stand.hold(f"j{number}") for number in range(100)]
    before = len(stand.revoked)
    kinds = ("token", "txn", "hash", "grant")
    stand.told(
        **{
            f"e{number}": Signal(kind=kinds[number % 4], value=f"x{number}", at=NOW)
            for number in range(98)
        },
        e98=txn("t-j7"),
        e99=Signal(kind="token", value="j8", at=NOW),
    )
    await stand.receiver.round()
    assert len(stand.revoked) == before + 1
    assert {credential.jti for credential in others if credential.revoked} == {"j7", "j8"}
    assert not held.revoked
    assert stand.exchange.told == "e99"
    assert stand.metrics.feed_events == {"token": 26, "txn": 26, "hash": 24, "grant": 24}
    await stand.receiver.round()
    assert len(stand.transmitter.polled[-1][0]) == 100


async def test_a_refused_event_among_others_drops_everything_in_the_same_pass(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    before = len(stand.revoked)
    sign = stand.keys.sign
    stand.transmitter.answers.append(
        {"e1": sign(txn("x"), "e1"), "e2": "x.y.z", "e3": sign(txn("y"), "e3")}
    )
    await stand.receiver.round()
    assert not stand.has("a")
    assert len(stand.revoked) == before + 1
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][:2] == (["e1", "e3"], {"e2": "invalid_request"})


async def test_what_is_known_is_in_force_before_a_key_is_asked_for(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.keys.keys["k2"] = ec.generate_private_key(ec.SECP256R1())
    stand.now += 60
    keys, had = stand.transmitter.keys, []

    async def slow():
        had.append(stand.has("a"))
        return await keys()

    stand.transmitter.keys = slow
    sign = stand.keys.sign
    stand.transmitter.answers.append(
        {"e1": sign(txn("t-a"), "e1"), "e2": sign(txn("x"), "e2", kid="k2")}
    )
    await stand.receiver.round()
    assert had == [False]
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][0] == ["e1", "e2"]


async def test_a_call_that_two_events_concern_is_cut_once(stand, monkeypatch) -> None:
    monkeypatch.setattr("valetkey.proxy.feed._SETTLE_LOOKS", 1)
    await stand.receiver.round()
    call = object()
    stand.resting, stand.streams.open = [call], [call]
    stand.keys.keys["k2"] = ec.generate_private_key(ec.SECP256R1())
    stand.now += 60
    sign = stand.keys.sign
    stand.transmitter.answers.append(
        {"e1": sign(txn("x"), "e1"), "e2": sign(txn("y"), "e2", kid="k2")}
    )
    await stand.receiver.round()
    assert stand.streams.was_cut == [call]


# --- the loss ---------------------------------------------------------------------------------------


async def test_within_the_tolerance_nothing_changes(stand) -> None:
    await stand.receiver.round()
    stand.hold("a")
    stand.now += 60
    stand.receiver.look()
    assert not stand.receiver.lost
    assert stand.has("a")


async def test_lost_credentials_are_short_lived_until_it_is_back(stand) -> None:
    await stand.receiver.round()
    stand.now += 55
    old = stand.hold("a")
    stand.now += 6
    stand.receiver.look()
    assert stand.receiver.lost
    assert stand.limited == [10]
    assert old.expires_at == old.minted_at + 10
    stand.now += 5
    assert not stand.has("a")
    assert "lost (short-lived" in stand.receiver.health
    await stand.receiver.round()
    assert stand.transmitter.polled[-1][2] == 0  # it does not wait to hear that it is back
    assert not stand.receiver.lost
    assert stand.receiver.health == "connected"
    assert stand.hold("b").expires_at == stand.now + 1000


async def test_lost_no_credential_is_used_where_settings_say_deny(monkeypatch) -> None:
    stand = Stand(monkeypatch, lost="deny", tolerance=30)
    await stand.receiver.round()
    held = stand.hold("a")
    stand.now += 31
    stand.receiver.look()
    assert not stand.has("a")
    assert held.revoked  # also for who took it from the cache and has not sent it yet

    async def fetch():
        raise AssertionError("nobody may be asked")

    with pytest.raises(BrokerError) as caught:
        await stand.cache.obtain(KEY, fetch)
    assert caught.value.code is codes.FEED_LOST
    assert "no call leaves" in stand.receiver.health
    await stand.receiver.round()

    async def good():
        return stand.hold("fresh")

    assert await stand.cache.obtain(KEY, good)


async def test_it_is_not_back_before_it_has_told_everything(stand) -> None:
    await stand.receiver.round()
    stand.now += 100
    stand.receiver.look()
    stand.transmitter.answers.append(({"e1": stand.keys.sign(txn("x"), "e1")}, True))
    await stand.receiver.round()
    assert stand.receiver.lost
    await stand.receiver.round()
    assert not stand.receiver.lost


async def test_a_feed_that_never_was_is_lost_as_well(stand) -> None:
    stand.now += 61
    stand.receiver.look()
    assert stand.receiver.lost
    assert not stand.receiver.connected


async def test_it_notices_the_loss_by_itself_and_tries_on(monkeypatch) -> None:
    stand = Stand(monkeypatch, tolerance=3)
    monkeypatch.setattr("valetkey.proxy.feed._LOOK", 0.01)
    monkeypatch.setattr("valetkey.proxy.feed._FIRST_PAUSE", 0.01)
    down = BrokerError(codes.BROKER_UNAVAILABLE, "down")
    await stand.receiver.round()
    stand.transmitter.answers = [down] * 100_000
    stand.now += 4
    task = asyncio.ensure_future(stand.receiver.run())
    async with asyncio.timeout(30):
        while not stand.receiver.lost:
            await asyncio.sleep(0.005)
        assert 0 < len(stand.transmitter.answers) < 100_000
        stand.transmitter.answers.clear()
        while stand.receiver.lost:
            await asyncio.sleep(0.005)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_stop_ends_the_stream(stand) -> None:
    await stand.receiver.round()
    await stand.receiver.close()
    assert stand.transmitter.deleted == ["s-1"]
    assert stand.transmitter.closed

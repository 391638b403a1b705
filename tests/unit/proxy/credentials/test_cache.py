"""The cache contract (docs: design, "Cache" and "Outage"), line by line, on a clock of its own."""

from __future__ import annotations

import asyncio
import time

import pytest

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, CallerError, PolicyError
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import Signal
from valetkey.proxy.core.cache_policy import CacheKey, lifetime
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import EVERYTHING, Ended
from valetkey.proxy.credentials import cache as module
from valetkey.proxy.credentials.cache import CredentialCache

KEY = CacheKey(
    tenant="https://idp.test.example", subject="bot", actors=("agent",), audience="https://a",
    resource="https://a", details="[]", scopes="t:read", endpoint="https://b/token",
    thumbprint="", policy_digest="d", epoch=0,
)  # fmt: skip

OTHER = KEY._replace(audience="https://other")


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(module.time, "monotonic", made)
    return made


@pytest.fixture
def cache(clock):
    return CredentialCache(100)


def get(cache, key):
    return cache.get(key, module.time.monotonic())


def credential(now, *, key=KEY, life=100.0, approval=""):
    span = lifetime(now=now, expires_in=life, actor_expires_in=1e9, subject_expires_in=1e9)
    return Credential(
        key, Secret("a-token-that-is-long-enough"), b"", expires_at=span.expires_at,
        refresh_at=span.refresh_at, subject="bot", actor="bot", jti="j", txn="t", policy_digest="d",
        approval=approval,
    )  # fmt: skip


class Broker:
    """What an exchange does, and how often it was asked. Held until `release`, if so made."""

    def __init__(self, clock, *, held=False, key=KEY, life=100.0) -> None:
        self.clock, self.key, self.life = clock, key, life
        self.asked = 0
        self.error: Exception | None = None
        self.errors: list[Exception | None] = []
        self.jtis: list[str] = []
        self.release = asyncio.Event()
        if not held:
            self.release.set()

    async def __call__(self) -> Credential:
        self.asked += 1
        await self.release.wait()
        error = self.errors.pop(0) if self.errors else self.error
        if error is not None:
            raise error
        made = credential(self.clock(), key=self.key, life=self.life)
        if self.jtis:
            made.jti = self.jtis.pop(0)
        return made


async def settled(cache):
    async with asyncio.timeout(15):
        while cache.in_flight:
            await asyncio.sleep(0)


# --- one exchange in flight per key --------------------------------------------------------------


async def test_a_thousand_callers_on_a_cold_key_make_one_exchange(cache, clock):
    broker = Broker(clock, held=True)
    callers = [asyncio.ensure_future(cache.obtain(KEY, broker)) for _ in range(1000)]
    await asyncio.sleep(0)
    assert cache.in_flight == 1
    broker.release.set()
    answers = await asyncio.gather(*callers)
    assert broker.asked == 1
    assert len({id(answer) for answer in answers}) == 1
    assert get(cache, KEY) is answers[0]
    assert cache.in_flight == 0


async def test_a_caller_who_looked_before_it_arrived_and_asks_after_makes_no_second_one(
    cache, clock
):
    broker = Broker(clock)
    assert get(cache, KEY) is None  # its task starts one turn of the loop later
    first = await cache.obtain(KEY, broker)
    assert await cache.obtain(KEY, broker) is first
    assert broker.asked == 1


async def test_a_caller_that_goes_away_takes_nobody_along(cache, clock):
    broker = Broker(clock, held=True)
    first, second = (asyncio.ensure_future(cache.obtain(KEY, broker)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    broker.release.set()
    assert (await second).key == KEY
    assert broker.asked == 1


async def test_a_failure_goes_to_everybody_who_waits(cache, clock):
    broker = Broker(clock, held=True)
    broker.error = BrokerError(codes.BROKER_UNAVAILABLE, "gone")
    callers = [asyncio.ensure_future(cache.obtain(KEY, broker)) for _ in range(10)]
    await asyncio.sleep(0)
    broker.release.set()
    answers = await asyncio.gather(*callers, return_exceptions=True)
    assert {type(answer) for answer in answers} == {BrokerError}
    assert broker.asked == 1


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("tenant", "https://other.test.example"), ("subject", "other"), ("actors", ("other",)),
        ("actors", ("agent", "other")), ("audience", "https://o"), ("resource", "https://o"),
        ("details", "[{}]"), ("scopes", "t:read t:write"), ("endpoint", "https://o/token"),
        ("thumbprint", "x"), ("policy_digest", "e"), ("epoch", 1),
    ],
)  # fmt: skip
async def test_every_part_of_the_key_counts(cache, clock, field, value):
    await cache.obtain(KEY, Broker(clock))
    other = KEY._replace(**{field: value})
    assert get(cache, other) is None
    broker = Broker(clock, key=other)
    assert (await cache.obtain(other, broker)).key == other
    assert broker.asked == 1
    assert set(KEY._fields) == {
        "tenant", "subject", "actors", "audience", "resource", "details", "scopes", "endpoint",
        "thumbprint", "policy_digest", "epoch",
    }  # fmt: skip


# --- lifetime ------------------------------------------------------------------------------------

LIFETIMES = {
    "the token's own": (100, 1000, 1000, 95.0),
    "the actor's": (1000, 100, 1000, 95.0),
    "the subject's": (1000, 1000, 100, 95.0),
    "a short one is cut by a tenth": (10, 1000, 1000, 9.0),
    "nothing left": (100, 0, 100, 0.0),
    "already over": (100, 100, -5, 0.0),
}


@pytest.mark.parametrize(("token", "actor", "subject", "use"), LIFETIMES.values(), ids=LIFETIMES)
def test_lifetime_is_the_least_of_three_less_skew(token, actor, subject, use):
    life = lifetime(now=50.0, expires_in=token, actor_expires_in=actor, subject_expires_in=subject)
    assert life.expires_at == pytest.approx(50.0 + use)
    assert life.refresh_at == pytest.approx(50.0 + use * 0.8)


async def test_used_until_it_expires_and_not_a_moment_longer(cache, clock):
    await cache.obtain(KEY, Broker(clock))
    clock.now += 94.9
    assert get(cache, KEY) is not None
    clock.now += 0.1
    assert get(cache, KEY) is None


async def test_a_lifetime_of_nothing_serves_who_waits_and_nobody_later(cache, clock):
    broker = Broker(clock, life=0)
    assert (await cache.obtain(KEY, broker)).key == KEY
    assert get(cache, KEY) is None


# --- refresh ahead -------------------------------------------------------------------------------


async def test_refreshed_at_80_percent_in_the_background_once(cache, clock):
    first = await cache.obtain(KEY, Broker(clock))
    assert first.refresh_at == pytest.approx(clock.now + 95 * 0.8)
    clock.now += 80
    broker = Broker(clock, held=True)
    for _ in range(50):  # every call that comes meanwhile
        found = get(cache, KEY)
        assert found is first
        if clock.now >= found.refresh_at:
            cache.refresh(found, clock.now, broker)
    assert (cache.refreshes, cache.in_flight) == (1, 1)
    broker.release.set()
    await settled(cache)
    assert broker.asked == 1
    second = get(cache, KEY)
    assert second is not first
    assert second.expires_at == pytest.approx(clock.now + 95)


async def test_a_broker_that_is_away_leaves_the_old_one_until_it_expires(cache, clock):
    first = await cache.obtain(KEY, Broker(clock))
    clock.now += 80
    broker = Broker(clock)
    broker.error = BrokerError(codes.BROKER_UNAVAILABLE, "gone")
    cache.refresh(first, clock.now, broker)
    await settled(cache)
    assert get(cache, KEY) is first
    assert first.refresh_at == clock.now + 1  # tried again a second later, not with every call
    clock.now += 15
    assert get(cache, KEY) is None
    with pytest.raises(BrokerError):
        await cache.obtain(KEY, broker)


@pytest.mark.parametrize("kind", [PolicyError, CallerError])
async def test_a_no_of_the_policy_drops_the_old_one_at_once(cache, clock, kind):
    first = await cache.obtain(KEY, Broker(clock))
    clock.now += 80
    broker = Broker(clock)
    broker.error = kind(codes.GRANT_MISSING, "revoked")
    cache.refresh(first, clock.now, broker)
    await settled(cache)
    assert get(cache, KEY) is None
    with pytest.raises(kind):
        await cache.obtain(KEY, broker)


async def test_a_refresh_that_fails_is_nobodys_unhandled_error(cache, clock):
    errors = []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: errors.append(context))
    first = await cache.obtain(KEY, Broker(clock))
    broker = Broker(clock)
    broker.error = BrokerError(codes.BROKER_UNAVAILABLE, "gone")
    cache.refresh(first, clock.now, broker)
    await settled(cache)
    await asyncio.sleep(0)
    assert errors == []


# --- denials -------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [PolicyError, CallerError])
async def test_a_denial_is_remembered_for_a_second(cache, clock, kind):
    broker = Broker(clock)
    broker.error = kind(codes.GRANT_SCOPE, "no")
    for _ in range(10):
        with pytest.raises(kind) as denied:
            await cache.obtain(KEY, broker)
        assert (denied.value.code, denied.value.reason) == (codes.GRANT_SCOPE, "no")
    assert broker.asked == 1
    assert module.DENIAL_LIFETIME == 1.0
    clock.now += 1.001
    broker.error = None
    assert (await cache.obtain(KEY, broker)).key == KEY
    assert broker.asked == 2


async def test_a_broker_that_was_away_is_asked_again_at_once(cache, clock):
    broker = Broker(clock)
    broker.error = BrokerError(codes.BROKER_UNAVAILABLE, "gone")
    for _ in range(3):
        with pytest.raises(BrokerError):
            await cache.obtain(KEY, broker)
    assert broker.asked == 3
    broker.error = None
    await cache.obtain(KEY, broker)


@pytest.mark.parametrize(
    "error",
    [
        PolicyError(codes.GRANT_MISSING), CallerError(codes.SUBJECT_INVALID),
        BrokerError(codes.BROKER_UNAVAILABLE), BrokerError(codes.BROKER_BAD_RESPONSE),
        BrokerError(codes.IDENTITY_UNAVAILABLE),
    ],
    ids=lambda error: error.code.name,
)  # fmt: skip
async def test_nothing_that_failed_is_an_allow(cache, clock, error):
    broker = Broker(clock)
    broker.error = error
    with pytest.raises(type(error)):
        await cache.obtain(KEY, broker)
    assert get(cache, KEY) is None
    assert len(cache) == 0
    assert cache.in_flight == 0


async def test_a_denial_of_one_key_is_not_anothers(cache, clock):
    broker = Broker(clock)
    broker.error = PolicyError(codes.GRANT_SCOPE)
    with pytest.raises(PolicyError):
        await cache.obtain(KEY, broker)
    other = KEY._replace(scopes="t:list")
    assert (await cache.obtain(other, Broker(clock, key=other))).key == other


# --- eviction and bounds -------------------------------------------------------------------------


async def test_a_401_evicts_only_the_credential_that_was_used(cache, clock):
    used = await cache.obtain(KEY, Broker(clock))
    clock.now += 80
    cache.refresh(used, clock.now, Broker(clock))
    await settled(cache)
    newer = get(cache, KEY)
    cache.evict(used)  # the target's answer was to the older one
    assert get(cache, KEY) is newer
    assert cache.evictions == 0
    cache.evict(newer)
    assert get(cache, KEY) is None
    assert cache.evictions == 1


async def test_bounded_and_least_recently_used_out_first(clock):
    cache = CredentialCache(3)
    keys = [KEY._replace(subject=str(number)) for number in range(4)]
    for key in keys[:3]:
        await cache.obtain(key, Broker(clock, key=key))
    assert get(cache, keys[0]) is not None  # now the second is the least recently used
    await cache.obtain(keys[3], Broker(clock, key=keys[3]))
    assert len(cache) == 3
    assert [get(cache, key) is not None for key in keys] == [True, False, True, True]


async def test_what_is_in_steady_use_is_not_the_least_recently_used(clock):
    """Calls that come quickly are answered without a look into the table, but not for long."""
    cache = CredentialCache(2)
    keys = [KEY._replace(subject=str(number)) for number in range(3)]
    for key in keys[:2]:
        await cache.obtain(key, Broker(clock, key=key))
    for _ in range(10):
        get(cache, keys[1])
        clock.now += 0.3
        get(cache, keys[0])
    await cache.obtain(keys[2], Broker(clock, key=keys[2]))
    assert [get(cache, key) is not None for key in keys] == [True, False, True]


async def test_denials_are_bounded_too(clock):
    cache = CredentialCache(3)
    for number in range(50):
        key = KEY._replace(subject=str(number))
        broker = Broker(clock, key=key)
        broker.error = PolicyError(codes.GRANT_MISSING)
        with pytest.raises(PolicyError):
            await cache.obtain(key, broker)
    assert len(cache._denials) == 3


async def test_close_stops_what_is_under_way(cache, clock):
    broker = Broker(clock, held=True)
    caller = asyncio.ensure_future(cache.obtain(KEY, broker))
    async with asyncio.timeout(15):
        while not broker.asked:
            await asyncio.sleep(0)
    await cache.close()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert cache.in_flight == 0


async def test_counts(cache, clock):
    await cache.obtain(KEY, Broker(clock))
    assert (cache.misses, cache.hits) == (1, 0)
    get(cache, KEY)
    get(cache, KEY)
    assert (cache.misses, cache.hits) == (1, 2)


def test_the_real_clock_is_monotonic():
    """Expiry does not follow the wall clock."""
    entries = CredentialCache(1)._entries
    assert abs(entries.timer() - time.monotonic()) < 1


# --- what has ended ---------------------------------------------------------------------------------


async def asked(broker):
    """The exchange is under way."""
    async with asyncio.timeout(15):
        while not broker.asked:
            await asyncio.sleep(0)


def named(jti):
    return Ended([Signal(kind="token", value=jti, at=0)])


async def test_what_has_ended_is_dropped_and_marked(cache, clock):
    held = await cache.obtain(KEY, Broker(clock))
    other = await cache.obtain(OTHER, Broker(clock, key=OTHER))
    other.jti = "k"
    assert cache.get(KEY, clock()) is held  # also by the short way
    assert cache.revoke(named("j")) == 1
    assert held.revoked
    assert get(cache, KEY) is None
    assert get(cache, OTHER) is other
    assert not other.revoked
    assert cache.revoke(named("j")) == 0


async def test_an_exchange_under_way_can_not_bring_back_what_ended(cache, clock):
    """The race: asked before the end, answered after it."""
    broker = Broker(clock, held=True)
    flight = asyncio.ensure_future(cache.obtain(KEY, broker))
    await asked(broker)
    assert cache.revoke(named("j")) == 0  # not cached: it is on its way
    broker.jtis = ["j", "fresh"]
    broker.release.set()
    assert (await flight).jti == "fresh"
    assert broker.asked == 2
    assert get(cache, KEY).jti == "fresh"


async def test_what_ends_twice_on_its_way_is_nobodys(cache, clock):
    calls = 0

    async def fetch():
        nonlocal calls
        calls += 1
        cache.revoke(named("j"))
        return credential(clock())

    with pytest.raises(BrokerError, match="ended on its way"):
        await cache.obtain(KEY, fetch)
    assert calls == 2
    assert get(cache, KEY) is None
    assert cache.in_flight == 0


async def test_a_brokers_no_to_the_second_asking_is_what_counts(cache, clock):
    calls = 0

    async def fetch():
        nonlocal calls
        calls += 1
        if calls == 2:
            raise PolicyError(codes.GRANT_MISSING, "contained")
        cache.revoke(named("j"))
        return credential(clock())

    with pytest.raises(PolicyError):
        await cache.obtain(KEY, fetch)
    assert get(cache, KEY) is None


async def test_what_ended_before_an_exchange_began_is_no_concern_of_it(cache, clock):
    cache.revoke(named("j"))
    assert await cache.obtain(KEY, Broker(clock)) is get(cache, KEY)


async def test_a_refresh_under_way_can_not_bring_back_what_ended(cache, clock):
    held = await cache.obtain(KEY, Broker(clock))
    broker = Broker(clock, held=True)
    broker.errors = [None, PolicyError(codes.GRANT_MISSING, "contained")]
    cache.refresh(held, clock(), broker)
    await asked(broker)
    cache.revoke(named("j"))
    broker.release.set()
    await settled(cache)
    assert broker.asked == 2
    assert get(cache, KEY) is None


async def test_a_credential_for_one_call_is_looked_at_as_well(cache, clock):
    calls = 0

    async def fetch():
        nonlocal calls
        calls += 1
        if calls == 1:
            cache.revoke(named("j"))
        made = credential(clock())
        made.jti = "j" if calls == 1 else "fresh"
        return made

    assert (await cache.fresh(fetch)).jti == "fresh"
    assert len(cache) == 0


class Judge:
    """A broker that is asked about credentials, and what happens while it answers."""

    def __init__(self, *answers, meanwhile=()):
        self.answers = list(answers)
        self.meanwhile = list(meanwhile)
        self.asked = 0

    async def __call__(self, _credential):
        self.asked += 1
        if self.meanwhile:
            self.meanwhile.pop(0)()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.parametrize(
    ("end", "answers", "fetched"),
    [
        (EVERYTHING, [True], 1),
        (EVERYTHING, [False], 2),
        (named("j"), [], 2),
        (named("another"), [], 1),
    ],
    ids=["it may have ended", "it has", "it certainly has", "it has not"],
)
async def test_what_is_dear_is_asked_about_before_there_is_another(
    cache, clock, end, answers, fetched
):
    made, judge = [], Judge(*answers)

    async def fetch():
        if not made:
            cache.revoke(end)
        made.append(credential(clock(), approval="apr_1"))
        made[-1].jti = "j" if len(made) == 1 else "fresh"
        return made[-1]

    assert await cache.fresh(fetch, judge) is made[-1]
    assert (len(made), judge.asked) == (fetched, len(answers))
    assert [one.revoked for one in made] == [True, False][-fetched:]


async def test_what_ends_while_it_is_asked_about_makes_it_be_asked_again(cache, clock):
    made = credential(clock())
    judge = Judge(True, True, meanwhile=[lambda: cache.revoke(EVERYTHING)])
    assert await cache.still_good(made, judge)
    assert judge.asked == 2
    judge = Judge(True, False, meanwhile=[lambda: cache.revoke(EVERYTHING)])
    assert not await cache.still_good(made, judge)
    judge = Judge(True, meanwhile=[lambda: cache.revoke(named("j"))])
    assert not await cache.still_good(made, judge)
    assert made.revoked


async def test_what_is_certain_counts_though_the_broker_can_not_be_asked(cache, clock):
    made = credential(clock())
    away = BrokerError(codes.BROKER_UNAVAILABLE, "down")
    judge = Judge(away, meanwhile=[lambda: cache.revoke(named("j"))])
    with pytest.raises(BrokerError):
        await cache.still_good(made, judge)
    assert made.revoked


async def test_what_was_kept_elsewhere_is_held_to_what_is_in_force(cache, clock):
    made = credential(clock())
    cache.limit_lives(10)
    assert await cache.still_good(made, Judge(True))
    assert made.expires_at == made.minted_at + 10
    lost = BrokerError(codes.FEED_LOST, "the feed is lost")
    judge = Judge(True, meanwhile=[lambda: cache.close_for(lost)])
    for _ in range(2):  # closed while it was asked about, and before
        with pytest.raises(BrokerError) as error:
            await cache.still_good(made, judge)
        assert error.value.code is codes.FEED_LOST
    assert judge.asked == 1


async def test_what_several_wait_for_stays_within_reach_until_they_have_it(cache, clock):
    async def fetch():
        return credential(clock(), approval="apr_1")

    flight = asyncio.ensure_future(cache.fresh(fetch, Judge()))
    while not flight.done():
        await asyncio.sleep(0)
    cache.revoke(named("j"))
    assert flight.result().revoked


async def test_short_lives_count_from_when_a_credential_came(cache, clock):
    held = await cache.obtain(KEY, Broker(clock))
    held.minted_at = clock()
    clock.now += 4
    cache.limit_lives(10)
    clock.now += 5.9
    assert get(cache, KEY) is held
    clock.now += 0.2
    assert get(cache, KEY) is None
    made = credential(clock())
    made.minted_at = clock()

    async def fetch():
        return made

    await cache.obtain(KEY, fetch)
    assert made.expires_at == clock() + 10
    assert made.refresh_at == clock() + 8
    clock.now += 11
    assert get(cache, KEY) is None


async def test_lifted_the_limit_prolongs_nothing(cache, clock):
    held = await cache.obtain(KEY, Broker(clock))
    held.minted_at = clock()
    cache.limit_lives(10)
    cache.limit_lives(float("inf"))
    clock.now += 10.1
    assert get(cache, KEY) is None
    later = await cache.obtain(KEY, Broker(clock))
    assert later.expires_at > clock() + 80


async def test_closed_it_gives_nobody_anything(cache, clock):
    await cache.obtain(KEY, Broker(clock))
    broker = Broker(clock, held=True, key=OTHER)
    flight = asyncio.ensure_future(cache.obtain(OTHER, broker))
    await asked(broker)
    cache.close_for(BrokerError(codes.FEED_LOST, "lost"))
    assert get(cache, KEY) is None
    broker.release.set()
    for wanted in (flight, cache.obtain(KEY, Broker(clock)), cache.fresh(Broker(clock))):
        with pytest.raises(BrokerError) as caught:
            await wanted
        assert caught.value.code is codes.FEED_LOST
    assert len(cache) == 0
    cache.close_for(None)
    assert await cache.obtain(KEY, Broker(clock)) is get(cache, KEY)

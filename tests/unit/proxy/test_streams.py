"""When a call under way is decided on again, and what comes of it, on a clock of its own."""

from __future__ import annotations

import asyncio
import copy
import itertools
import time
from types import SimpleNamespace

import pytest

from tests.unit.proxy.core.conftest import compiled, route, tree
from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, CallerError, PolicyError
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import Signal
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import NeedsCredential, Principal, RequestFacts, decide
from valetkey.proxy.core.eviction import EVERYTHING, Ended
from valetkey.proxy.credentials.cache import CredentialCache
from valetkey.proxy.credentials.held import HeldCalls
from valetkey.proxy.http1.phase import Phase
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.revocation import Revocation
from valetkey.proxy.streams import Streams

LIFE = 100.0  # of a credential; it is refreshed after 80
DOWN = BrokerError(codes.BROKER_UNAVAILABLE, "down")
REFUSED = PolicyError(codes.GRANT_MISSING, "no grant")
PATH = "/tickets/api/tickets/7"


class Call:
    """What the watch sees of a call, and what became of it."""

    def __init__(self, needs, permit, phase=Phase.ANSWERING):
        self.needs, self.permit, self.phase = needs, permit, phase
        self.recheck_at = 0.0
        self.watch = None
        self.code = None

    def fail(self, code, _reason):
        assert self.phase != Phase.DONE
        self.phase = Phase.DONE
        self.code = code.name


class Stand:
    """An enforcement point of calls alone, with a real cache and a broker that does as told."""

    def __init__(self, clock):
        self.clock = clock
        self.cache = CredentialCache(100)
        self.metrics = Metrics()
        self.snapshot = compiled(tree())
        self.who = Principal("https://idp.example", "bot", 3)
        self.identity = SimpleNamespace(principal=lambda: self.who, problem="expired")
        self.open = []
        self.asked = []
        self.questions = []
        """Credentials that it was asked about."""
        self.good = True
        self.answer = None
        """An error, or None: a credential. `held` makes the broker take its time."""
        self.held = None
        self.life = LIFE
        self._numbers = itertools.count()
        self._tasks = set()
        self.supply = self
        self.streams = Streams(self, self.identity, self.cache, self.metrics)

    # what an enforcement point offers

    def calls(self):
        return list(self.open)

    def fetch(self, needs):
        async def fetch():
            self.asked.append(needs.key)
            if self.held is not None:
                await self.held.wait()
            if self.answer is not None:
                raise self.answer
            return self.credential(needs.key)

        return fetch

    async def is_active(self, credential):
        self.questions.append(credential)
        held, good = self.held, self.good
        if held is not None:
            await held.wait()
        if isinstance(good, Exception):
            raise good
        return good

    def spawn(self, _call, work):
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # what tests do

    def credential(self, key, life=None, *, single_use=False):
        now, life = self.clock.now, self.life if life is None else life
        return Credential(
            key, Secret("a-token-that-is-long-enough"), b"", expires_at=now + life,
            refresh_at=now + life * 0.8, subject="bot", actor="bot", jti=f"j{next(self._numbers)}",
            txn="t", policy_digest="d", single_use=single_use,
        )  # fmt: skip

    def call(self, path=PATH, *, cached=True, life=None, single_use=False, **facts):
        facts = {"method": "GET", "authority": "h", **facts}
        needs = decide(RequestFacts(path=path, **facts), self.snapshot, self.who)
        assert isinstance(needs, NeedsCredential)
        known = self.cache.get(needs.key, self.clock.now)
        credential = known or self.credential(needs.key, life, single_use=single_use)
        if cached:
            self.cache.put(credential)
        permit = needs.admit(credential, self.clock.now, fresh=True)
        self.open.append(Call(needs, permit))
        return self.open[-1]

    async def sweep(self, seconds=0.0):
        """Time passes, the sweep comes, and what it started is done."""
        self.clock.now += seconds
        self.streams.begin_sweep()
        for call in list(self.open):
            if self.clock.now >= call.recheck_at:
                self.streams.look(call, self.clock.now)
        for _ in range(20):
            await asyncio.sleep(0)

    @property
    def results(self):
        return dict(self.metrics.rechecks)


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def stand(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    return Stand(clock)


# --- the end of a credential's life ---------------------------------------------------------------


async def test_until_the_credential_is_to_be_refreshed_nothing_is_asked(stand):
    call = stand.call()
    await stand.sweep()
    assert call.recheck_at == call.permit.credential.refresh_at
    await stand.sweep(79)
    assert stand.asked == []
    assert stand.results == {}


async def test_a_successor_that_other_calls_fetched_is_taken_up(stand):
    call = stand.call()
    await stand.sweep(80)
    fresh = stand.credential(call.needs.key)
    stand.cache.put(fresh)
    await stand.sweep(1)
    assert call.watch.credential is fresh
    assert call.recheck_at == fresh.refresh_at
    assert (call.watch.checks, stand.results) == (1, {"permitted": 1})
    assert len(stand.asked) == 1  # by the first sweep, ahead of time


async def test_streams_of_one_key_share_one_exchange(stand):
    calls = [stand.call() for _ in range(100)]
    await stand.sweep()
    await stand.sweep(80)
    await stand.sweep(0.5)
    assert len(stand.asked) == 1
    assert stand.results == {"permitted": 100}
    assert len({call.watch.credential for call in calls}) == 1
    assert {call.code for call in calls} == {None}


async def test_a_no_cuts_with_its_code_before_the_credential_ends(stand):
    calls = [stand.call() for _ in range(3)]
    stand.answer = REFUSED
    await stand.sweep()
    await stand.sweep(80)
    await stand.sweep(0.5)
    assert {call.code for call in calls} == {"grant.missing"}
    assert stand.results == {"grant.missing": 3}


async def test_a_broker_that_is_away_cuts_at_the_end_and_not_before(stand):
    call = stand.call()
    stand.answer = DOWN
    await stand.sweep(80)
    for _ in range(19):
        await stand.sweep(1)
        assert call.code is None
    assert 10 <= len(stand.asked) <= 20  # about once a second
    await stand.sweep(1)
    assert call.code == "broker.unavailable"


async def test_a_broker_that_comes_back_in_time_saves_its_streams(stand):
    call = stand.call()
    stand.answer = DOWN
    await stand.sweep(80)
    await stand.sweep(10)
    stand.answer = None
    await stand.sweep(1)
    await stand.sweep(1)
    await stand.sweep(50)
    assert call.code is None
    assert stand.results == {"permitted": 1}


async def test_a_broker_that_takes_its_time_does_not_prolong_anything(stand):
    call = stand.call()
    stand.held = asyncio.Event()
    await stand.sweep(80)
    await stand.sweep(19)
    assert call.code is None
    await stand.sweep(1)  # out of the cache now, and waiting for the exchange in flight
    await stand.sweep(0.25)
    assert call.code == "stream.expired"
    stand.held.set()
    await stand.sweep()
    assert stand.results == {"stream.expired": 1}


async def test_one_credential_per_request_is_fetched_for_the_request(stand):
    stand.snapshot = compiled(tree(routes=[route("once", "/api/tickets/{id}", per_request=True)]))
    first, second = stand.call(cached=False), stand.call(cached=False)
    await stand.sweep(80)
    await stand.sweep(0.25)
    assert len(stand.asked) == 2
    assert first.watch.credential is not second.watch.credential
    assert stand.results == {"permitted": 2}
    stand.answer = DOWN
    await stand.sweep(80)
    assert stand.results["postponed"] == 2
    await stand.sweep(20)
    assert first.code == second.code == "broker.unavailable"


async def test_a_credential_that_is_born_expired_is_renewed_but_not_all_the_time(stand):
    stand.life = 0.0
    call = stand.call(cached=False)
    stand.held = asyncio.Event()
    for _ in range(8):
        await stand.sweep(0.25)
    assert call.code is None  # the broker has its own time limit
    assert len(stand.asked) == 1
    stand.held.set()
    await stand.sweep()
    for _ in range(8):
        await stand.sweep(0.25)
    assert len(stand.asked) == 3
    stand.answer = DOWN
    await stand.sweep(1)
    assert call.code == "broker.unavailable"


async def test_without_an_identity_a_stream_ends_with_its_credential(stand):
    call = stand.call()
    stand.who = None
    await stand.sweep(80)
    await stand.sweep(19)
    assert call.code is None
    assert stand.asked == []
    await stand.sweep(1)
    assert call.code == "identity.unavailable"


async def test_the_end_of_a_user_s_token_is_the_end_of_the_stream(stand):
    call = stand.call(subject_token=Secret("user-token-of-alice"))
    stand.answer = CallerError(codes.SUBJECT_INVALID, "expired")
    await stand.sweep(80)
    await stand.sweep(0.5)
    assert call.code == "subject.invalid"


# --- what else it rests on ------------------------------------------------------------------------


async def test_a_new_epoch_makes_the_broker_decide_on_all(stand):
    calls = [stand.call() for _ in range(3)]
    await stand.sweep(1)
    stand.who = Principal("https://idp.example", "bot", 4)
    await stand.sweep(0.25)
    assert [key.epoch for key in stand.asked] == [4]
    assert {call.watch.credential.key.epoch for call in calls} == {4}
    assert stand.results == {"permitted": 3}


@pytest.mark.parametrize(
    ("answer", "code"), [(REFUSED, "grant.missing"), (DOWN, "broker.unavailable")]
)
@pytest.mark.parametrize(
    "who",
    [Principal("https://idp.example", "bot", 4), Principal("https://idp.example", "other", 3)],
    ids=["epoch", "subject"],
)
async def test_after_a_new_epoch_or_subject_only_a_yes_counts(stand, who, answer, code):
    call = stand.call()
    stand.who, stand.answer = who, answer
    await stand.sweep(0.25)
    assert call.code == code


async def test_the_same_principal_made_anew_changes_nothing(stand):
    call = stand.call()
    stand.who = Principal("https://idp.example", "bot", 3)
    await stand.sweep(0.25)
    assert (call.code, stand.asked) == (None, [])


def changed(*path, value):
    document = copy.deepcopy(tree())
    node = document
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return compiled(document)


SETTINGS = [
    ("the route is gone", lambda: compiled(tree(routes=[route("a", "/")])), "route.no_match"),
    ("the target is gone", lambda: changed("targets", "tickets", "prefix", value="/t"), "target.no_match"),
    ("another url", lambda: changed("targets", "tickets", "url", value="https://x.example"), "stream.rerouted"),
    ("another CA", lambda: changed("targets", "tickets", "ca_file", value="/ca.pem"), "stream.rerouted"),
    ("fewer networks", lambda: changed("targets", "tickets", "allow_networks", value=["10.0.0.0/8"]), "stream.rerouted"),
    ("another method", lambda: changed("routes", 0, "match", "methods", value=["HEAD"]), "broker.unavailable"),
    ("another scope", lambda: changed("routes", 0, "scopes", value=["s:write"]), "broker.unavailable"),
    ("another audience", lambda: changed("targets", "tickets", "audience", value="urn:x"), "broker.unavailable"),
    ("something elsewhere", lambda: changed("targets", "pay", "audience", value="urn:x"), None),
    ("nothing that decides", lambda: compiled(tree(timeouts={"head": "1s"})), None),
]  # fmt: skip


@pytest.mark.parametrize(("name", "snapshot", "code"), SETTINGS, ids=[c[0] for c in SETTINGS])
async def test_new_settings_without_a_broker(stand, name, snapshot, code):
    call = stand.call()
    stand.answer = DOWN
    stand.snapshot = snapshot()
    stand.streams.changed()
    await stand.sweep(0.25)
    assert call.code == code, name


async def test_new_settings_with_a_broker_need_its_yes(stand):
    call = stand.call()
    stand.snapshot = changed("routes", 0, "scopes", value=["s:write"])
    stand.streams.changed()
    await stand.sweep(0.25)
    assert [key.scopes for key in stand.asked] == ["s:write"]
    assert stand.results == {"permitted": 1}
    assert call.watch.credential.key.scopes == "s:write"


async def test_a_protocol_that_is_no_longer_listed(stand):
    listed = [route("tickets-read", "/api/tickets/{id}", upgrade=["websocket"])]
    stand.snapshot = compiled(tree(routes=listed))
    call = stand.call(protocol="websocket")
    stand.snapshot = compiled(tree())
    stand.streams.changed()
    await stand.sweep(0.25)
    assert call.code == "request.upgrade_denied"


async def test_in_doubt_a_cached_credential_counts(stand):
    call = stand.call()
    stand.answer = DOWN
    stand.streams.doubt([call], EVERYTHING)
    await stand.sweep(0.25)
    assert (call.code, stand.asked) == (None, [])


@pytest.mark.parametrize(
    ("answer", "code"), [(None, None), (REFUSED, "grant.missing"), (DOWN, "broker.unavailable")]
)
async def test_in_doubt_what_was_evicted_does_not(stand, answer, code):
    call = stand.call()
    await stand.sweep(0.25)
    stand.cache.evict(call.watch.credential)
    stand.answer = answer
    stand.streams.doubt([call], EVERYTHING)
    await stand.sweep(0.25)
    assert call.code == code
    assert len(stand.asked) == 1


async def test_what_came_and_ended_before_it_was_taken_up_settles_nothing(stand):
    """The exchange was over, and a revocation came before the call that waited for it went on."""
    call = stand.call()
    stand.held = asyncio.Event()
    stand.cache.evict(call.permit.credential)
    stand.streams.doubt([call], EVERYTHING)
    await asyncio.sleep(0)
    stand.held.set()
    while stand.cache.get(call.needs.key, stand.clock.now) is None:
        await asyncio.sleep(0)
    stand.cache.revoke(EVERYTHING)
    while call.watch.asking:
        await asyncio.sleep(0)
    assert stand.streams.unsettled([call]) == [call]
    stand.answer = REFUSED
    await stand.sweep(0.25)
    assert call.code == "grant.missing"


# --- what people approved, for one call -----------------------------------------------------------


def end_of(call):
    return Ended([Signal(kind="token", value=call.permit.credential.jti, at=0)])


async def test_what_is_certain_cuts_a_call_at_once_and_nobody_is_asked(stand):
    call, other = stand.call(cached=False, single_use=True), stand.call("/tickets/")
    stand.streams.doubt([call, other], end_of(call))
    assert (call.code, other.code) == ("subject.revoked", None)
    assert stand.questions == []
    assert stand.streams.unsettled([call, other]) == []


async def test_a_call_that_is_not_out_yet_is_not_cut_but_gets_another_credential(stand):
    call = stand.call(cached=False, single_use=True)
    call.phase = Phase.CONNECTING
    stand.streams.doubt([call], end_of(call))
    assert call.code is None


@pytest.mark.parametrize(
    ("good", "code"), [(True, None), (False, "subject.revoked"), (DOWN, "broker.unavailable")]
)
async def test_what_is_not_certain_the_broker_is_asked_about(stand, good, code):
    call = stand.call(cached=False, single_use=True)
    stand.good = good
    stand.streams.doubt([call], EVERYTHING)
    assert stand.streams.unsettled([call]) == [call]
    await stand.sweep()
    assert (call.code, stand.questions) == (code, [call.permit.credential])
    assert stand.streams.unsettled([call]) == []
    assert stand.asked == [], "another credential would take another yes"


async def test_a_yes_from_before_a_doubt_does_not_settle_it(stand):
    call = stand.call(cached=False, single_use=True)
    stand.held = asyncio.Event()
    stand.streams.doubt([call], EVERYTHING)
    await stand.sweep()
    stand.good = False  # the question under way was answered before
    stand.streams.doubt([call], EVERYTHING)
    slow, stand.held = stand.held, asyncio.Event()
    slow.set()
    await stand.sweep()
    assert len(stand.questions) == 2
    assert stand.streams.unsettled([call]) == [call]
    stand.held.set()
    await stand.sweep()
    assert call.code == "subject.revoked"


async def test_what_is_certain_ends_a_call_whatever_is_being_answered(stand):
    call = stand.call(cached=False, single_use=True)
    stand.held = asyncio.Event()
    stand.streams.doubt([call], EVERYTHING)
    await stand.sweep()
    stand.streams.doubt([call], end_of(call))
    assert call.code == "subject.revoked"
    stand.held.set()
    await stand.sweep()
    assert stand.results == {"subject.revoked": 1}


async def test_what_changes_while_the_broker_is_asked_makes_it_be_asked_again(stand):
    call = stand.call()
    stand.held = asyncio.Event()
    stand.who = Principal("https://idp.example", "bot", 4)
    await stand.sweep(0.25)
    stand.who = Principal("https://idp.example", "bot", 5)
    await stand.sweep(0.25)
    stand.held.set()
    await stand.sweep()
    stand.answer = REFUSED
    await stand.sweep(0.25)
    assert [key.epoch for key in stand.asked] == [4, 5]
    assert call.code == "grant.missing"


async def test_the_broker_is_not_asked_about_everything_at_once(stand):
    calls = [
        stand.call(subject_token=Secret(f"user-token-{number}"), cached=False)
        for number in range(200)
    ]
    stand.held = asyncio.Event()
    stand.who = Principal("https://idp.example", "bot", 4)
    await stand.sweep(0.25)
    assert len(stand.asked) == 32
    stand.held.set()
    for _ in range(20):
        await stand.sweep()
    assert len(stand.asked) == 200
    assert {call.code for call in calls} == {None}


# --- which calls ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phase", "checked"),
    [
        (Phase.DECIDING, False), (Phase.CONNECTING, False), (Phase.WAITING, True),
        (Phase.ANSWERING, True), (Phase.SWITCHED, True), (Phase.DONE, False),
    ],
)  # fmt: skip
async def test_calls_that_are_with_the_target_are_looked_at(stand, phase, checked):
    call = stand.call()
    call.phase = phase
    stand.answer = REFUSED
    stand.who = Principal("https://idp.example", "bot", 4)
    await stand.sweep(0.25)
    assert (call.code is not None) == checked


async def test_a_call_that_was_not_there_yet_is_looked_at_once_it_is(stand):
    call = stand.call()
    call.phase = Phase.CONNECTING
    stand.snapshot = compiled(tree(routes=[route("a", "/")]))
    stand.streams.changed()
    await stand.sweep(0.25)
    assert call.code is None
    call.phase = Phase.WAITING
    await stand.sweep(0.25)
    assert call.code == "route.no_match"


async def test_a_call_that_ends_while_the_broker_is_asked_is_left_alone(stand):
    call = stand.call(cached=False)
    stand.held = asyncio.Event()
    stand.answer = REFUSED
    await stand.sweep(80)
    await stand.sweep(0.5)
    call.phase = Phase.DONE
    stand.held.set()
    await stand.sweep()
    assert call.code is None


@pytest.mark.parametrize("single_use", [False, True])
@pytest.mark.parametrize("seen", [False, True])
@pytest.mark.parametrize("answers", [False, True])
async def test_a_limit_on_lives_is_one_on_calls_under_way(stand, single_use, seen, answers):
    """Without the broker's yes, what is for one request lasts no longer than what is cached."""
    stand.snapshot = compiled(tree(routes=[route("once", "/api/tickets/{id}", per_request=True)]))
    call = stand.call(cached=False)
    credential = call.permit.credential
    credential.single_use, credential.minted_at = single_use, stand.clock.now
    if seen:
        await stand.sweep()
    await stand.sweep(5)
    if answers:
        stand.answer = DOWN
    else:
        stand.held = asyncio.Event()
    Revocation(stand.cache, HeldCalls(1), stand).limit_lives(10)
    assert credential.expires_at == credential.minted_at + 10
    await stand.sweep()
    assert call.code is None
    await stand.sweep(5)
    await stand.sweep(0.25)
    assert call.code is not None


async def test_a_limit_that_has_passed_already_cuts_at_once(stand):
    stand.snapshot = compiled(tree(routes=[route("once", "/api/tickets/{id}", per_request=True)]))
    calls = [stand.call(cached=False) for _ in range(2)]
    for call in calls:
        call.permit.credential.minted_at = stand.clock.now
    calls[0].permit.credential.single_use = True
    stand.answer = DOWN
    stand.clock.now += 20
    Revocation(stand.cache, HeldCalls(1), stand).limit_lives(10)
    await stand.sweep()
    assert [call.code for call in calls] == ["stream.expired", "broker.unavailable"]

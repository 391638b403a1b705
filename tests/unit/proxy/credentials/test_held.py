"""Calls that wait for a person: one question for all, one credential for one call, nothing lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from tests.support.waiting import turns
from tests.unit.proxy.credentials.test_cache import KEY
from valetkey.contracts import codes
from valetkey.contracts.errors import ApprovalError, BrokerError, PolicyError, ValetkeyError
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import Signal
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import EVERYTHING, Ended
from valetkey.proxy.credentials import held as module
from valetkey.proxy.credentials.cache import CredentialCache
from valetkey.proxy.credentials.held import Deferred, HeldCalls
from valetkey.proxy.credentials.question import BrokerQuestion

Answer = Credential | ValetkeyError


def credential(*, single_use: bool = True, life: float = 100.0) -> Credential:
    now = time.monotonic()
    return Credential(
        KEY, Secret("a-token-that-is-long-enough"), b"", expires_at=now + life,
        refresh_at=now + life, subject="bot", actor="bot", jti="j", txn="t", policy_digest="d",
        approval="apr_1", single_use=single_use,
    )  # fmt: skip


def pending(code: str = "", interval: float = 1.0) -> Deferred:
    deferral = Secret(code) if code else None
    return Deferred("pending", approval="apr_1", deferral=deferral, interval=interval)


class Broker:
    """Says what it was told to, in order; the last thing again and again."""

    def __init__(self, *asked: Answer, polled: tuple[Answer, ...] = ()) -> None:
        self.asked = list(asked)
        self.polled = list(polled)
        self.calls: list[str] = []
        self.good: bool | ValetkeyError = True
        self.thinks: asyncio.Event | None = None
        self.slow: asyncio.Event | None = None

    async def ask(self) -> Credential:
        self.calls.append("ask")
        return await self._say(self.asked)

    async def poll(self, deferral: Secret) -> Credential:
        self.calls.append(f"poll {deferral.reveal()}")
        return await self._say(self.polled)

    async def is_good(self, _credential: Credential) -> bool:
        self.calls.append("is_good")
        if self.thinks is not None:
            await self.thinks.wait()
        if isinstance(self.good, ValetkeyError):
            raise self.good
        return self.good

    async def _say(self, answers: list[Answer]) -> Credential:
        if self.slow is not None:
            await self.slow.wait()
        else:
            await asyncio.sleep(0)
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, ValetkeyError):
            raise answer
        return answer


@pytest.fixture
def sleeps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Intervals take no time here; what they would have been is kept."""
    slept: list[float] = []
    real = asyncio.sleep

    async def sleep(seconds: float) -> None:
        if seconds >= 1:
            slept.append(seconds)
        await real(min(seconds, 0.01))

    monkeypatch.setattr(module.asyncio, "sleep", sleep)
    return slept


@contextmanager
def refused(code: codes.Code, approval: str = "apr_1") -> Iterator[None]:
    with pytest.raises(ApprovalError) as error:
        yield
    assert (error.value.code, error.value.approval) == (code, approval)


async def test_asked_once_polled_by_its_code_at_its_interval(sleeps: list[float]) -> None:
    held = HeldCalls(10)
    broker = Broker(
        pending("code", 3), polled=(pending(interval=3), pending(interval=8), credential())
    )
    found = await held.obtain(KEY, broker, hold=5)
    assert found.approval == "apr_1"
    assert broker.calls == ["ask", "poll code", "poll code", "poll code"]
    assert sleeps == [3, 3, 8]


async def test_hundreds_of_one_request_are_one_question_and_one_of_them_passes(
    sleeps: list[float],
) -> None:
    held = HeldCalls(10)
    broker = Broker(pending("one"), pending("two"), polled=(pending(), credential(), pending()))
    calls = [asyncio.ensure_future(held.obtain(KEY, broker, hold=1)) for _ in range(300)]
    await asyncio.sleep(0)
    assert broker.calls.count("ask") <= 1
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert sum(isinstance(result, Credential) for result in results) == 1
    others = [result for result in results if not isinstance(result, Credential)]
    assert {error.code for error in others} == {codes.APPROVAL_PENDING}
    assert broker.calls.count("ask") == 2, "and one more, for all the others"
    assert held.waiting == 0


async def test_without_counted_uses_all_who_waited_pass(sleeps: list[float]) -> None:
    held = HeldCalls(10)
    broker = Broker(pending("code"), polled=(credential(single_use=False),))
    found = await asyncio.gather(*(held.obtain(KEY, broker, hold=1) for _ in range(5)))
    assert len({id(one) for one in found}) == 1


async def test_the_hold_ends_with_the_id_and_nobody_polls_any_more(sleeps: list[float]) -> None:
    held = HeldCalls(10)
    broker = Broker(pending("code"), polled=(pending(),))
    with refused(codes.APPROVAL_PENDING):
        await held.obtain(KEY, broker, hold=0.05)
    await asyncio.sleep(0.1)
    polled = len(broker.calls)
    await asyncio.sleep(0.1)
    assert len(broker.calls) == polled
    assert not held._flights


@pytest.mark.parametrize("code", [codes.APPROVAL_DENIED, codes.APPROVAL_EXPIRED])
async def test_a_no_reaches_all_and_is_remembered_for_a_second(
    sleeps: list[float], code: codes.Code
) -> None:
    held = HeldCalls(10)
    broker = Broker(pending("code"), polled=(ApprovalError(code, "no", approval="apr_1"),))
    calls = [held.obtain(KEY, broker, hold=1) for _ in range(3)]
    for error in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(error, ApprovalError)
        assert (error.code, error.approval) == (code, "apr_1")
    before = len(broker.calls)
    with refused(code):
        await held.obtain(KEY, broker, hold=1)
    assert len(broker.calls) == before


async def test_who_leaves_does_not_take_the_others_along(sleeps: list[float]) -> None:
    held = HeldCalls(10)
    broker = Broker(pending("code"), polled=(pending(), pending(), credential()))
    first = asyncio.ensure_future(held.obtain(KEY, broker, hold=5))
    second = asyncio.ensure_future(held.obtain(KEY, broker, hold=5))
    await asyncio.sleep(0.005)
    first.cancel()
    assert (await second).approval == "apr_1"
    with pytest.raises(asyncio.CancelledError):
        await first
    assert held.waiting == 0


async def test_what_arrives_when_nobody_waits_is_there_for_the_next_such_call_once() -> None:
    held = HeldCalls(10)
    broker = Broker(credential(), pending("code"), polled=(pending(),))
    broker.slow = asyncio.Event()
    gone = asyncio.ensure_future(held.obtain(KEY, broker, hold=5))
    await turns()
    gone.cancel()
    await turns()
    broker.slow.set()
    await turns()
    assert (await held.obtain(KEY, broker, hold=0)).claimed
    assert broker.calls == ["ask", "is_good"]
    with refused(codes.APPROVAL_PENDING):
        await held.obtain(KEY, broker, hold=0)
    await held.close()


@pytest.mark.parametrize("life", [100.0, 0.0])
async def test_what_lay_about_counts_only_while_the_broker_stands_by_it(life: float) -> None:
    held = HeldCalls(10)
    broker = Broker(credential(life=life), pending("code"), polled=(pending(),))
    broker.slow, broker.good = asyncio.Event(), False
    gone = asyncio.ensure_future(held.obtain(KEY, broker, hold=5))
    await turns()
    gone.cancel()
    broker.slow.set()
    await turns()
    with refused(codes.APPROVAL_PENDING):
        await held.obtain(KEY, broker, hold=0)
    assert broker.calls.count("ask") == 2
    await held.close()


async def left_over(held: HeldCalls, broker: Broker) -> None:
    """Somebody asked and left, and the credential came."""
    broker.slow = asyncio.Event()
    gone = asyncio.ensure_future(held.obtain(KEY, broker, hold=5))
    await turns()
    gone.cancel()
    broker.slow.set()
    await turns()


async def test_a_broker_that_can_not_be_asked_does_not_cost_what_was_left_over() -> None:
    held = HeldCalls(10)
    broker = Broker(credential())
    await left_over(held, broker)
    broker.good = BrokerError(codes.BROKER_UNAVAILABLE, "gone")
    with pytest.raises(BrokerError):
        await held.obtain(KEY, broker, hold=0)
    broker.good = True
    assert (await held.obtain(KEY, broker, hold=0)).claimed
    assert broker.calls == ["ask", "is_good", "is_good"]


async def test_who_leaves_while_it_is_asked_about_leaves_it_over() -> None:
    held = HeldCalls(10)
    broker = Broker(credential())
    await left_over(held, broker)
    broker.thinks = asyncio.Event()
    gone = asyncio.ensure_future(held.obtain(KEY, broker, hold=0))
    await turns()
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    broker.thinks.set()
    assert (await held.obtain(KEY, broker, hold=0)).claimed
    assert broker.calls == ["ask", "is_good", "is_good"]


async def test_what_was_left_over_and_has_ended_is_dropped_unasked() -> None:
    held = HeldCalls(10)
    broker = Broker(credential(), pending("code"), polled=(pending(),))
    await left_over(held, broker)
    held.revoke(EVERYTHING)  # which may leave it standing: that is for the broker to say
    held.revoke(Ended([Signal(kind="token", value="another", at=0)]))
    assert len(held._left_over) == 1
    held.revoke(Ended([Signal(kind="token", value="j", at=0)]))
    with refused(codes.APPROVAL_PENDING):
        await held.obtain(KEY, broker, hold=0)
    assert "is_good" not in broker.calls
    await held.close()


async def test_what_ended_before_it_was_left_over_is_not_kept() -> None:
    held = HeldCalls(10)
    ended = credential()
    ended.end(certain=True)
    await left_over(held, Broker(ended))
    assert len(held._left_over) == 0


async def test_what_ends_while_people_are_waited_for_does_not_cost_their_yes(
    sleeps: list[float],
) -> None:
    """With the true cache: what was asked for later is none of what ended before."""
    held, cache, client = HeldCalls(10), CredentialCache(10), Client(pending("code"), credential())
    question = BrokerQuestion(client, cache, KEY, None, None, "", lambda sent: sent)
    call = asyncio.ensure_future(held.obtain(KEY, question, hold=5))
    while not sleeps:
        await asyncio.sleep(0.001)
    cache.revoke(EVERYTHING)
    assert (await call).approval == "apr_1"
    assert client.calls == ["exchange", "redeem"]


async def test_what_may_have_ended_on_its_way_is_asked_about(sleeps: list[float]) -> None:
    held, cache, client = HeldCalls(10), CredentialCache(10), Client(pending("code"), credential())
    client.meanwhile = lambda: cache.revoke(EVERYTHING)
    question = BrokerQuestion(client, cache, KEY, None, None, "", lambda sent: sent)
    assert (await held.obtain(KEY, question, hold=5)).approval == "apr_1"
    assert client.calls == ["exchange", "redeem", "is_active"]


class Client:
    """The broker's side of `BrokerQuestion`: it takes people, and they say yes."""

    def __init__(self, asked: ValetkeyError, granted: Credential) -> None:
        self.asked, self.granted = asked, granted
        self.calls: list[str] = []
        self.meanwhile: Callable[[], object] = lambda: None

    async def exchange(self, *_: object, **_more: object) -> Credential:
        self.calls.append("exchange")
        raise self.asked

    async def redeem(self, *_: object) -> Credential:
        self.calls.append("redeem")
        self.meanwhile()
        return self.granted

    async def is_active(self, _credential: Credential) -> bool:
        self.calls.append("is_active")
        return True


async def test_a_broker_that_is_away_while_polled_ends_nothing(sleeps: list[float]) -> None:
    held = HeldCalls(10)
    away = BrokerError(codes.BROKER_UNAVAILABLE, "gone")
    broker = Broker(pending("code"), polled=(away, away, credential()))
    assert (await held.obtain(KEY, broker, hold=5)).approval == "apr_1"
    assert len(broker.calls) == 4


async def test_a_broker_that_is_away_when_asked_is_said_so() -> None:
    held = HeldCalls(10)
    with pytest.raises(BrokerError):
        await held.obtain(KEY, Broker(BrokerError(codes.BROKER_UNAVAILABLE, "gone")), hold=5)
    with pytest.raises(BrokerError):  # and never remembered
        await held.obtain(KEY, Broker(BrokerError(codes.BROKER_UNAVAILABLE, "gone")), hold=5)


async def test_a_code_that_is_good_no_more_asks_anew_once(sleeps: list[float]) -> None:
    held = HeldCalls(10)
    used_up = ApprovalError(codes.APPROVAL_CODE, "used up", approval="apr_1")
    broker = Broker(pending("one"), pending("two"), polled=(used_up, credential()))
    assert (await held.obtain(KEY, broker, hold=5)).approval == "apr_1"
    assert broker.calls == ["ask", "poll one", "ask", "poll two"]
    broker = Broker(pending("one"), polled=(used_up,))
    with refused(codes.APPROVAL_CODE):
        await HeldCalls(10).obtain(KEY, broker, hold=5)


async def test_the_policy_s_no_is_the_policy_s() -> None:
    with pytest.raises(PolicyError) as error:
        await HeldCalls(10).obtain(KEY, Broker(PolicyError(codes.GRANT_SCOPE, "no")), hold=5)
    assert error.value.code is codes.GRANT_SCOPE


async def test_of_those_who_share_an_exchange_one_gets_what_is_for_one_call() -> None:
    """The same at the cache, for a route whose settings know nothing of approvals."""
    cache = CredentialCache(10)
    made: list[Credential] = []

    async def fetch() -> Credential:
        await asyncio.sleep(0.01)
        made.append(credential())
        return made[-1]

    found = await asyncio.gather(*(cache.obtain(KEY, fetch) for _ in range(4)))
    assert len({id(one) for one in found}) == 4
    assert len(made) == 4
    assert len(cache) == 0

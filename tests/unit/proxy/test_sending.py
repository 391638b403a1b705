"""Between the decision and the sending: what ends there, and what only may have ended."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.enforcement import SETTINGS, Stand
from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, ValetkeyError
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import Signal
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.eviction import EVERYTHING, Ended

AWAY = BrokerError(codes.BROKER_UNAVAILABLE, "down")
ANSWER = b"HTTP/1.1 204 No Content\r\n\r\n"
ROUTES = [
    {
        "id": "asks",
        "target": "tickets",
        "match": {"methods": ["POST"], "path": "/asks/{id}"},
        "scopes": ["t:close"],
        "approval": {"hold": "10s"},
        "audit": "durable",
    },
    {
        "id": "is-told",
        "target": "tickets",
        "match": {"methods": ["POST"], "path": "/told/{id}"},
        "scopes": ["t:close"],
        "audit": "durable",
    },
]
BY_NAME = Ended([Signal(kind="subject", value="bot", issuer="https://other.example", at=0)])


def token(number: int) -> Ended:
    return Ended([Signal(kind="token", value=f"j{number}", at=0)])


class Broker:
    """Each credential is for one call, and took a person; where not, for many."""

    def __init__(self) -> None:
        self.asks_people = True
        self.made: list[Credential] = []
        self.questions: list[str] = []
        self.good: bool | ValetkeyError = True
        self.meanwhile: Callable[[], object] = lambda: None
        """What happens while it answers."""
        self.thinks: asyncio.Event | None = None

    async def exchange(self, key: Any, *_: Any, **_more: Any) -> Credential:
        number = len(self.made)
        now = time.monotonic()
        made = Credential(
            key, Secret(f"token-{number}-0123456789"), b"authorization: Bearer token-%d\r\n" % number,
            expires_at=now + 100, refresh_at=now + 80, subject="bot", actor="bot",
            jti=f"j{number}", txn=f"t{number}", policy_digest="d",
            approval=f"apr_{number}" if self.asks_people else "", single_use=self.asks_people,
            grants=("closes",), minted_at=now,
        )  # fmt: skip
        self.made.append(made)
        self._happens()
        return made

    async def is_active(self, credential: Credential) -> bool:
        self.questions.append(credential.jti)
        self._happens()
        if self.thinks is not None:
            await self.thinks.wait()
        if isinstance(self.good, ValetkeyError):
            raise self.good
        return self.good

    def _happens(self) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()


class Window(Stand):
    """Decisions come to disk when the test says so: until then, calls are not sent."""

    def __init__(self, directory: Path) -> None:
        self.broker = Broker()
        super().__init__(directory, exchange=self.broker, settings=SETTINGS | {"routes": ROUTES})

    async def until(self, holds: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not holds():
                self.turn.run()
                await asyncio.sleep(0)

    async def ask(self, path: str = "/asks/1") -> tuple[Any, Any]:
        """A call that is decided on, and the connection that it will go out by."""
        connection, target = self.open(), self.target()
        before = self.spool.seq
        connection.data_received(
            b"POST %b HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\n\r\n" % path.encode()
        )
        await self.until(lambda: self.spool.seq == before + 1)
        return connection, target

    async def commit(self) -> None:
        self.spool.keep()
        await asyncio.to_thread(self.spool._commit)
        self.spool._release()

    async def sent(self, target: Any) -> bytes:
        """The credential that the call went out with."""
        await self.until(lambda: b"\r\n\r\n" in target.transport.written)
        (line,) = [
            line
            for line in target.transport.written.split(b"\r\n")
            if line.startswith(b"authorization")
        ]
        target.data_received(ANSWER)
        self.turn.run()
        return bytes(line.rpartition(b" ")[2])

    async def outcome(self) -> dict[str, Any]:
        """The last one."""
        *_, raw = await asyncio.to_thread(self.events)
        unmapped: dict[str, Any] = json.loads(raw)["data"]["unmapped"]
        return unmapped


@pytest.fixture
def window(tmp_path: Path) -> Any:
    made = Window(tmp_path)
    yield made
    made.close()


@pytest.mark.parametrize("path", ["/asks/1", "/told/1"])
@pytest.mark.parametrize("ended", [EVERYTHING, BY_NAME], ids=["everything", "a subject's name"])
async def test_what_may_have_ended_is_asked_about_and_does_not_cost_the_yes(
    window: Window, ended: Ended, path: str
) -> None:
    _, target = await window.ask(path)
    window.revoke(ended)
    await window.commit()
    assert await window.sent(target) == b"token-0"
    assert (len(window.broker.made), window.broker.questions) == (1, ["j0"])
    outcome = await window.outcome()
    assert (outcome["outcome"], "credentials" in outcome) == ("completed", False)


@pytest.mark.parametrize(
    ("ended", "good", "questions"),
    [(token(0), True, []), (EVERYTHING, False, ["j0"])],
    ids=["it certainly has", "the broker says so"],
)
async def test_what_has_ended_is_not_sent(
    window: Window, ended: Ended, good: bool, questions: list[str]
) -> None:
    _, target = await window.ask()
    window.broker.good = good
    window.revoke(ended)
    await window.commit()
    assert await window.sent(target) == b"token-1"
    assert window.broker.questions == questions
    assert (await window.outcome())["credentials"] == [
        {"jti": "j1", "txn": "t1", "grants": ["closes"], "approval": "apr_1"}
    ]


async def test_what_ends_for_certain_while_it_is_asked_about_is_not_sent(window: Window) -> None:
    _, target = await window.ask()
    window.broker.meanwhile = lambda: window.revoke(token(0))
    window.revoke(EVERYTHING)
    await window.commit()
    assert await window.sent(target) == b"token-1"


async def test_what_may_end_again_while_it_is_asked_about_is_asked_about_again(
    window: Window,
) -> None:
    _, target = await window.ask()
    window.broker.meanwhile = lambda: window.revoke(EVERYTHING)
    window.revoke(EVERYTHING)
    await window.commit()
    assert await window.sent(target) == b"token-0"
    assert window.broker.questions == ["j0", "j0"]


async def test_without_an_answer_it_is_not_sent_and_waits_for_the_repeat(window: Window) -> None:
    connection, target = await window.ask()
    window.broker.good = AWAY
    window.revoke(EVERYTHING)
    await window.commit()
    await window.until(lambda: b"broker.unavailable" in connection.transport.written)
    assert target.transport.written == b""
    window.broker.good = True
    _, target = await window.ask()
    await window.commit()
    assert await window.sent(target) == b"token-0"
    assert len(window.broker.made) == 1


async def test_who_leaves_while_it_is_asked_about_leaves_it_for_the_repeat(window: Window) -> None:
    connection, target = await window.ask()
    window.broker.thinks = asyncio.Event()
    window.revoke(EVERYTHING)
    await window.commit()
    await window.until(lambda: window.broker.questions == ["j0"])
    connection.connection_lost(None)
    window.broker.thinks.set()
    await window.until(lambda: len(window.held._left_over) == 1)
    assert target.transport.written == b""
    _, target = await window.ask()
    await window.commit()
    assert await window.sent(target) == b"token-0"


@pytest.mark.parametrize("path", ["/asks/1", "/told/1"])
async def test_what_may_have_ended_on_its_way_from_the_broker_does_not_cost_the_yes_either(
    window: Window, path: str
) -> None:
    window.broker.meanwhile = lambda: window.revoke(EVERYTHING)
    _, target = await window.ask(path)
    await window.commit()
    assert await window.sent(target) == b"token-0"
    assert (len(window.broker.made), window.broker.questions) == (1, ["j0"])


@pytest.mark.parametrize("path", ["/asks/1", "/told/1"])
async def test_a_broker_that_gives_and_then_can_not_be_asked_is_asked_before_it_is_sent(
    window: Window, path: str
) -> None:
    window.broker.meanwhile = lambda: window.revoke(EVERYTHING)
    window.broker.good = AWAY
    connection, target = await window.ask(path)
    await window.commit()
    await window.until(lambda: b"broker.unavailable" in connection.transport.written)
    assert target.transport.written == b""
    assert window.broker.questions == ["j0", "j0"]
    window.broker.good = True
    _, target = await window.ask(path)
    await window.commit()
    assert await window.sent(target) == b"token-0"
    assert len(window.broker.made) == 1


async def test_a_lost_feed_lets_nothing_out_and_keeps_what_came(window: Window) -> None:
    lost = BrokerError(codes.FEED_LOST, "the feed is lost")
    window.broker.meanwhile = lambda: window.cache.close_for(lost)
    connection, target = await window.ask()
    await window.commit()
    await window.until(lambda: b"feed.lost" in connection.transport.written)
    assert target.transport.written == b""
    window.cache.close_for(None)
    _, target = await window.ask()
    await window.commit()
    assert await window.sent(target) == b"token-0"


# --- another credential than the decision's -------------------------------------------------------

UNAUTHORIZED = b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n"


def named(*numbers: int) -> list[dict[str, Any]]:
    return [{"jti": f"j{number}", "txn": f"t{number}", "grants": ["closes"]} for number in numbers]


@pytest.fixture
def usual(window: Window) -> Window:
    window.broker.asks_people = False
    return window


async def test_the_outcome_names_both_credentials_of_a_call_that_was_tried_again(
    usual: Window,
) -> None:
    _, target = await usual.ask("/told/1")
    await usual.commit()
    await usual.until(lambda: target.transport.written != b"")
    again = usual.target()
    target.data_received(UNAUTHORIZED)
    assert await usual.sent(again) == b"token-1"
    outcome = await usual.outcome()
    assert (outcome["credentials"], outcome["attempts"]) == (named(0, 1), 2)


async def test_the_outcome_names_the_credential_that_went_out_in_place_of_the_decision_s(
    usual: Window,
) -> None:
    _, target = await usual.ask("/told/1")
    usual.revoke(token(0))
    await usual.commit()
    assert await usual.sent(target) == b"token-1"
    outcome = await usual.outcome()
    assert (outcome["credentials"], outcome["attempts"]) == (named(1), 1)


async def test_a_credential_that_was_refused_in_place_of_the_decision_s_is_named_as_well(
    usual: Window,
) -> None:
    connection, target = await usual.ask("/told/1")
    usual.revoke(token(0))
    await usual.commit()
    await usual.until(lambda: target.transport.written != b"")
    again = usual.target()
    target.data_received(UNAUTHORIZED)
    await usual.until(lambda: again.transport.written != b"")
    again.data_received(UNAUTHORIZED)
    await usual.until(lambda: connection.transport.written != b"")
    assert connection.transport.written.startswith(b"HTTP/1.1 401 ")
    outcome = await usual.outcome()
    assert (outcome["credentials"], outcome["attempts"]) == (named(1, 2), 2)


async def test_a_credential_that_did_not_go_out_is_not_named(usual: Window) -> None:
    """After a 401 there is another one, and nothing to send it by."""
    connection, target = await usual.ask("/told/1")
    await usual.commit()
    await usual.until(lambda: target.transport.written != b"")
    target.data_received(UNAUTHORIZED)
    await usual.until(lambda: connection.transport.written != b"")
    assert len(usual.broker.made) == 2
    outcome = await usual.outcome()
    assert (outcome["outcome"], outcome["attempts"]) == ("target_failed", 1)
    assert "credentials" not in outcome


async def test_a_caller_that_leaves_takes_no_name_out_of_the_record(usual: Window) -> None:
    connection, target = await usual.ask("/told/1")
    usual.revoke(token(0))
    await usual.commit()
    await usual.until(lambda: target.transport.written != b"")
    connection.connection_lost(None)
    outcome = await usual.outcome()
    assert (outcome["outcome"], outcome["credentials"]) == ("client_closed", named(1))

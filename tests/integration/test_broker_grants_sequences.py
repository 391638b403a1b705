"""Any sequence of API calls: no token outlives a window, no grant gives more than it may.

Hypothesis makes the calls to a real broker and keeps its own account of what they must lead to.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    consumes,
    multiple,
    rule,
)

from tests.integration.broker_support import (
    CI,
    JOB,
    claims_of,
)
from tests.integration.sequences_support import Machine, play
from tests.integration.test_broker_grants_api import is_active, rfc3339, written

# A target's tokens live this long at the most.
_TTL = 120


@dataclass
class Window:
    id: str
    deadline: float
    token: str
    owner: str
    closed: bool = False


@dataclass
class Grant:
    id: str
    deployment: bool
    longest: float
    not_after: float
    max_uses: float
    uses: int = 0
    revoked: bool = False
    windows: list[Window] = field(default_factory=list)

    @property
    def scope(self) -> str:
        return f"scope:{self.id}"

    def refusal(self, now: float) -> str:
        if self.revoked or now > self.not_after - 1:
            return "grant.ended"
        return "grant.used_up" if self.uses >= self.max_uses else ""

    def until(self, now: float) -> float:
        """When what it gives now ends; before ``now`` if it gives nothing."""
        if not self.deployment:
            return self.not_after
        open_ = [window.deadline for window in self.windows if not window.closed]
        return min(self.not_after, max(open_, default=-math.inf))


@dataclass
class Token:
    compact: str
    grant: Grant
    window: Window | None
    expires: float

    def is_active(self, now: float) -> bool:
        window = self.window
        return (
            now < self.expires
            and not self.grant.revoked
            and (window is None or not (window.closed or now >= window.deadline))
        )


class Sequences(Machine):
    grants = Bundle("grants")
    windows = Bundle("windows")
    tokens = Bundle("tokens")

    def manage(self, path: str, body: Any, token: str = "") -> tuple[int, Any]:
        status, answer, _ = self.lab.run(self.lab.broker.manage("POST", path, body, token=token))
        return status, answer

    @rule(
        target=grants,
        deployment=st.booleans(),
        lasts=st.one_of(st.none(), st.integers(2, 60)),
        longest=st.integers(2, 30),
        max_uses=st.one_of(st.none(), st.integers(1, 3)),
    )
    def create(
        self, deployment: bool, lasts: int | None, longest: int, max_uses: int | None
    ) -> Grant:
        grant = Grant(
            id=f"g{next(self.lab.numbers)}",
            deployment=deployment,
            longest=longest,
            not_after=math.inf if lasts is None else math.floor(self.now) + lasts,
            max_uses=math.inf if max_uses is None else max_uses,
        )
        bounds: dict[str, Any] = {"max_uses": max_uses}
        if lasts is not None:
            bounds["not_after"] = rfc3339(grant.not_after)
        if deployment:
            opener = {"issuer": CI, "claims": {"repository": "acme/tickets"}}
            bounds |= {"use": "deployment"}
            bounds |= {"window": {"opened_by": [opener], "longest": f"{longest}s"}}
        body = written(grant.id, scopes=[grant.scope], **bounds)
        assert self.manage("/v1/grants", body)[0] == 201
        assert self.manage("/v1/grants", body)[0] in {200, 400}  # 400: it is past its end already
        return grant

    @rule(grant=grants)
    def revoke(self, grant: Grant) -> None:
        assert self.manage(f"/v1/grants/{grant.id}/revoke", {"reason": "x"})[0] == 200
        grant.revoked = True
        for window in grant.windows:
            window.closed = True

    @rule(target=windows, grant=grants, owner=st.sampled_from([JOB, "another"]),
          duration=st.integers(1, 40))  # fmt: skip
    def announce(self, grant: Grant, owner: str, duration: int) -> Any:
        token = self.lab.broker.world.job(owner)
        body = {"grant": grant.id, "duration": f"{duration}s"}
        status, answer = self.manage("/v1/windows", body, token)
        if not grant.deployment:
            assert (status, answer["code"]) == (403, "window.denied")
        elif grant.refusal(self.now):
            assert (status, answer["code"]) == (403, grant.refusal(self.now))
        elif duration > grant.longest:
            assert (status, answer["code"]) == (400, "service.bad_request")
        else:
            assert status == 201
            deadline = min(self.now + duration, grant.not_after)
            window = Window(answer["id"], deadline, token, owner)
            grant.windows.append(window)
            return window
        return multiple()

    @rule(window=windows, grant=grants)
    def announce_again(self, window: Window, grant: Grant) -> None:
        """The same token: the same window or none, never another one."""
        if window not in grant.windows or grant.refusal(self.now):
            return
        status, answer = self.manage("/v1/windows", {"grant": grant.id}, window.token)
        if window.closed or self.now >= window.deadline:
            # A token that has expired by then is refused before anything else.
            assert (status, answer["code"]) in {
                (409, "window.ended"), (401, "service.unauthenticated"),
            }  # fmt: skip
        else:
            assert (status, answer["id"]) == (200, window.id)

    @rule(window=windows, by=st.sampled_from([JOB, "another", "operator"]))
    def close(self, window: Window, by: str) -> None:
        if by == "operator":
            status, _ = self.manage(f"/v1/windows/{window.id}/revoke", {"reason": "x"})
        else:
            token = self.lab.broker.world.job(by)
            status, answer = self.manage(f"/v1/windows/{window.id}/close", {}, token)
            if by != window.owner:
                assert (status, answer["code"]) == (403, "window.denied")
                return
        assert status == 200
        window.closed = True

    @rule(target=tokens, grant=grants)
    def ask_once(self, grant: Grant) -> Any:
        return self.ask(grant)

    def ask(self, grant: Grant) -> Any:
        world = self.lab.broker.world
        form = world.form(world.workload(), scope=grant.scope)
        status, answer, _ = self.lab.run(self.lab.broker.exchange(form))
        until = grant.until(self.now)
        expected = grant.refusal(self.now)
        if not expected and self.now > until - 1:
            expected = "grant.outside_window"
        if expected:
            assert (status, answer["code"]) == (400, expected)
            return multiple()
        assert status == 200, answer
        grant.uses += 1
        assert grant.uses <= grant.max_uses
        expires = claims_of(answer["access_token"])["exp"]
        assert expires <= until
        assert answer["expires_in"] <= min(_TTL, until - self.now)
        named = [window for window in grant.windows if window.id in answer["grants"]]
        assert answer["grants"] == [grant.id, *(window.id for window in named)]
        assert bool(named) is grant.deployment
        return Token(answer["access_token"], grant, named[0] if named else None, expires)

    @rule(target=tokens, grant=grants, times=st.integers(2, 4))
    def ask_again_and_again(self, grant: Grant, times: int) -> Any:
        answers = [self.ask(grant) for _ in range(times)]
        return multiple(*(answer for answer in answers if isinstance(answer, Token)))

    @rule(token=tokens)
    def inspect(self, token: Token) -> None:
        assert self.lab.run(is_active(self.lab.broker, token.compact)) is token.is_active(self.now)

    @rule(token=consumes(tokens))
    def inspect_at_its_end(self, token: Token) -> None:
        self.lab.broker.world.clock.now = max(self.now, token.expires)
        assert not self.lab.run(is_active(self.lab.broker, token.compact))

    @rule(seconds=st.one_of(st.floats(0.05, 3), st.integers(1, 20)))
    def wait(self, seconds: float) -> None:
        self.lab.broker.world.clock.advance(seconds)


def test_no_sequence_of_calls_outlives_a_window_or_uses_a_grant_too_often(tmp_path: Path) -> None:
    play(Sequences, tmp_path)

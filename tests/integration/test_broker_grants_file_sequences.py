"""Any sequence of files, calls and restarts: an id that is used again brings no token back.

Hypothesis writes grants files, makes and revokes grants of the same few ids by API, and starts the
broker again with another file, and keeps its own account of which tokens must have ended.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, multiple, rule

from tests.integration.broker_support import BOT, GRANTS, claims_of
from tests.integration.sequences_support import Machine, play
from tests.integration.test_broker_grants_api import written
from tests.integration.test_broker_grants_reuse import OTHER, is_active
from tests.support.postgres import Postgres

_IDS = 3
_PARTS = ("read", "write")


@dataclass(frozen=True)
class Form:
    """What a grant says, as far as these sequences differ in it."""

    workload: str
    parts: frozenset[str]

    def gives_all_of(self, other: Form) -> bool:
        return self.workload == other.workload and self.parts >= other.parts

    def document(self, name: str, **more: Any) -> dict[str, Any]:
        scopes = sorted(f"{name}:{part}" for part in self.parts)
        return written(name, workload=self.workload, scopes=scopes, **more)


@dataclass
class Id:
    """An id, with what it stands for and what it stood for."""

    name: str
    in_file: Form | None = None
    by_api: Form | None = None
    revoked: bool = False
    was_in_file: bool = False
    blurred_until: float = -math.inf
    tokens: list[Token] = field(default_factory=list)

    @property
    def form(self) -> Form | None:
        return self.in_file or (None if self.revoked else self.by_api)

    def end(self, now: float) -> None:
        """Tokens of this very second are not told from those of before."""
        self.blurred_until = now
        for token in self.tokens:
            token.ended = True


@dataclass
class Token:
    compact: str
    expires: float
    blurred: bool
    """Minted in the very second in which another one ended: it may count for ended, too."""
    ended: bool = False


FORMS = st.builds(
    Form,
    st.sampled_from([BOT, OTHER]),
    st.sets(st.sampled_from(_PARTS), min_size=1).map(frozenset),
)
FILES = st.tuples(*[st.one_of(st.none(), FORMS)] * _IDS)
NUMBERS = st.integers(0, _IDS - 1)


class Sequences(Machine):
    tokens = Bundle("tokens")

    def __init__(self) -> None:
        super().__init__()
        self.ids = [Id(f"n{next(self.lab.numbers)}") for _ in range(_IDS)]

    def manage(self, path: str, body: Any) -> tuple[int, Any]:
        status, answer, _ = self.lab.run(self.lab.broker.manage("POST", path, body))
        return status, answer

    def put(self, forms: tuple[Form | None, ...]) -> None:
        """Write the file; what stands by API can't be in it."""
        grants = []
        for each, form in zip(self.ids, forms, strict=True):
            wanted = None if each.by_api is not None and not each.revoked else form
            if wanted is not None:
                grants.append(wanted.document(each.name))
            before, each.in_file = each.in_file, wanted
            used = each.was_in_file or each.by_api is not None
            if before is None:
                narrowed = wanted is not None and used
            else:
                narrowed = wanted is None or not wanted.gives_all_of(before)
            if narrowed:
                each.end(self.now)
            each.was_in_file = each.was_in_file or wanted is not None
        self.world.write_grants([*GRANTS, *grants])

    @rule(forms=FILES)
    def rewrite(self, forms: tuple[Form | None, ...]) -> None:
        self.put(forms)
        self.lab.run(self.lab.broker.broker.base.policies.reload(force=True))

    @rule(forms=FILES)
    def restart(self, forms: tuple[Form | None, ...]) -> None:
        self.lab.stop()
        self.put(forms)
        self.lab.start()

    @rule(number=NUMBERS, form=FORMS)
    def create(self, number: int, form: Form) -> None:
        each = self.ids[number]
        status, _ = self.manage("/v1/grants", form.document(each.name))
        if each.in_file is not None or (each.by_api is not None and each.by_api != form):
            assert status == 409
        elif each.by_api is not None:
            assert status == 200
        else:
            assert status == 201
            each.by_api = form
            if each.was_in_file:
                each.end(self.now)

    @rule(number=NUMBERS)
    def revoke(self, number: int) -> None:
        each = self.ids[number]
        status, _ = self.manage(f"/v1/grants/{each.name}/revoke", {"reason": "x"})
        if each.by_api is None:
            assert status == (409 if each.in_file is not None else 404)
        else:
            assert status == 200
            if not each.revoked:
                each.revoked = True
                each.end(self.now)

    @rule(target=tokens, number=NUMBERS, workload=st.sampled_from([BOT, OTHER]),
          part=st.sampled_from(_PARTS))  # fmt: skip
    def ask(self, number: int, workload: str, part: str) -> Any:
        each = self.ids[number]
        form = self.world.form(self.world.workload(workload), scope=f"{each.name}:{part}")
        status, answer, _ = self.lab.run(self.lab.broker.exchange(form))
        if each.form is None or each.form.workload != workload or part not in each.form.parts:
            assert status == 400, answer
            return multiple()
        assert (status, answer["grants"]) == (200, [each.name]), answer
        claims = claims_of(answer["access_token"])
        blurred = claims["iat"] <= each.blurred_until
        token = Token(answer["access_token"], claims["exp"], blurred)
        each.tokens.append(token)
        return token

    @rule(token=tokens)
    def inspect(self, token: Token) -> None:
        counts = not token.ended and self.now < token.expires
        active = self.lab.run(is_active(self.lab.broker, token.compact))
        assert active is counts or (token.blurred and not active)

    @rule(seconds=st.sampled_from([0.3, 1.0, 1.7, 20.0]))
    def wait(self, seconds: float) -> None:
        self.world.clock.advance(seconds)


# Each start takes longer with PostgreSQL.
@pytest.mark.parametrize(("kind", "examples"), [("sqlite", 8), ("postgres", 4)])
def test_no_sequence_brings_a_token_back(
    tmp_path: Path, kind: str, examples: int, request: pytest.FixtureRequest
) -> None:
    overrides = {}
    if kind == "postgres":
        server: Postgres = request.getfixturevalue("postgres")
        overrides["database"] = server.database()
    play(Sequences, tmp_path, examples=examples, **overrides)

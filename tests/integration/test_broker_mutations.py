"""Whatever is changed in a token, an assertion or a proof: it never leads to a token."""

from __future__ import annotations

from collections.abc import AsyncIterator
from urllib.parse import urlencode

import pytest
import pytest_asyncio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.integration.broker_support import Served, World, mutate, serving
from tests.support.ports import free_url
from valetkey.contracts.oauth import TOKEN_TYPE_JWT

pytestmark = pytest.mark.asyncio(loop_scope="module")

QUICK = settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
# Part of the JWS, byte in it, and the bits that flip.
CHANGES = st.tuples(st.integers(0, 2), st.integers(0, 4000), st.integers(1, 255))
TEXT = st.text(alphabet=st.characters(codec="ascii"), max_size=80)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def broker(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    async with serving(World(tmp_path_factory.mktemp("broker"), free_url())) as served:
        yield served


def refused(status: int, body: dict[str, object]) -> None:
    assert status in {400, 401}, body
    assert "access_token" not in body
    assert body["error"]
    assert body["code"]


@QUICK
@given(change=CHANGES)
async def test_a_changed_assertion(broker: Served, change: tuple[int, int, int]) -> None:
    status, body, _ = await broker.post(
        broker.world.form(mutate(broker.world.assertion(), *change))
    )
    refused(status, body)


@QUICK
@given(change=CHANGES)
async def test_a_changed_workload_token(broker: Served, change: tuple[int, int, int]) -> None:
    status, body, _ = await broker.exchange(
        broker.world.form(mutate(broker.world.workload(), *change))
    )
    refused(status, body)


@QUICK
@given(change=CHANGES)
async def test_a_changed_users_token(broker: Served, change: tuple[int, int, int]) -> None:
    world = broker.world
    form = world.user_form(world.workload(), mutate(world.user(), *change))
    status, body, _ = await broker.exchange(form)
    refused(status, body)


@QUICK
@given(change=CHANGES)
async def test_a_changed_actor_token(broker: Served, change: tuple[int, int, int]) -> None:
    world = broker.world
    token = world.workload()
    form = world.user_form(token, world.user(), actor_token=mutate(token, *change))
    status, body, _ = await broker.exchange(form)
    refused(status, body)


@QUICK
@given(change=CHANGES)
async def test_a_changed_proof(broker: Served, change: tuple[int, int, int]) -> None:
    world = broker.world
    proof = mutate(world.proof(nonce=await broker.nonce()), *change)
    status, body, _ = await broker.post(world.form(world.workload()), proofs=[proof])
    refused(status, body)


@QUICK
@given(first=st.integers(0, 2), second=st.integers(0, 2), third=st.integers(0, 2))
async def test_parts_of_different_tokens(
    broker: Served, first: int, second: int, third: int
) -> None:
    """Header, payload and signature of three good tokens, mixed."""
    if first == second == third:
        return
    world = broker.world
    tokens = [world.workload(), world.workload("spiffe://demo.example/ns/x/sa/y"), world.user()]
    parts = [token.split(".") for token in tokens]
    mixed = ".".join([parts[first][0], parts[second][1], parts[third][2]])
    if mixed in tokens:  # headers of one issuer are alike
        return
    status, body, _ = await broker.exchange(world.form(mixed))
    refused(status, body)


@QUICK
@given(form=st.dictionaries(TEXT, TEXT, max_size=6))
async def test_any_form(broker: Served, form: dict[str, str]) -> None:
    status, body, _ = await broker.post(urlencode(form).encode())
    refused(status, body)


@QUICK
@given(body=st.binary(max_size=200))
async def test_any_body(broker: Served, body: bytes) -> None:
    status, answer, _ = await broker.post(body)
    refused(status, answer)


@QUICK
@given(text=TEXT)
async def test_any_text_as_details_scope_or_resource_gives_no_more_than_granted(
    broker: Served, text: str
) -> None:
    world = broker.world
    for name in ("authorization_details", "scope", "resource", "audience", "subject_token"):
        status, body, _ = await broker.exchange(world.form(world.workload(), **{name: text}))
        if status == 200:
            assert name in {"authorization_details", "resource"}
            assert not text, "only an empty value, which counts as left out"
        else:
            refused(status, body)


async def test_unchanged_ones_are_good(broker: Served) -> None:
    """The control: the mutations above start from things that work."""
    world = broker.world
    assert (await broker.post(world.form(world.assertion())))[0] == 200
    assert (await broker.exchange(world.form(world.workload())))[0] == 200
    form = world.user_form(world.workload(), world.user(), actor_token_type=TOKEN_TYPE_JWT)
    assert (await broker.exchange(form))[0] == 200

"""Two replicas over one PostgreSQL: what one did is in force at the other, within a second."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import jwt
from aiohttp import web
from sqlalchemy import text

from tests.integration.broker_support import (
    BOT,
    IDP,
    TICKETS,
    Served,
    World,
    serving,
)
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.signals import SIGNAL_HEADER
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.credentials.bearer import BearerInjector
from valetkey.proxy.credentials.exchange import ExchangeClient
from valetkey.proxy.feed_client import FeedClient
from valetkey.proxy.identity.file import FileIdentity


def shared(tmp_path: Path, postgres: Postgres, **overrides: Any) -> World:
    overrides["database"] = postgres.database()
    return World(tmp_path, free_url(), overrides=overrides)


@asynccontextmanager
async def replicas(world: World) -> AsyncIterator[tuple[Served, Served]]:
    async with serving(world) as one, serving(world, free_url()) as other:
        yield one, other


def presented(world: World, token: str) -> dict[str, str]:
    return {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": world.workload(),
    }


async def kids(broker: Served) -> set[str]:
    return {key["kid"] for key in json.loads((await broker.get("/jwks"))[1])["keys"]}


async def test_a_token_revoked_at_one_is_inactive_at_the_other(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = shared(tmp_path, postgres)
    async with replicas(world) as (one, other):
        _, issued, _ = await one.exchange(world.form(world.workload()))
        form = presented(world, issued["access_token"])
        assert (await other.exchange(form, path="/introspect"))[1]["active"] is True
        assert (await one.exchange(form, path="/revoke"))[0] == 200

        async def inactive() -> bool:
            return (await other.exchange(form, path="/introspect"))[1] == {"active": False}

        await until(inactive, "the other replica calls it inactive")


async def test_a_nudge_that_is_missed_costs_half_a_second(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = shared(tmp_path, postgres)
    async with replicas(world) as (one, other):
        other.broker.base.changes._nudge = lambda *_: None  # type: ignore[method-assign]
        _, issued, _ = await one.exchange(world.form(world.workload()))
        own = jwt.decode(issued["access_token"], options={"verify_signature": False})
        form = presented(world, issued["access_token"])
        assert (await one.exchange(form, path="/revoke"))[0] == 200

        async def known() -> bool:
            return other.broker.base.revocations.is_revoked(own["jti"], own["txn"])

        await until(known, "the other replica knows the revocation")


async def test_both_start_with_the_same_key_and_rotate_to_the_same(
    tmp_path: Path, postgres: Postgres
) -> None:
    keys = {"rotate_every": "1h", "publish_before": "5m", "overlap": "1m"}
    world = shared(tmp_path, postgres, keys=keys)
    async with replicas(world) as (one, other):
        assert await kids(one) == await kids(other)
        assert len(await kids(one)) == 1
        world.clock.advance(3300)
        await asyncio.gather(one.broker.base.ring.rotate(), other.broker.base.ring.rotate())

        async def same() -> bool:
            return await kids(one) == await kids(other) and len(await kids(one)) == 2

        await until(same, "both replicas publish the same two keys")


async def test_an_assertion_counts_once_wherever_it_is_used(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = shared(tmp_path, postgres)
    async with replicas(world) as (one, other):
        form = world.form(world.assertion())
        assert (await one.post(form))[0] == 200
        status, body, _ = await other.post(form)
        assert (status, body["code"]) == (401, "actor.replayed")


async def test_a_proof_counts_once_wherever_it_is_used(tmp_path: Path, postgres: Postgres) -> None:
    """With a nonce of all replicas it is used up in the database, with one of one in its memory."""
    world = shared(tmp_path, postgres)
    form = world.form(world.workload())
    async with replicas(world) as (one, other):
        for first, second in ((one, other), (other, one), (one, one)):
            proof = world.proof(nonce=await one.nonce())
            status, _, headers = await first.post(form, proofs=[proof])
            assert status == 200
            status, body, _ = await second.post(form, proofs=[proof])
            assert (status, body["code"]) == (400, "dpop.replayed")
        # One that stays gets a nonce of its replica, which no other takes.
        own = headers["DPoP-Nonce"]
        proof = world.proof(nonce=own)
        assert (await one.post(form, proofs=[proof]))[0] == 200
        assert (await one.post(form, proofs=[proof]))[1]["code"] == "dpop.replayed"
        status, body, _ = await other.post(form, proofs=[proof])
        assert (status, body["code"]) == (400, "dpop.nonce")
    # What was used up before a restart is used up after it, and an own nonce is no longer one.
    async with replicas(world) as (one, other):
        assert (await one.post(form, proofs=[proof]))[1]["code"] == "dpop.nonce"


async def test_a_shared_proof_is_used_up_over_a_restart(tmp_path: Path, postgres: Postgres) -> None:
    world = shared(tmp_path, postgres)
    form = world.form(world.workload())
    async with serving(world) as one:
        proof = world.proof(nonce=await one.nonce())
        assert (await one.post(form, proofs=[proof]))[0] == 200
    async with serving(world) as one:
        assert (await one.post(form, proofs=[proof]))[1]["code"] == "dpop.replayed"


async def test_who_stays_at_a_replica_writes_nothing(tmp_path: Path, postgres: Postgres) -> None:
    world = shared(tmp_path, postgres)
    form = world.form(world.workload())
    async with serving(world) as one:
        nonce = await one.nonce()
        for _ in range(10):
            status, _, headers = await one.post(form, proofs=[world.proof(nonce=nonce)])
            assert status == 200
            nonce = headers["DPoP-Nonce"]
        async with one.broker.base.database.read() as connection:
            used = await connection.execute(text("SELECT count(*) FROM used_assertions"))
            assert used.scalar_one() == 1  # the repetition of the first request


async def test_a_client_that_repeats_once_never_fails_wherever_it_gets_to(
    tmp_path: Path, postgres: Postgres
) -> None:
    """As any client of RFC 9449 §8 does it; the balancer picks at random, or the worst there is."""
    world = shared(tmp_path, postgres)
    world.overrides["limits"] = {"exchanges": {"rate": 10_000, "burst": 10_000}}
    form = world.form(world.workload())
    chance = random.Random(9449)
    async with replicas(world) as both:
        nonce, repeated, last = "", 0, both[0]
        for turn in range(300):
            world.clock.advance(1)  # so that nonces grow old
            where = chance.choice(both)
            status, body, headers = await where.post(form, proofs=[world.proof(nonce=nonce)])
            if status == 400:
                assert body["code"] == "dpop.nonce"
                repeated += 1
                last = both[1 - both.index(where)] if turn % 2 else chance.choice(both)
                again = world.proof(nonce=headers["DPoP-Nonce"])
                status, body, headers = await last.post(form, proofs=[again])
            assert status == 200, (turn, body)
            nonce = headers["DPoP-Nonce"]
        assert repeated < 30, "and seldom has to"


@asynccontextmanager
async def in_turn(world: World) -> AsyncIterator[list[str]]:
    """Two replicas behind what listens at the world's URL: each request gets to the other one.

    Gives the errors that the replicas answered with.
    """
    errors: list[str] = []
    turns = itertools.cycle((free_url(), free_url()))
    first, second = next(turns), next(turns)

    async def forward(request: web.Request) -> web.Response:
        where = next(turns)
        kept = {"Content-Type", "DPoP", "Authorization", "Accept"}
        headers = {name: value for name, value in request.headers.items() if name in kept}
        async with client.request(
            request.method, where + request.path_qs, data=await request.read(), headers=headers
        ) as answer:
            body = await answer.read()
            if answer.status >= 400:
                errors.append(json.loads(body)["code"])
            told = {"Content-Type", "DPoP-Nonce", "WWW-Authenticate"}
            return web.Response(
                status=answer.status,
                body=body,
                headers={name: value for name, value in answer.headers.items() if name in told},
            )

    app = web.Application()
    app.router.add_route("*", "/{path:.*}", forward)
    runner = web.AppRunner(app)
    async with (
        serving(world, first),
        serving(world, second),
        aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client,
    ):
        await runner.setup()
        try:
            await web.TCPSite(runner, "127.0.0.1", int(world.url.rpartition(":")[2])).start()
            yield errors
        finally:
            await runner.cleanup()


def identity_of(world: World, file: Path) -> FileIdentity:
    compact = world.workload()
    CANARIES.add(compact, name="token of a workload", allow=[file])
    file.write_text(compact)
    identity = FileIdentity(file)
    identity.refresh()
    return identity


@asynccontextmanager
async def exchanging(world: World, root: Path) -> AsyncIterator[ExchangeClient]:
    identity = await asyncio.to_thread(identity_of, world, root / "workload.token")
    client = ExchangeClient(world.url + "/token", identity, ProofKey(), ca_file=None, timeout=5.0)
    try:
        yield client
    finally:
        await client.close()


async def test_a_client_whose_requests_get_to_the_replicas_in_turn_never_fails(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = shared(tmp_path, postgres)
    world.overrides["limits"] = {"exchanges": {"rate": 1000, "burst": 1000}}
    key = CacheKey(
        tenant=IDP, subject=BOT, actors=(), audience=TICKETS, resource=TICKETS, details="",
        scopes="tickets:read", endpoint="", thumbprint="", policy_digest="", epoch=0,
    )  # fmt: skip
    async with in_turn(world) as errors, exchanging(world, tmp_path) as client:
        for _ in range(50):
            credential = await client.exchange(key, BearerInjector(), None)
            assert await client.is_active(credential)
        assert set(errors) == {"dpop.nonce"}
        identity = await asyncio.to_thread(identity_of, world, tmp_path / "receiver.token")
        feed = FeedClient(world.url, identity, ca_file=None, timeout=5.0)
        try:
            for _ in range(10):
                await feed.delete(await feed.create("in turn"))
        finally:
            await feed.close()
        assert set(errors) == {"dpop.nonce"}


async def test_one_goes_on_when_the_other_is_gone(tmp_path: Path, postgres: Postgres) -> None:
    world = shared(tmp_path, postgres)
    async with serving(world) as one:
        async with serving(world, free_url()) as other:
            _, issued, _ = await other.exchange(world.form(world.workload()))
        form = presented(world, issued["access_token"])
        assert (await one.exchange(form, path="/introspect"))[1]["active"] is True


async def test_a_replica_that_lags_catches_up_with_who_introspects(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = shared(tmp_path, postgres, limits={"exchanges": {"rate": 1, "burst": 20}})
    async with replicas(world) as (one, other):
        _, issued, _ = await one.exchange(world.form(world.workload()))
        form = presented(world, issued["access_token"])
        changes = other.broker.base.changes
        changes._nudge = lambda *_: None  # type: ignore[method-assign]
        followed = next(task for task in other.broker._tasks if task.get_name() == "changes")
        followed.cancel()
        await asyncio.wait([followed])
        assert (await one.exchange(form, path="/revoke"))[0] == 200
        assert (await introspected(other, form, ""))[1]["active"] is True
        # Longer than any that there is: nothing is looked for.
        assert (await introspected(other, form, "x" * 65))[1]["active"] is True
        told = (await one.broker.base.signals.newest(1))[0].jti
        status, body, _ = await introspected(other, form, told)
        assert (status, body) == (200, {"active": False})

        # Each id that nobody knows costs a query: there is a limit, and known ones are beside it.
        answers = [await introspected(other, form, f"made-up-{n}") for n in range(25)]
        assert {status for status, _, _ in answers} == {200, 429}
        assert answers[-1][1]["code"] == "service.rate_limited"
        assert (await introspected(other, form, told))[0] == 200


async def introspected(served: Served, form: dict[str, str], told: str) -> tuple[int, Any, Any]:
    """As a sidecar asks that has heard of the signal ``told``."""
    world = served.world
    proof = world.proof(nonce=await served.nonce(), path="/introspect")
    headers = [(SIGNAL_HEADER, told)] if told else []
    return await served.post(form, path="/introspect", proofs=[proof], headers=headers)

"""Nothing that proves a caller counts twice, in one run or over a restart."""

from __future__ import annotations

import asyncio
from pathlib import Path

from tests.integration.broker_support import PAYMENTS, World, serving
from tests.support.ports import free_url
from valetkey.contracts import dpop, jose


async def test_a_proof_counts_once(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.workload())
        proof = world.proof(nonce=await broker.nonce())
        assert (await broker.post(form, proofs=[proof]))[0] == 200
        status, body, headers = await broker.post(form, proofs=[proof])
        assert (status, body["error"], body["code"]) == (
            400,
            "invalid_dpop_proof",
            "dpop.replayed",
        )
        assert headers["DPoP-Nonce"]


async def test_a_proof_counts_once_also_at_the_same_moment(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.workload())
        proof = world.proof(nonce=await broker.nonce())
        answers = await asyncio.gather(*(broker.post(form, proofs=[proof]) for _ in range(20)))
        assert sorted(status for status, _, _ in answers) == [200] + [400] * 19


async def test_a_proof_from_before_a_restart_fails_on_its_nonce(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.workload())
        proof = world.proof(nonce=await broker.nonce())
        assert (await broker.post(form, proofs=[proof]))[0] == 200
    async with serving(world) as broker:
        status, body, _ = await broker.post(form, proofs=[proof])
        assert (status, body["code"]) == (400, "dpop.nonce")


async def test_a_nonce_is_good_for_two_windows_at_most(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    world.clock.now = world.clock.now // 60 * 60
    async with serving(world) as broker:
        form = world.form(world.workload())
        nonce = await broker.nonce()
        world.clock.advance(119)
        assert (await broker.post(form, proofs=[world.proof(nonce=nonce)]))[0] == 200
        world.clock.advance(1)
        status, body, headers = await broker.post(form, proofs=[world.proof(nonce=nonce)])
        assert (status, body["error"]) == (400, "use_dpop_nonce")
        fresh = world.proof(nonce=headers["DPoP-Nonce"])
        assert (await broker.post(form, proofs=[fresh]))[0] == 200


async def test_an_assertion_counts_once(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.assertion())
        assert (await broker.post(form))[0] == 200
        status, body, _ = await broker.post(form)
        assert (status, body["error"], body["code"]) == (401, "invalid_client", "actor.replayed")


async def test_an_assertion_counts_once_also_at_the_same_moment(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.assertion())
        answers = await asyncio.gather(*(broker.post(form) for _ in range(10)))
        assert sorted(status for status, _, _ in answers) == [200] + [401] * 9


async def test_an_assertion_counts_once_over_a_restart(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    form = world.form(world.assertion())
    async with serving(world) as broker:
        assert (await broker.post(form))[0] == 200
    async with serving(world) as broker:
        status, body, _ = await broker.post(form)
        assert (status, body["code"]) == (401, "actor.replayed")


async def test_a_used_assertion_is_remembered_as_long_as_it_could_count(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.assertion())
        assert (await broker.post(form))[0] == 200
        world.clock.advance(60 + jose.LEEWAY - 2)
        await broker.broker.sweep()
        status, body, _ = await broker.post(form)
        assert (status, body["code"]) == (401, "actor.replayed")
        world.clock.advance(3)
        await broker.broker.sweep()
        status, body, _ = await broker.post(form)
        assert (status, body["code"]) == (401, "actor.invalid")


async def test_a_demanded_nonce_does_not_use_up_the_assertion(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        form = world.form(world.assertion(), audience=PAYMENTS, scope="payments:read")
        status, body, headers = await broker.post(form, proofs=[world.proof()])
        assert (status, body["error"]) == (400, "use_dpop_nonce")
        proof = world.proof(nonce=headers["DPoP-Nonce"])
        status, body, _ = await broker.post(form, proofs=[proof])
        assert (status, body["token_type"]) == (200, "DPoP")


async def test_a_full_memory_refuses_instead_of_forgetting(tmp_path: Path) -> None:
    world = World(tmp_path, free_url(), overrides={"limits": {"replay_proofs": 2}})
    async with serving(world) as broker:
        form = world.form(world.workload())
        first = world.proof(nonce=await broker.nonce())
        assert (await broker.post(form, proofs=[first]))[0] == 200
        assert (await broker.exchange(form))[0] == 200
        status, body, headers = await broker.exchange(form)
        assert (status, body["error"], body["code"]) == (
            503,
            "temporarily_unavailable",
            "service.unavailable",
        )
        assert headers["Retry-After"] == "5"
        assert (await broker.post(form, proofs=[first]))[1]["code"] == "dpop.replayed"
        world.clock.advance(dpop.PROOF_LIFETIME + 1)
        assert (await broker.exchange(form))[0] == 200


async def test_strangers_cannot_fill_the_memory(tmp_path: Path) -> None:
    """A proof is only remembered for a client that authenticated."""
    world = World(tmp_path, free_url(), overrides={"limits": {"replay_proofs": 1}})
    async with serving(world) as broker:
        for _ in range(3):
            status, _, _ = await broker.exchange(world.form("a.b.c"))
            assert status == 401
        assert (await broker.exchange(world.form(world.workload())))[0] == 200

"""The keys of trusted issuers: rotated, withdrawn, unreadable."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.integration.broker_support import IDP, Issuer, World, serving
from tests.support.ports import free_url
from valetkey.contracts import keys as trusted
from valetkey.contracts.issuer import REMEMBERED


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys are due for a look at once: the waiting times are monotonic and real."""
    monkeypatch.setattr(trusted, "REFRESH_AFTER", 0.0)
    monkeypatch.setattr(trusted, "REFETCH_COOLDOWN", 0.0)


async def test_a_withdrawn_key_stops_counting(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    world.clock.now = world.clock.now // 60 * 60  # the nonce is good for the window after, too
    async with serving(world) as broker:
        old = world.workload()
        assert (await broker.exchange(world.form(old)))[0] == 200
        nonce = await broker.nonce()
        world.idp = Issuer(IDP, kid="k2")
        (tmp_path / "idp.json").write_text(json.dumps(world.idp.jwks()))
        world.clock.advance(REMEMBERED + 1)
        # No token with an unknown key has come yet: only the set's age makes it be looked at.
        status, body, _ = await broker.post(world.form(old), proofs=[world.proof(nonce=nonce)])
        assert (status, body["code"]) == (401, "actor.invalid")
        status, body, _ = await broker.exchange(world.form(world.workload()))
        assert status == 200, body


@pytest.mark.parametrize("content", ["", "{}", '{"keys": []}', "not json"])
async def test_an_unusable_set_keeps_the_old_one(tmp_path: Path, content: str) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        assert (await broker.exchange(world.form(world.workload())))[0] == 200
        (tmp_path / "idp.json").write_text(content)
        world.clock.advance(REMEMBERED + 1)
        assert (await broker.exchange(world.form(world.workload())))[0] == 200


async def test_no_keys_from_the_start_is_a_no(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        (tmp_path / "idp.json").unlink()
        status, body, _ = await broker.post(world.form(world.workload()), proofs=[world.proof()])
        assert (status, body["code"]) == (401, "actor.invalid")

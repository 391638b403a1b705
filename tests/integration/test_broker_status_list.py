"""Status lists: read as a verifier reads them, changed by all that ends a token."""

from __future__ import annotations

import asyncio
import itertools
import zlib
from pathlib import Path
from typing import Any

import jwt
import pytest

from tests.integration.broker_support import (
    FILES,
    TICKETS,
    Served,
    World,
    claims_of,
    details,
    serving,
)
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.api.status import LIFETIME, TTL
from valetkey.broker.store.database import StoreError
from valetkey.broker.store.statuses import Statuses
from valetkey.contracts import oauth
from valetkey.contracts.jose import b64url_decode


def listed(tmp_path: Path, **overrides: Any) -> World:
    world = World(tmp_path, free_url(), overrides=overrides)
    world.overrides["targets"] = {
        **world.document()["targets"],
        "tickets": {"audience": TICKETS, "credential": "bearer", "status_list": True},
    }
    return world


async def issued(served: Served) -> tuple[str, str, int]:
    """A token, and where its status is: path and index."""
    status, body, _ = await served.exchange(served.world.form(served.world.workload()))
    assert status == 200, body
    place = claims_of(body["access_token"])["status"]["status_list"]
    assert place["uri"].startswith(served.world.url + "/status/")
    return body["access_token"], place["uri"].removeprefix(served.world.url), place["idx"]


async def read(served: Served, path: str) -> tuple[dict[str, Any], bytes]:
    """The list as a verifier gets it: signature, type, times and subject checked (§8.3)."""
    status, raw, headers = await served.get(path)
    assert status == 200, raw
    assert headers["Content-Type"].startswith("application/statuslist+jwt")
    assert headers["Cache-Control"] == f"max-age={TTL}"
    keys = jwt.PyJWKSet.from_json((await served.get("/jwks"))[1].decode())
    header = jwt.get_unverified_header(raw.decode())
    assert header["typ"] == "statuslist+jwt"
    claims = jwt.decode(
        raw.decode(), keys[header["kid"]].key, ["ES256"], options={"verify_exp": False}
    )
    assert claims["sub"] == served.world.url + path
    assert (claims["ttl"], claims["exp"] - claims["iat"]) == (TTL, LIFETIME)
    assert claims["status_list"]["bits"] == 1
    return claims, zlib.decompress(b64url_decode(claims["status_list"]["lst"]))


async def is_invalid(served: Served, path: str, index: int) -> bool:
    _, octets = await read(served, path)
    return bool(octets[index >> 3] >> (index & 7) & 1)


async def soon(served: Served, path: str, index: int) -> None:
    """A list may just have been made, and then stays for a second."""

    async def invalid() -> bool:
        return await is_invalid(served, path, index)

    await until(invalid, "the bit is set")


async def revoke(served: Served, token: str) -> None:
    form = {
        "token": token,
        "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
        "client_assertion": served.world.workload(),
    }
    assert (await served.exchange(form, path="/revoke"))[0] == 200


async def test_a_revoked_token_s_bit_is_set_and_no_other(tmp_path: Path) -> None:
    async with serving(listed(tmp_path)) as served:
        one, path, index = await issued(served)
        _, other_path, other = await issued(served)
        assert (path, index != other) == (other_path, True)
        assert not any((await read(served, path))[1])
        await revoke(served, one)
        await soon(served, path, index)
        assert not await is_invalid(served, path, other)


async def test_whatever_ends_a_token_sets_its_bit(tmp_path: Path) -> None:
    """An epoch, a hash, a grant: the same facts as introspection's."""
    async with serving(listed(tmp_path)) as served:
        base = served.broker.base
        for end in ("epoch", "hash"):
            token, path, index = await issued(served)
            assert not await is_invalid(served, path, index)
            claims = claims_of(token)
            async with base.database.write() as connection:
                if end == "epoch":
                    await base.epochs.bump(
                        connection, claims["client_iss"], claims["sub"],
                        at=served.world.clock(), reason="test", attest=False,
                    )  # fmt: skip
                else:
                    from valetkey.broker.store.revocations import token_value

                    await base.revocations.end(
                        connection, "hash", token_value(token), until=served.world.clock() + 3600
                    )
            await base.changes.catch_up()
            await soon(served, path, index)
            served.world.clock.advance(1)


async def test_a_list_of_one_replica_is_served_by_the_other(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = listed(tmp_path, database=postgres.database())
    async with serving(world) as one, serving(world, free_url()) as other:
        token, path, index = await issued(one)
        _, other_path, _ = await issued(other)
        assert path != other_path
        assert not await is_invalid(other, path, index)
        await revoke(other, token)
        await soon(one, path, index)
        await soon(other, path, index)


async def test_places_tell_nothing_of_time(tmp_path: Path) -> None:
    async with serving(listed(tmp_path)) as served:
        statuses = Statuses(
            served.broker.base.database, clock=served.world.clock, timer=served.world.clock
        )
        places = [statuses.place() for _ in range(5000)]
        assert len(set(places)) == 5000
        first = [place.index for place in places[:4096]]
        assert len({place.list for place in places}) == 2
        assert first != sorted(first)
        rising = sum(a < b for a, b in itertools.pairwise(first))
        assert 1800 < rising < 2300
        served.world.clock.advance(901)
        assert statuses.place().list not in {place.list for place in places}


async def test_who_does_not_ask_has_none_and_what_is_unknown_is_404(tmp_path: Path) -> None:
    async with serving(listed(tmp_path)) as served:
        form = served.world.form(
            served.world.workload(), audience=FILES, scope="files:read",
            authorization_details=details("/files/1", "GET", exact=True),
        )  # fmt: skip
        status, body, _ = await served.exchange(form)
        assert status == 200, body
        assert "status" not in claims_of(body["access_token"])
        for path in ("/status/AAAAAAAAAAAAAAAA", "/status/x", "/status/..%2f..%2fjwks"):
            assert (await served.get(path))[0] == 404
        _, path, _ = await issued(served)
        served.world.clock.advance(7200)
        await served.broker.sweep()
        assert (await served.get(path))[0] == 404


async def test_a_place_that_is_not_kept_is_not_given_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_args: Any) -> None:
        raise StoreError(OSError("no database"))

    monkeypatch.setattr(Statuses, "keep", fails)
    async with serving(listed(tmp_path)) as served:
        status, body, _ = await served.exchange(served.world.form(served.world.workload()))
        assert (status, body["code"]) == (503, "service.unavailable")


async def test_ids_that_are_made_up_take_two_connections_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest waits, more than so many are turned away, and a miss is remembered for a moment."""
    entries, asked, running, most = Statuses.entries, [], 0, 0

    async def counted(self: Statuses, list_: str) -> Any:
        nonlocal running, most
        asked.append(list_)
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.001)
            return await entries(self, list_)
        finally:
            running -= 1

    monkeypatch.setattr(Statuses, "entries", counted)
    async with serving(listed(tmp_path)) as served:
        made_up = [f"/status/{number:016}" for number in range(200)]
        statuses = [answer[0] for answer in await asyncio.gather(*map(served.get, made_up))]
        assert most <= 2
        assert set(statuses) == {404, 503}
        assert statuses.count(404) == len(asked) >= 64
        last = asked[-1]
        assert (await served.get(f"/status/{last}"))[0] == 404
        assert asked.count(last) == 1
        _, path, _ = await issued(served)
        await read(served, path)

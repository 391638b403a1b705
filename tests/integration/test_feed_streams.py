"""Managing streams as SSF 1.0 §8.1 says: by sidecars, by receivers of settings, and by nobody else."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.integration.broker_support import (
    BOT,
    IDP,
    READER,
    Served,
    World,
    serving,
)
from tests.integration.feed_support import Receiver, ended, publish
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.contracts import signals
from valetkey.contracts.signals import Signal, Verification, fleet_audience

POLL = "urn:ietf:rfc:8936"
SIEM = "spiffe://demo.example/ns/security/sa/siem"
AUDIENCE = "https://siem.example"
RECEIVERS = [{"issuer": IDP, "subject": SIEM, "audience": AUDIENCE, "bearer": True}]


@pytest.fixture
async def served(tmp_path):
    async with serving(
        World(tmp_path, free_url(), overrides={"feed": {"receivers": RECEIVERS}})
    ) as broker:
        yield broker


def sidecar(served: Served) -> Receiver:
    return Receiver(served.world, served)


def siem(served: Served) -> Receiver:
    """A receiver as they are: a bearer token, no proof."""
    return Receiver(served.world, served, subject=SIEM, key=None)


async def test_the_metadata_name_every_endpoint(served: Served) -> None:
    status, body, _ = await served.get("/.well-known/ssf-configuration")
    document = json.loads(body)
    url = served.world.url
    assert status == 200
    assert document["issuer"] == url  # SSF 1.0 §7.2.3: what the receiver built the URL from
    assert document["spec_version"] == "1_0"
    assert document["jwks_uri"] == f"{url}/jwks"
    assert document["delivery_methods_supported"] == ["urn:ietf:rfc:8935", POLL]
    assert document["default_subjects"] == "ALL"
    for name in ("configuration", "status", "add_subject", "remove_subject", "verification"):
        endpoint = document[f"{name}_endpoint"]
        async with served.client.post(endpoint, json={}) as response:
            assert response.status == 401, endpoint


async def test_a_stream_is_created_read_and_deleted(served: Served) -> None:
    receiver = sidecar(served)
    await receiver.begin(description="agent-0", delivery={"method": POLL})
    url = served.world.url
    assert receiver.stream == {
        "stream_id": receiver.id,
        "iss": url,
        "aud": fleet_audience(url),
        "delivery": {"method": POLL, "endpoint_url": f"{url}/ssf/poll/{receiver.id}"},
        "events_supported": list(signals.EVENTS),
        "events_requested": list(signals.EVENTS),
        "events_delivered": list(signals.EVENTS),
        "description": "agent-0",
        "min_verification_interval": 10,
        "inactivity_timeout": 7200,
    }
    where = f"/ssf/streams?stream_id={receiver.id}"
    assert await receiver.ask("GET", where) == (200, receiver.stream)
    assert await receiver.ask("GET", "/ssf/streams") == (200, [receiver.stream])
    assert await receiver.ask("DELETE", where) == (204, None)
    assert (await receiver.ask("GET", where))[0] == 404
    assert await receiver.ask("GET", "/ssf/streams") == (200, [])
    assert (await receiver.ask("DELETE", where))[0] == 404


async def test_change_takes_what_is_given_and_replace_the_whole(served: Served) -> None:
    receiver = siem(served)
    wanted = [signals.SESSION_REVOKED, "https://example.com/unknown"]
    await receiver.begin(description="one", events_requested=wanted)
    assert receiver.stream["events_requested"] == wanted
    assert receiver.stream["events_delivered"] == [signals.SESSION_REVOKED]
    status, changed = await receiver.ask(
        "PATCH", "/ssf/streams",
        {"stream_id": receiver.id, "description": "two", "iss": served.world.url, "aud": AUDIENCE},
    )  # fmt: skip
    assert (status, changed["description"], changed["events_requested"]) == (200, "two", wanted)
    status, changed = await receiver.ask("PUT", "/ssf/streams", {"stream_id": receiver.id})
    assert (status, changed["description"]) == (200, "")
    assert changed["events_requested"] == list(signals.EVENTS)


async def test_a_receiver_gets_what_it_asked_for_with_the_reason(served: Served) -> None:
    receiver = siem(served)
    await receiver.begin(events_requested=[signals.SESSION_REVOKED])
    revoked = Signal(kind="subject", value=BOT, issuer=IDP, at=1, epoch=2, reason="exposed")
    await publish(served, Signal(kind="token", value="j", at=1), revoked)
    answer = await receiver.poll()
    assert await receiver.events(answer, audience=AUDIENCE) == [revoked]


async def test_subjects_are_taken_out_and_back_in(served: Served) -> None:
    receiver = siem(served)
    await receiver.begin()
    subject = {"format": "iss_sub", "iss": IDP, "sub": BOT}
    other_order = {"sub": BOT, "iss": IDP, "format": "iss_sub"}
    asked = {"stream_id": receiver.id, "subject": subject}
    signal = Signal(kind="subject", value=BOT, issuer=IDP, at=1, epoch=2)
    assert await receiver.ask("POST", "/ssf/subjects/remove", asked) == (204, None)
    await publish(served, signal)
    assert (await receiver.poll())["sets"] == {}
    status, _ = await receiver.ask(
        "POST", "/ssf/subjects/add", {**asked, "subject": other_order, "verified": True}
    )
    assert status == 200
    await publish(served, signal)
    assert len((await receiver.poll())["sets"]) == 1


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_changes_at_the_same_time_are_all_kept(
    tmp_path: Path, request: pytest.FixtureRequest, database: str
) -> None:
    """An exclusion that came back, or one that went, would be heard of by nobody."""
    world = World(tmp_path, free_url(), overrides={"feed": {"receivers": RECEIVERS}})
    if database == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        world.overrides["database"] = postgres.database()
    names = [f"user-{n}" for n in range(20)]

    def about(name: str) -> dict[str, Any]:
        subject = {"format": "iss_sub", "iss": IDP, "sub": name}
        return {"stream_id": receiver.id, "subject": subject}

    async def told() -> set[str]:
        users = [Signal(kind="subject", value=one, issuer=IDP, at=1, epoch=2) for one in names]
        await publish(served, *users)
        found = await receiver.events(await receiver.poll(), audience=AUDIENCE)
        return {one.value for one in found if isinstance(one, Signal)}

    async with serving(world) as served:
        receiver = siem(served)
        await receiver.begin()
        changed = {"stream_id": receiver.id, "description": "two"}
        done = await asyncio.gather(
            *(receiver.ask("POST", "/ssf/subjects/remove", about(name)) for name in names),
            receiver.ask("PATCH", "/ssf/streams", changed),
        )
        assert [status for status, _ in done] == [204] * 20 + [200]
        assert (await receiver.ask("GET", "/ssf/streams"))[1][0]["description"] == "two"
        assert await told() == set()
        done = await asyncio.gather(
            *(receiver.ask("POST", "/ssf/subjects/add", about(name)) for name in names[:10]),
            receiver.ask("PATCH", "/ssf/streams", {**changed, "description": "three"}),
        )
        assert [status for status, _ in done] == [200] * 11
        assert await told() == set(names[:10])


async def test_a_paused_stream_waits_and_a_disabled_one_loses(served: Served) -> None:
    receiver = siem(served)
    await receiver.begin()
    where = f"/ssf/status?stream_id={receiver.id}"

    async def set_status(status: str) -> None:
        asked = {"stream_id": receiver.id, "status": status, "reason": "a test"}
        assert await receiver.ask("POST", "/ssf/status", asked) == (200, asked)

    assert await receiver.ask("GET", where) == (
        200, {"stream_id": receiver.id, "status": "enabled"},
    )  # fmt: skip
    await set_status("paused")
    await publish(served, ended("t-1"))
    assert (await receiver.poll())["sets"] == {}
    await set_status("enabled")
    answer = await receiver.poll()
    assert [e.value for e in await receiver.events(answer, AUDIENCE)] == ["t-1"]
    await receiver.poll(ack=list(answer["sets"]))
    await set_status("disabled")
    await publish(served, ended("t-2"))
    await set_status("enabled")
    await publish(served, ended("t-3"))
    assert [e.value for e in await receiver.events(await receiver.poll(), AUDIENCE)] == ["t-3"]


async def test_verification_comes_by_the_stream_and_not_too_often(served: Served) -> None:
    receiver, other = sidecar(served), sidecar(served)
    for one in (receiver, other):
        await one.begin()
    asked = {"stream_id": receiver.id, "state": "VGhpcyBpcw"}
    assert await receiver.ask("POST", "/ssf/verify", asked) == (204, None)
    assert await receiver.take(wait=5) == [Verification(receiver.id, "VGhpcyBpcw")]
    assert (await other.poll())["sets"] == {}
    status, body = await receiver.ask("POST", "/ssf/verify", asked)
    assert (status, body["code"]) == (429, "service.rate_limited")
    served.world.clock.advance(11)
    assert (await receiver.ask("POST", "/ssf/verify", asked))[0] == 204


async def test_an_identity_has_so_many_streams(tmp_path) -> None:
    async with serving(World(tmp_path, free_url(), overrides={"feed": {"streams": 1}})) as served:
        await sidecar(served).begin()
        status, body = await sidecar(served).ask("POST", "/ssf/streams", {})
        assert (status, body["code"]) == (409, "feed.too_many_streams")
        await Receiver(served.world, served, subject=READER).begin()


PUSH = {"method": "urn:ietf:rfc:8935", "endpoint_url": "https://attacker.example/"}
REFUSED_CREATE = {
    "a stream id of its own": ({"stream_id": "mine"}, 400),
    "another issuer": ({"iss": "https://other.example"}, 400),
    "another audience": ({"aud": "https://other.example"}, 400),
    "another method": ({"delivery": {"method": "https://example.com/smoke"}}, 400),
    "no method": ({"delivery": {}}, 400),
    "a URL to poll": ({"delivery": {"method": POLL, "endpoint_url": "https://a.example/"}}, 400),
    "a member of delivery that we do not know": ({"delivery": {"method": POLL, "more": 1}}, 400),
    "push": ({"delivery": PUSH}, 403),
    "push to the metadata service": (
        {"delivery": {**PUSH, "endpoint_url": "http://169.254.169.254/latest/"}}, 403),
    "fewer events than a sidecar needs": ({"events_requested": [signals.SESSION_REVOKED]}, 400),
    "events that are no list": ({"events_requested": "all"}, 400),
    "a description without end": ({"description": "x" * 300}, 400),
    "a list": ([], 400),
}  # fmt: skip


@pytest.mark.parametrize(("wanted", "status"), REFUSED_CREATE.values(), ids=REFUSED_CREATE)
async def test_streams_that_a_sidecar_can_not_have(served: Served, wanted, status: int) -> None:
    receiver = sidecar(served)
    got, body = await receiver.ask("POST", "/ssf/streams", wanted)
    assert got == status, body
    assert await receiver.ask("GET", "/ssf/streams") == (200, [])


async def test_a_receiver_pushes_to_what_settings_list_alone(served: Served) -> None:
    receiver = siem(served)
    status, body = await receiver.ask("POST", "/ssf/streams", {"delivery": PUSH})
    assert (status, body["code"]) == (403, "service.forbidden")


async def test_a_sidecar_can_not_make_itself_hear_less(served: Served) -> None:
    receiver = sidecar(served)
    await receiver.begin()
    subject = {"format": "iss_sub", "iss": IDP, "sub": BOT}
    for path, asked in (
        ("/ssf/subjects/remove", {"subject": subject}),
        ("/ssf/subjects/add", {"subject": subject}),
        ("/ssf/status", {"status": "disabled"}),
    ):
        status, body = await receiver.ask("POST", path, {"stream_id": receiver.id, **asked})
        assert (status, body["code"]) == (403, "service.forbidden"), path


@pytest.mark.parametrize(
    ("path", "asked"),
    [
        ("/ssf/status", {"status": "asleep"}),
        ("/ssf/status", {}),
        ("/ssf/subjects/remove", {"subject": {"sub": BOT}}),
        ("/ssf/subjects/remove", {"subject": "bot"}),
        ("/ssf/verify", {"state": "x" * 2000}),
        ("/ssf/verify", {"state": 1}),
    ],
)
async def test_what_can_not_be_understood(served: Served, path: str, asked) -> None:
    receiver = siem(served)
    await receiver.begin()
    status, body = await receiver.ask("POST", path, {"stream_id": receiver.id, **asked})
    assert (status, body["code"]) == (400, "service.bad_request")


async def test_a_stream_of_others_is_not_there(served: Served) -> None:
    owner = sidecar(served)
    await owner.begin()
    stranger = siem(served)
    for method, path, asked in (
        ("GET", f"/ssf/streams?stream_id={owner.id}", None),
        ("PATCH", "/ssf/streams", {"stream_id": owner.id}),
        ("PUT", "/ssf/streams", {"stream_id": owner.id}),
        ("DELETE", f"/ssf/streams?stream_id={owner.id}", None),
        ("GET", f"/ssf/status?stream_id={owner.id}", None),
        ("POST", "/ssf/status", {"stream_id": owner.id, "status": "disabled"}),
        ("POST", "/ssf/subjects/remove", {"stream_id": owner.id, "subject": {"format": "opaque"}}),
        ("POST", "/ssf/verify", {"stream_id": owner.id}),
        ("POST", f"/ssf/poll/{owner.id}", {}),
    ):
        status, body = await stranger.ask(method, path, asked)
        assert (status, body["code"]) == (404, "feed.no_stream"), (method, path)
    assert (await owner.ask("GET", "/ssf/streams"))[1] == [owner.stream]


@pytest.mark.parametrize("path", ["/ssf/streams", "/ssf/status", "/ssf/verify"])
async def test_bodies_of_another_type(served: Served, path: str) -> None:
    receiver = siem(served)
    async with served.client.post(
        served.where + path,
        data=b"{}",
        headers={
            "Authorization": f"Bearer {served.world.workload(SIEM)}",
            "Content-Type": "text/plain",
        },
    ) as response:
        assert response.status == 415
    assert await receiver.ask("GET", "/ssf/streams") == (200, [])

from __future__ import annotations

import io
import re

import pytest

from tests.support.chain import Chain, batch
from tests.support.collector import AUDIENCE


def chain(calls: int = 3) -> Chain:
    made = Chain()
    made.boot_event()
    return made.calls(calls)


async def post(client, body, headers):
    async with client.post("/v1/events", data=io.BytesIO(body), headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def metric(client, name):
    async with client.get("/metrics") as response:
        text = await response.text()
    found = re.search(rf"^{re.escape(name)} (\S+)$", text, re.MULTILINE)
    assert found, name
    return float(found[1])


async def test_a_batch_is_acknowledged(client, bench):
    made = chain()
    assert await post(client, batch(made.events), bench.sidecar()) == (
        200,
        {"boot": made.boot, "acked": 7},
    )
    assert await metric(client, 'valetkey_collector_events_total{result="stored"}') == 7
    assert await metric(client, "valetkey_collector_batches_seconds_count") == 1


async def test_copies_are_counted(client, bench):
    for _ in range(2):
        await post(client, batch(chain().events), bench.sidecar())
    assert await metric(client, 'valetkey_collector_events_total{result="duplicate"}') == 7


async def test_gaps_and_breaks_are_counted(client, bench):
    made = chain()
    headers = bench.sidecar()
    assert (await post(client, batch(made.events[4:]), headers))[1]["acked"] == 0
    assert await metric(client, "valetkey_collector_gaps") == 1
    assert (await post(client, batch(made.events), headers))[1]["acked"] == 7
    assert await metric(client, "valetkey_collector_gaps") == 0
    other = Chain()
    other.heartbeat()
    other.calls(4)
    assert (await post(client, batch(other.events[7:]), headers))[1]["acked"] == 9
    assert await metric(client, "valetkey_collector_breaks") == 1


async def test_a_conflict_is_refused_counted_and_kept_out(client, bench):
    made = chain()
    headers = bench.sidecar()
    await post(client, batch(made.events[:5]), headers)
    forged = made.events[3].replace(b"tickets:read", b"tickets:rEad")
    status, answer = await post(client, batch([forged, *made.events[4:]]), headers)
    assert (status, answer["code"]) == (409, "audit.conflict")
    status, answer = await post(
        client, batch([made.events[5], made.events[5][:-1] + b" }"]), headers
    )
    assert (status, answer["code"]) == (409, "audit.conflict")
    assert await metric(client, "valetkey_collector_conflicts_total") == 2
    assert await metric(client, 'valetkey_collector_events_total{result="stored"}') == 5
    async with client.get("/v1/gaps", headers=bench.reader()) as response:
        assert [c["seq"] for c in (await response.json())["conflicts"]] == [6, 4]


async def test_another_identity(client, bench):
    made = chain()
    await post(client, batch(made.events[:3]), bench.sidecar())
    status, answer = await post(client, batch(made.events[3:]), bench.sidecar("mallory"))
    assert (status, answer["code"]) == (403, "audit.source_taken")
    assert await metric(client, 'valetkey_collector_events_total{result="refused"}') == 4


async def test_a_stranger_that_contradicts_itself_is_a_stranger_first(client, bench):
    made = chain()
    await post(client, batch(made.events[:3]), bench.sidecar())
    body = batch([made.events[2], made.events[2][:-1] + b" }"])
    status, answer = await post(client, body, bench.sidecar("mallory"))
    assert (status, answer["code"]) == (403, "audit.source_taken")
    assert await metric(client, 'valetkey_collector_events_total{result="refused"}') == 1
    assert await metric(client, "valetkey_collector_conflicts_total") == 0


REFUSED = {
    "no token": (
        lambda b: b.sidecar() | {"Authorization": ""},
        b"[]",
        401,
        "service.unauthenticated",
    ),
    "a person": (
        lambda b: b.sidecar() | {"Authorization": "Bearer " + b.people.mint("x", AUDIENCE)},
        b"[]",
        403,
        "service.forbidden",
    ),
    "another media type": (
        lambda b: b.sidecar() | {"Content-Type": "application/json"},
        b"[]",
        415,
        "service.media_type",
    ),
    "no batch": (lambda b: b.sidecar(), b"[]", 400, "audit.batch_invalid"),
    "too large": (lambda b: b.sidecar(), b" " * (8 * 2**20 + 1), 413, "service.too_large"),
}


@pytest.mark.parametrize(("headers", "body", "status", "code"), REFUSED.values(), ids=REFUSED)
async def test_refused(client, bench, headers, body, status, code):
    found, answer = await post(client, body, headers(bench))
    assert (found, answer["code"]) == (status, code)


async def test_a_batch_in_the_wrong_place(client, bench):
    async with client.put("/v1/events", headers=bench.sidecar()) as response:
        assert response.status == 405
        assert (await response.json(content_type=None))["code"] == "service.method_not_allowed"
    async with client.post("/v1/event", headers=bench.sidecar()) as response:
        assert (await response.json(content_type=None))["code"] == "service.not_found"

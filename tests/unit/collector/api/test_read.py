from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import make_url, text

from tests.support.chain import WORKLOAD, Chain, batch, decision_data, outcome_data
from tests.support.collector import ON_BOTH
from valetkey.collector.store.open import open_database
from valetkey.contracts import events
from valetkey.sql.settings import PostgresSettings


@pytest.fixture
def chain():
    made = Chain()
    made.boot_event()
    made.calls(2)
    made.outcome(
        made.decision(
            action_id=2,
            actor={"app_uid": "other"},
            policy={"uid": "tickets-delete"},
            api={"service": {"name": "payments"}},
            unmapped={"code": "grant.missing"},
        )
    )
    made.decision()
    return made


@pytest.fixture
async def get(client, bench, chain):
    """Asks as a reader after the chain was delivered."""
    headers = bench.sidecar()
    async with client.post("/v1/events", data=batch(chain.events), headers=headers) as response:
        assert response.status == 200
    reader = bench.reader()

    async def ask(path, status=200, headers=reader):
        async with client.get(path, headers=headers) as response:
            assert response.status == status, await response.text()
            return await response.json(content_type=None)

    return ask


@ON_BOTH
async def test_paging_by_cursor_gives_everything_once(get, chain):
    seen, after = [], 0
    while (page := await get(f"/v1/events?limit=3&after={after}"))["events"]:
        seen += [item["event"]["id"] for item in page["events"]]
        after = page["next"]
    assert seen == [events.event_id(chain.boot, n) for n in range(1, 9)]
    assert (await get(f"/v1/events?after={after}"))["next"] == after


@ON_BOTH
async def test_raw_gives_the_exact_text(get, chain):
    page = await get("/v1/events?raw=1")
    assert [item["raw"].encode() for item in page["events"]] == chain.events
    assert [item["hash"] for item in page["events"]] == [events.digest(e) for e in chain.events]
    assert {(item["source"], item["boot"]) for item in page["events"]} == {
        (chain.source, chain.boot)
    }


@ON_BOTH
async def test_the_last(get):
    page = await get("/v1/events?last=2")
    assert [item["seq"] for item in page["events"]] == [7, 8]


@ON_BOTH
async def test_the_chain_of_a_boot(get, chain):
    page = await get(
        f"/v1/events?order=sequence&source={chain.source}&boot={chain.boot}&after=5&limit=2"
    )
    assert [item["seq"] for item in page["events"]] == [6, 7]
    assert page["next"] == 7


FILTERS = {
    "type=valetkey.call.outcome.v1": [3, 5, 7],
    "decision=denied": [6],
    "decision=allowed": [2, 4, 8],
    "code=grant.missing": [6],
    "workload=other": [6],
    f"workload={WORKLOAD}&decision=allowed": [2, 4, 8],
    "route=tickets-delete": [6],
    "target=payments": [6],
    "source=urn:valetkey:sidecar:agent-0&type=valetkey.sidecar.boot.v1": [1],
    "source=urn:valetkey:sidecar:agent-1": [],
    "boot=00000000000000a1&decision=denied": [6],
    "boot=00000000000000a2": [],
}


@ON_BOTH
@pytest.mark.parametrize(("query", "found"), FILTERS.items())
async def test_filters(get, query, found):
    assert [item["seq"] for item in (await get(f"/v1/events?{query}"))["events"]] == found


NARROW = {
    "jti=tok-1": [2, 3, 4, 5, 8],
    "jti=tok-1&type=valetkey.call.decision.v1": [2, 4, 8],
    "jti=tok-2": [9, 10],
    "jti=tok-2&type=valetkey.call.decision.v1": [9],
    "jti=tok-3": [9, 10],
    "txn=txn-3": [9, 10],
    "txn=txn-1&decision=denied": [],
    "approval=apr_1": [11],
    "approval=apr_2": [],
    "since=2026-11-01T00:00:00Z": [*range(1, 9), 11],
    "since=2026-11-01T00:00:00.001Z": [11],
    "since=2026-11-02T01:00:00%2B01:00": [11],
    "until=2026-11-01T00:00:00Z": [9, 10],
    "since=2026-10-01T00:00:00Z&until=2026-11-01T00:00:00Z": [9, 10],
    "since=2026-10-01T00:00:00Z&until=2026-11-02T00:00:00Z&jti=tok-1": [2, 3, 4, 5, 8],
    "since=2026-12-01T00:00:00Z": [],
}


@pytest.fixture
async def ask(get, client, bench, chain):
    """As `get`, with events of other tokens and times on record, too."""
    # Kept by the sidecar for a while, and gone on with another token.
    late = {"time": "2026-10-31T23:59:59.999Z"}
    decision = chain.add(events.TYPE_DECISION, decision_data(unmapped={"jti": "tok-2"}), **late)
    sent = [{"jti": "tok-2", "txn": "txn-2"}, {"jti": "tok-3", "txn": "txn-3"}]
    answer = {"decision": decision, "credentials": sent}
    chain.add(events.TYPE_OUTCOME, outcome_data(decision, unmapped=answer), **late)
    refused = decision_data(action_id=1, unmapped={"approval": "apr_1"})
    chain.add(events.TYPE_DECISION, refused, time="2026-11-02T00:00:00.000Z")
    headers = bench.sidecar()
    async with client.post("/v1/events", data=batch(chain.events[8:]), headers=headers) as response:
        assert response.status == 200
    return get


@ON_BOTH
@pytest.mark.parametrize(("query", "found"), NARROW.items())
async def test_what_a_token_did_and_when(ask, query, found):
    assert [item["seq"] for item in (await ask(f"/v1/events?{query}"))["events"]] == found
    newest = (await ask(f"/v1/events?{query}&last=2"))["events"]
    assert [item["seq"] for item in newest] == found[-2:]


@ON_BOTH
async def test_outcomes_beside_their_decisions(get, chain):
    page = await get("/v1/events?type=valetkey.call.decision.v1&outcomes=1")
    answers = [item.get("outcome", {}).get("id") for item in page["events"]]
    assert answers == [*(events.event_id(chain.boot, n) for n in (3, 5, 7)), None]
    page = await get("/v1/events?type=valetkey.call.decision.v1&outcomes=1&raw=1&limit=1")
    assert page["events"][0]["outcome"].encode() == chain.events[2]


@ON_BOTH
async def test_sources(get, chain):
    (boot,) = (await get("/v1/sources"))["sources"]
    assert boot["source"] == chain.source
    assert (boot["subject"], boot["boot"]) == (WORKLOAD, chain.boot)
    assert (boot["count"], boot["acked"], boot["head_seq"]) == (8, 8, 8)
    assert boot["head_hash"] == chain.head
    assert boot["last_time"] == "2026-11-01T00:00:00.000Z"
    assert (boot["gaps"], boot["breaks"], boot["lost"]) == (0, 0, 0)
    assert await get(f"/v1/sources?after={2**63 - 1}") == {"sources": [], "next": 2**63 - 1}


@ON_BOTH
async def test_gaps(get, client, bench):
    later = Chain(boot="00000000000000a2").calls(4)
    later.gap("00000000000000a2", 2, 2)
    await client.post("/v1/events", data=batch(later.events[4:]), headers=bench.sidecar())
    answer = await get("/v1/gaps?boot=00000000000000a2")
    (gap,) = answer["gaps"]
    assert (gap["first"], gap["last"], gap["missing"], gap["state"]) == (1, 4, 3, "open")
    assert [(d["first"], d["last"]) for d in answer["declarations"]] == [(2, 2)]
    assert (answer["breaks"], answer["conflicts"]) == ([], [])
    assert (await get("/v1/gaps?boot=00000000000000a1"))["gaps"] == []


BAD = [
    "/v1/events?workloads=x",
    "/v1/events?workload=a&workload=b",
    "/v1/events?workload=a%00",
    "/v1/events?limit=0",
    "/v1/events?limit=1001",
    "/v1/events?limit=x",
    "/v1/events?after=-1",
    f"/v1/events?after={2**63}",
    "/v1/events?after=٣",
    "/v1/events?decision=maybe",
    "/v1/events?since=2h",
    "/v1/events?until=2026-11-01T00:00:00",
    "/v1/events?order=sequence&source=s&boot=b&jti=tok-1",
    "/v1/events?raw=yes",
    "/v1/events?order=size",
    "/v1/events?order=sequence",
    "/v1/events?order=sequence&boot=00000000000000a1",
    "/v1/events?order=sequence&source=s&boot=b&decision=denied",
    "/v1/events?last=2&after=1",
    "/v1/events?last=2&limit=1",
    "/v1/sources?source=x",
    "/v1/gaps?limit=1",
]


@pytest.mark.parametrize("path", BAD)
async def test_what_is_not_understood_is_refused(get, path):
    assert (await get(path, 400))["code"] == "service.bad_request"


@pytest.mark.parametrize("path", ["/v1/events", "/v1/sources", "/v1/gaps"])
async def test_only_readers_read(get, bench, path):
    assert (await get(path, 401, {}))["code"] == "service.unauthenticated"
    headers = bench.reader("somebody else")
    assert (await get(path, 403, headers))["code"] == "service.forbidden"
    assert (await get(path, 403, bench.sidecar()))["code"] == "service.forbidden"


async def test_nothing_is_cached(client, get, bench):
    async with client.get("/v1/events", headers=bench.reader()) as response:
        assert response.headers["Cache-Control"] == "no-store"


@ON_BOTH
async def test_a_database_that_fails(get, database_url):
    other = await asyncio.to_thread(open_database, make_url(database_url), PostgresSettings())
    await other.write(lambda connection: connection.execute(text("DROP TABLE conflicts")))
    await other.close()
    assert (await get("/v1/gaps", 503))["code"] == "service.unavailable"

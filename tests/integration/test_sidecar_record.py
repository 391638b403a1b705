"""The record from call to collector, with real processes."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.fleet import Fleet
from valetkey.contracts import events


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


async def test_each_call_leaves_its_two_events(fleet):
    async with fleet.running():
        assert (await fleet.call("/api/7?secret=1", headers={"Cookie": "session=1"}))[0] == 200
        assert (await fleet.call("/nowhere"))[1]["code"] == "route.no_match"
        await fleet.delivered()
        allowed, denied = fleet.events(events.TYPE_DECISION)
        first, second = fleet.events(events.TYPE_OUTCOME)
        assert allowed["data"]["action_id"] == 1
        assert allowed["data"]["http_request"]["url"] == {"path": "/api/7"}
        assert allowed["data"]["unmapped"]["dropped"] == ["cookie"]
        assert denied["data"]["unmapped"]["code"] == "route.no_match"
        assert denied["data"]["action_id"] == 2
        assert first["data"]["unmapped"]["decision"] == allowed["id"]
        assert second["data"]["unmapped"]["decision"] == denied["id"]
        assert first["data"]["http_response"]["code"] == 200
        verified = await fleet.verify()
        assert verified.exit_code == 0, verified.output


async def test_a_killed_and_restarted_collector_misses_nothing(fleet):
    async with fleet.running():
        for number in range(40):
            assert (await fleet.call(f"/api/{number}"))[0] == 200
            if number == 10:
                fleet.collector.kill()
            if number == 30:
                fleet.collector.start()
        await fleet.delivered()
        paths = [
            event["data"]["http_request"]["url"]["path"]
            for event in fleet.events(events.TYPE_DECISION)
        ]
        assert paths == [f"/api/{number}" for number in range(40)]
        verified = await fleet.verify()
        assert verified.exit_code == 0, verified.output


async def test_without_a_collector_events_wait_over_a_restart_of_the_sidecar(fleet):
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/before"))[0] == 200
        assert await fleet.metric("valetkey_spool_events") > 0
        assert await fleet.metric("valetkey_spool_age_seconds") > 0
        await fleet.sidecar.event("collector_unavailable")
        fleet.sidecar.kill()
        fleet.sidecar.start()
        await fleet.up()
        assert (await fleet.call("/api/after"))[0] == 200
        fleet.collector.start()
        await fleet.delivered()

        async def none_waits():
            return await fleet.metric("valetkey_spool_age_seconds") == 0

        await fleet.until(none_waits, "nothing that waits")  # a heartbeat may, for a moment
        paths = [
            event["data"]["http_request"]["url"]["path"]
            for event in fleet.events(events.TYPE_DECISION)
        ]
        assert paths == ["/api/before", "/api/after"]  # older boots first
        assert len({event["boot"] for event in fleet.events()}) == 2
        verified = await fleet.verify()
        assert verified.exit_code == 0, verified.output


async def test_a_source_of_somebody_else_is_refused_and_nothing_is_deleted(fleet):
    async with fleet.running():
        await fleet.call()
        await fleet.delivered()
        assert len(fleet.events(events.TYPE_DECISION)) == 1
        fleet.renew("system:serviceaccount:agents:other")
        await fleet.sidecar.event(
            "identity_read", where=lambda line: line["workload"].endswith("other")
        )
        assert (await fleet.call())[0] == 403  # the broker knows no such workload
        await fleet.sidecar.event(
            "collector_unavailable", where=lambda line: "403" in line["reason"]
        )
        assert await fleet.metric("valetkey_ship_failures_total") > 0
        assert len(fleet.events(events.TYPE_DECISION)) == 1
        fleet.renew()
        await fleet.delivered()
        assert len(fleet.events(events.TYPE_DECISION)) == 2
        verified = await fleet.verify()
        assert verified.exit_code == 0, verified.output


async def test_a_full_spool_denies_and_records_the_gap_where_the_route_says_so(fleet):
    fleet.sidecar_changes["spool"] = {
        "dir": str(fleet.spool), "segment_size": "64KiB", "max_size": "128KiB",
    }  # fmt: skip
    async with fleet.running(collector=False):
        statuses = [(await fleet.call("/api/1"))[0] for _ in range(120)]
        refused = statuses.index(503)
        assert set(statuses[:refused]) == {200}
        assert set(statuses[refused:]) == {503}
        status, problem = await fleet.call("/api/1")
        assert (status, problem["code"]) == (503, "audit.unavailable")
        assert len(fleet.received) == refused
        status, ready = await fleet.readyz()
        assert status == 503
        assert "spool.max_size is reached" in ready["reason"]
        for _ in range(3):
            assert (await fleet.call("/gap/1"))[0] == 200
        assert (await fleet.call("/nowhere"))[1]["code"] == "route.no_match"
        lost = await fleet.metric("valetkey_events_lost_total")
        assert lost >= 6
        fleet.collector.start()
        await fleet.until(_is(fleet, 200), "ready again")
        assert (await fleet.call("/api/1"))[0] == 200
        await fleet.delivered()
        # A gap is stated where it finds room, which may be before a decision does.
        gaps = [event["data"]["unmapped"] for event in fleet.events(events.TYPE_GAP)]
        assert sum(gap["calls_went_on"] for gap in gaps) == 3
        # Those of the first loop and one more; the denial may still have found room.
        least = 120 - refused + 1
        assert least <= sum(gap["calls_refused"] for gap in gaps) <= least + 1
        assert sum(gap["lost"] for gap in gaps) == lost
        decided = fleet.events(events.TYPE_DECISION)
        ended = {
            event["data"]["unmapped"]["decision"] for event in fleet.events(events.TYPE_OUTCOME)
        }
        assert {event["id"] for event in decided} == ended  # outcomes had their room


def _is(fleet, status):
    async def holds():
        return (await fleet.readyz())[0] == status

    return holds


async def test_calls_in_flight_keep_room_for_their_outcomes(fleet):
    """100 calls wait at the target while others fill the spool; then they all end."""
    release = asyncio.Event()
    answer = fleet.target

    async def target(request):
        if request.path == "/api/slow":
            await release.wait()
        return await answer(request)

    fleet.target = target
    fleet.sidecar_changes["spool"] = {
        "dir": str(fleet.spool), "segment_size": "256KiB", "max_size": "512KiB",
    }  # fmt: skip
    async with fleet.running(collector=False):
        assert (await fleet.call("/api/warm"))[0] == 200
        slow = [asyncio.ensure_future(fleet.call("/api/slow")) for _ in range(100)]

        async def all_there():
            return sum(request.path == "/api/slow" for request in fleet.received) == 100

        await fleet.until(all_there, "100 calls at the target")
        while (await fleet.call("/api/1"))[0] == 200:
            pass
        release.set()
        assert {status for status, _ in await asyncio.gather(*slow)} == {200}
        fleet.collector.start()
        await fleet.delivered()
        slow_ids = {
            event["id"]
            for event in fleet.events(events.TYPE_DECISION)
            if event["data"]["http_request"]["url"]["path"] == "/api/slow"
        }
        ended = {
            event["data"]["unmapped"]["decision"] for event in fleet.events(events.TYPE_OUTCOME)
        }
        assert len(slow_ids) == 100
        assert slow_ids <= ended


async def test_what_the_collector_lost_is_sent_again_or_declared(fleet):
    """Its database is gone (an old backup was put back): what is still here is sent again."""
    fleet.sidecar_changes["spool"] = {"dir": str(fleet.spool), "segment_size": "64KiB"}
    async with fleet.running():
        for _ in range(100):
            assert (await fleet.call())[0] == 200
        await fleet.delivered()
        fleet.collector.kill()
        for path in fleet.directory.glob("collector.db*"):
            path.unlink()
        fleet.collector.start()
        assert (await fleet.call("/api/after"))[0] == 200
        await fleet.delivered()
        (gap,) = fleet.events(events.TYPE_GAP)
        stated = gap["data"]["unmapped"]
        assert (stated["first"], stated["reason"]) == (1, "the collector lost it")
        held = sorted(int(event["sequence"]) for event in fleet.events())
        assert held == list(range(stated["last"] + 1, held[-1] + 1))
        assert await fleet.metric("valetkey_events_lost_total") == stated["lost"] == stated["last"]
        verified = await fleet.verify()
        assert verified.exit_code == 0, verified.output
        assert f"{stated['lost']} were declared lost" in verified.output

"""The collector as a process: what it acknowledged is there, however it ended."""

from __future__ import annotations

import asyncio
import socket
import sqlite3
import ssl

import aiohttp
import pytest
import trustme

from tests.support.chain import Chain, batch
from tests.support.collector import CollectorBench
from tests.support.procs import Failed, Program


@pytest.fixture
def bench(tmp_path):
    return CollectorBench(tmp_path)


async def post(session, url, raws, headers):
    async with session.post(f"{url}/v1/events", data=batch(raws), headers=headers) as response:
        return response.status, await response.json(content_type=None)


async def read(session, url, path, headers):
    async with session.get(url + path, headers=headers) as response:
        assert response.status == 200
        return await response.json()


async def test_it_says_where_it_listens_and_ends_cleanly(bench):
    program = bench.program()
    async with program, aiohttp.ClientSession() as session:
        port = await program.listening()
        async with session.get(f"http://127.0.0.1:{port}/readyz") as response:
            assert response.status == 200
        assert await program.stop() == 0
    assert {line["logger"] for line in program.log()} <= {"valetkey.collector"}


async def test_a_batch_being_stored_at_the_end_is_still_answered(bench):
    """SIGTERM arrives while a batch waits for the database: it is stored and acknowledged."""
    made = Chain().calls(20)
    program = bench.program()
    async with program, aiohttp.ClientSession() as session:
        url = f"http://127.0.0.1:{await program.listening()}"
        elsewhere = sqlite3.connect(bench.database, isolation_level=None)
        elsewhere.execute("BEGIN IMMEDIATE")
        delivery = asyncio.ensure_future(post(session, url, made.events, bench.sidecar()))
        while not delivery.done() and not await _in_flight(session, url):
            pass
        program.terminate()
        await _refuses(url)
        assert not delivery.done()
        elsewhere.execute("COMMIT")
        elsewhere.close()
        assert await delivery == (200, {"boot": made.boot, "acked": 40})
        assert await program.ended() == 0


async def _in_flight(session, url):
    """Whether the collector has taken the batch in hand."""
    async with session.get(f"{url}/metrics") as response:
        return "valetkey_collector_in_flight 1.0" in await response.text()


async def _refuses(url, within=10):
    """Until the listening socket is closed: the stop has begun."""
    host, port = url.removeprefix("http://").split(":")
    async with asyncio.timeout(within):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                return
            writer.close()
            await writer.wait_closed()
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("round_", range(3))
async def test_kill_in_the_middle_loses_nothing_that_was_acknowledged(bench, round_):
    sidecars = []
    for number in range(4):
        made = Chain(instance=f"agent-{number}")
        made.boot_event()
        sidecars.append(made.calls(1500))
    acked = dict.fromkeys(range(4), 0)
    program = bench.program()
    enough = asyncio.Event()

    async def deliver(number, url, headers, session):
        """As a shipper: behind what is acknowledged, until the collector is gone."""
        events = sidecars[number].events
        while acked[number] < len(events):
            first = acked[number]
            try:
                status, answer = await post(session, url, events[first : first + 37], headers)
            except aiohttp.ClientError:
                return
            assert status == 200
            acked[number] = answer["acked"]
            if sum(acked.values()) > 300 * (round_ + 1):
                enough.set()

    async def deliver_all(program):
        url = f"http://127.0.0.1:{await program.listening()}"
        headers = [bench.sidecar(f"agent-{number}") for number in range(4)]
        async with aiohttp.ClientSession() as session, asyncio.TaskGroup() as group:
            for number in range(4):
                group.create_task(deliver(number, url, headers[number], session))
            if not enough.is_set():
                await enough.wait()
                program.kill()

    async with program:
        await deliver_all(program)
        before = dict(acked)
        assert 0 < sum(before.values()) < 4 * 3001
        with sqlite3.connect(f"file:{bench.database}?mode=ro", uri=True) as connection:
            stored = dict(
                connection.execute(
                    "SELECT source, (SELECT count(*) FROM events WHERE boot_id = boots.id"
                    " AND seq <= boots.acked) FROM boots JOIN sources ON source_id = sources.id"
                ).fetchall()
            )
        connection.close()
        for number, made in enumerate(sidecars):
            assert stored[made.source] >= before[number]
        program.start()
        await deliver_all(program)
        assert acked == dict.fromkeys(range(4), 3001)
        url = f"http://127.0.0.1:{await program.listening()}"
        async with aiohttp.ClientSession() as session:
            boots = (await read(session, url, "/v1/sources", bench.reader()))["sources"]
        assert [(b["count"], b["acked"], b["gaps"], b["breaks"]) for b in boots] == [
            (3001, 3001, 0, 0)
        ] * 4
        heads = {boot["source"]: boot["head_hash"] for boot in boots}
        assert heads == {made.source: made.head for made in sidecars}


async def test_over_tls(bench, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    tls = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    context = ssl.create_default_context()
    authority.configure_trust(context)
    made = Chain().calls(2)
    connector = aiohttp.TCPConnector(ssl=context)
    async with (
        bench.program(tls=tls) as program,
        aiohttp.ClientSession(connector=connector) as session,
    ):
        url = f"https://127.0.0.1:{await program.listening()}"
        assert (await post(session, url, made.events, bench.sidecar()))[1]["acked"] == 4


REFUSED = {
    "an unknown key": ({"reader": []}, "reader: unknown key"),
    "plain HTTP on every address": ({"bind": "0.0.0.0:0"}, "is not loopback"),
    "a database in no directory": (
        {"database": "sqlite+aiosqlite:////nowhere/at/all.db"},
        "can't be opened or migrated",
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
async def test_settings_that_can_not_be_used_end_it_with_one_line(bench, changes, message):
    await _ends_with_one_line(bench.program(**changes), message)


async def test_an_address_of_somebody_else_ends_it_with_one_line(bench):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        await _ends_with_one_line(bench.program(bind=bind), f"bind {bind}")


async def _ends_with_one_line(program, message):
    program.start()
    assert await program.ended() == 2
    lines = program.stderr_file.read_text().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert program.stdout_file.read_text() == ""


async def test_a_file_that_is_not_there_ends_it_with_one_line(bench, tmp_path):
    program = Program.of("collector", tmp_path / "none.yaml", tmp_path / "process").start()
    with pytest.raises(Failed):
        await program.listening()
    assert await program.ended() == 2
    assert "none.yaml: can't be read" in program.tail()

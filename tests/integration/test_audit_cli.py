"""``valetkey audit`` against a collector process, and the console script itself."""

from __future__ import annotations

import asyncio
import json
import signal
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import aiohttp
import pytest
import trustme
from click.testing import CliRunner

from tests.support.chain import Chain, batch
from tests.support.collector import CollectorBench
from tests.support.procs import Program
from valetkey.cli.main import main

SCRIPT = Path(sys.executable).with_name("valetkey")


@pytest.fixture
def bench(tmp_path):
    return CollectorBench(tmp_path)


@pytest.fixture
def chains():
    first = Chain(boot="00000000000000a1")
    first.boot_event()
    first.calls(700)
    second = Chain(boot="00000000000000b2")
    second.boot_event(first)
    second.calls(2)
    return first, second


async def deliver(url, bench, *batches, ssl=True):
    async with aiohttp.ClientSession() as session:
        for raws in batches:
            async with session.post(
                f"{url}/v1/events", data=batch(raws), headers=bench.sidecar(), ssl=ssl
            ) as response:
                assert response.status == 200


async def audit(*arguments):
    return await asyncio.to_thread(CliRunner().invoke, main, ["audit", *map(str, arguments)])


async def test_online_and_offline_agree(bench, chains):
    first, second = chains
    async with bench.program() as program:
        url = f"http://127.0.0.1:{await program.listening()}"
        # Out of order, so that arrival and chain differ.
        await deliver(url, bench, first.events[500:], first.events[:500], second.events)
        online = ("--collector", url, "--token-file", bench.reader_token_file())
        for where in (("--db", bench.database), online):
            result = await audit("verify", *where)
            assert result.exit_code == 0, result.output
            assert "the record holds: 1406 events of 2 boots" in result.output
        rows = [
            (await audit("tail", *where, "--limit", "3", "--json")).output
            for where in (("--db", bench.database), online)
        ]
        assert rows[0] == rows[1]
        tail = [json.loads(line) for line in rows[0].splitlines()]
        assert [line["event"]["id"] for line in tail] == [
            "00000000000000a1-500", "00000000000000b2-2", "00000000000000b2-4",
        ]  # fmt: skip
        for narrow in (("--jti", "tok-1"), ("--jti", "nobody"), ("--since", "1h")):
            both = [
                (await audit("tail", *where, *narrow, "--all", "--json")).stdout
                for where in (("--db", bench.database), online)
            ]
            assert both[0] == both[1]
            assert len(both[0].splitlines()) == (702 if "tok-1" in narrow else 0)
        result = await audit("verify", *online, "--json")
        assert json.loads(result.stdout)["holds"]
        # One byte, in the last event, changed behind the running collector's back.
        with closing(sqlite3.connect(bench.database)) as connection, connection:
            connection.execute(
                "UPDATE events SET raw = CAST(replace(CAST(raw AS TEXT), ':180,', ':181,') AS BLOB)"
                " WHERE cursor = (SELECT max(cursor) FROM events)"
            )
        for where in (("--db", bench.database), online):
            result = await audit("verify", *where)
            assert result.exit_code == 1
            assert "boot 00000000000000b2 event 5: " in result.output


async def test_a_token_that_may_not_read(bench, chains):
    async with bench.program() as program:
        url = f"http://127.0.0.1:{await program.listening()}"
        file = bench.directory / "sidecar-token"
        bench.workloads.token_file(file, "agent", "https://collector.test.example")
        result = await audit("verify", "--collector", url, "--token-file", file)
        assert result.exit_code == 2
        assert "answered 403 service.forbidden" in result.stderr


async def test_over_tls(bench, chains, tmp_path):
    authority = trustme.CA()
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    certificate.private_key_pem.write_to_path(tmp_path / "key.pem")
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    tls = {"cert_file": str(tmp_path / "cert.pem"), "key_file": str(tmp_path / "key.pem")}
    async with bench.program(tls=tls) as program:
        url = f"https://127.0.0.1:{await program.listening()}"
        options = ("verify", "--collector", url, "--token-file", bench.reader_token_file())
        result = await audit(*options, "--ca-file", tmp_path / "ca.pem")
        assert result.exit_code == 0, result.output
        result = await audit(*options)
        assert result.exit_code == 2
        assert "can't be reached" in result.stderr


async def test_the_console_script(bench, chains):
    """The installed command runs a collector, checks its file, and follows and verifies."""
    first, second = chains
    program = bench.program()
    script = await asyncio.create_subprocess_exec(
        SCRIPT, "check", "collector", bench.config, stdout=asyncio.subprocess.PIPE
    )
    assert (await script.communicate())[0] == b"ok\n"
    program = Program(
        ("-m", "valetkey.cli", "collector", "--config", str(bench.config)),
        bench.directory / "process",
        name="collector",
    )
    async with program:
        url = f"http://127.0.0.1:{await program.listening()}"
        await deliver(url, bench, first.events[:900], first.events[900:])
        follower = await asyncio.create_subprocess_exec(
            SCRIPT, "audit", "tail", "--collector", url, "--token-file", bench.reader_token_file(),
            "--limit", "1", "--follow", "--json",
            stdout=asyncio.subprocess.PIPE,
            # A suite that runs in the background was told to ignore it, and its children with it.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        try:
            async with asyncio.timeout(20):
                line = json.loads(await follower.stdout.readline())
                assert line["event"]["id"] == "00000000000000a1-1400"
                await deliver(url, bench, second.events)
                for seq in (2, 4):
                    line = json.loads(await follower.stdout.readline())
                    assert line["event"]["id"] == f"00000000000000b2-{seq}"
                    assert line["outcome"]["id"] == f"00000000000000b2-{seq + 1}"
        finally:
            follower.send_signal(signal.SIGINT)
        await follower.stdout.read()
        assert await follower.wait() == 0
        verifier = await asyncio.create_subprocess_exec(
            SCRIPT, "audit", "verify", "--db", bench.database, stdout=asyncio.subprocess.PIPE
        )
        output, _ = await verifier.communicate()
        assert verifier.returncode == 0
        assert b"the record holds: 1406 events of 2 boots" in output

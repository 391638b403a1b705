"""Programs are awaited by what they say and answer, and an early end is told with its output."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.procs import Failed, Program

SERVER = """
import asyncio, sys
from aiohttp import web
from prometheus_client import CollectorRegistry
from valetkey.contracts import logs, service
from valetkey.contracts.logs import Log
async def ready(): return ""
async def main():
    app = web.Application(middlewares=[service.problems])
    service.add_probes(app, CollectorRegistry(), ready)
    await service.serve(app, "127.0.0.1:0", announce=lambda p: Log("t").info("listening", port=p))
logs.configure()
asyncio.run(main())
"""


async def test_a_program_is_awaited_and_stopped(tmp_path: Path) -> None:
    async with Program(("-c", SERVER), tmp_path, name="server") as server:
        port = await server.listening()
        await server.ready(f"http://127.0.0.1:{port}/readyz")
        assert await server.stop() == 0
    assert not server.running


async def test_a_killed_program_starts_again_with_output_of_its_own(tmp_path: Path) -> None:
    async with Program(("-c", SERVER), tmp_path, name="server") as server:
        server.kill()
        assert await server.ended() == -9
        server.start()
        await server.listening()
        assert server.stderr_file.name == "server-2.stderr"


async def test_an_early_end_shows_the_last_lines(tmp_path: Path) -> None:
    program = Program(("-c", "raise SystemExit('config.yaml:3: bind: bad')"), tmp_path, name="bad")
    with pytest.raises(Failed, match=r"ended before log line 'listening'\nconfig\.yaml:3"):
        async with program:
            pass
    assert await program.ended() == 1

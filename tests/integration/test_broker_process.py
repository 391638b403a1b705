"""``python -m valetkey.broker`` as a process: start, signals, exit codes, logs."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
import yaml

from tests.integration.broker_support import GRANTS, Served, World
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from tests.support.procs import Program


def start(world: World, tmp_path: Path) -> Program:
    world.overrides = {"bind": world.url.removeprefix("http://"), **world.overrides}
    return Program.of("broker", world.write(), tmp_path / "run")


async def exchange(world: World, **changes: Any) -> tuple[int, dict[str, Any]]:
    async with aiohttp.ClientSession() as client:
        served = Served(world, None, client)  # type: ignore[arg-type]
        status, body, _ = await served.exchange(world.form(world.workload(), **changes))
        return status, body


async def test_it_serves_says_where_and_stops_cleanly(tmp_path: Path) -> None:
    world = World(tmp_path / "world", free_url(), overrides={"log_level": "info"})
    async with start(world, tmp_path) as program:
        port = await program.listening()
        assert world.url.endswith(f":{port}")
        status, body = await exchange(world)
        assert status == 200, body
        assert (await exchange(world, scope="no:such"))[1]["code"] == "grant.scope"
        issued = await program.event("exchange_issued")
        assert issued["jti"] == body["jti"]
        assert issued["grant"] == "bot-tickets"
        refused = await program.event(
            "exchange_refused", where=lambda line: line["code"] == "grant.scope"
        )
        assert "reason" in refused
        assert await program.stop() == 0
    # Nothing in the log is a token: the canary check at the end looks for every one of them.
    assert not CANARIES.found_in(program.stderr_file.read_bytes())
    assert (tmp_path / "world" / "broker.db").stat().st_mode & 0o077 == 0


async def test_port_0_is_any_port(tmp_path: Path) -> None:
    world = World(tmp_path / "world", free_url(), overrides={"bind": "127.0.0.1:0"})
    world.overrides["log_level"] = "info"
    async with start(world, tmp_path) as program:
        port = await program.listening()
        async with (
            aiohttp.ClientSession() as client,
            client.get(f"http://127.0.0.1:{port}/readyz") as response,
        ):
            assert response.status == 200


async def test_sighup_reads_the_grants_again(tmp_path: Path) -> None:
    world = World(tmp_path / "world", free_url(), overrides={"log_level": "info"})
    async with start(world, tmp_path) as program:
        await program.listening()
        os.kill(program.pid, signal.SIGHUP)
        # The file is unchanged: only the signal makes it be read.
        line = await program.event("grants_reloaded")
        assert (line["count"], line["action"]) == (len(GRANTS), "same")


async def test_kill_9_keeps_keys_and_revocations(tmp_path: Path) -> None:
    world = World(tmp_path / "world", free_url(), overrides={"log_level": "info"})
    program = start(world, tmp_path)
    async with aiohttp.ClientSession() as client:
        served = Served(world, None, client)  # type: ignore[arg-type]
        program.start()
        try:
            await program.listening()
            _, keys, _ = await served.get("/jwks")
            _, body, _ = await served.exchange(world.form(world.workload()))
            form = {
                "token": body["access_token"],
                "client_assertion_type": "urn:ietf:params:oauth:client-assertion-type:jwt-bearer",
                "client_assertion": world.workload(),
            }
            assert (await served.exchange(form, path="/revoke"))[0] == 200
        finally:
            program.kill()
        async with program:
            await program.listening()
            assert (await served.get("/jwks"))[1] == keys
            status, answer, _ = await served.exchange(form, path="/introspect")
            assert (status, answer) == (200, {"active": False})


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("unknown key", {"isuer": "x"}, "isuer: unknown key"),
        ("plain http off loopback", {"bind": "0.0.0.0:7080"}, "is not loopback"),
        ("http issuer", {"issuer": "http://broker.example"}, "https"),
        ("no master key", {"master_key_file": "/nonexistent/key"}, "master key can't be read"),
        ("no grants", {"grants_file": "/nonexistent/grants.yaml"}, "can't be read"),
        ("database in memory", {"database": "sqlite+aiosqlite:///:memory:"}, "database must be"),
        (
            "database nowhere",
            {"database": "sqlite+aiosqlite:////nonexistent/x.db"},
            "can't be opened",
        ),
        ("issuers empty", {"issuers": []}, "issuers"),
        ("port in use", {}, "bind 127.0.0.1"),
    ],
)
async def test_settings_that_cannot_be_used_exit_2_with_one_line(
    tmp_path: Path, name: str, change: dict[str, Any], message: str
) -> None:
    world = World(tmp_path, free_url())
    taken = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    bind = f"127.0.0.1:{taken.sockets[0].getsockname()[1]}"
    world.overrides = {"bind": bind, **change}
    config = world.write()
    async with taken:
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "valetkey.broker", "--config", str(config)],
            capture_output=True,
            timeout=90,
            check=False,
        )
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("{")]
    assert done.returncode == 2, name
    assert len(lines) == 1
    assert lines[0].startswith("valetkey broker: ")
    assert message in lines[0]


async def test_the_example_settings_run(tmp_path: Path) -> None:
    """config/broker.yaml and config/grants.yaml, with their paths moved to a directory of ours."""
    config = Path(__file__).parents[2] / "config"
    world = World(tmp_path / "world", free_url())
    world.write()
    text = (config / "broker.yaml").read_text()
    text = text.replace("/etc/valetkey", str(tmp_path)).replace("/var/lib/valetkey", str(tmp_path))
    document = yaml.safe_load(text)
    document["bind"] = document["mtls"]["bind"] = "127.0.0.1:0"
    certificate = trustme.CA().issue_cert("broker.valetkey.svc")
    certificate.private_key_pem.write_to_path(str(tmp_path / "broker.key"))
    certificate.cert_chain_pems[0].write_to_path(str(tmp_path / "broker.pem"))
    (tmp_path / "broker.yaml").write_text(yaml.safe_dump(document))
    (tmp_path / "grants.yaml").write_text((config / "grants.yaml").read_text())
    (tmp_path / "master.key").write_bytes(os.urandom(32))
    (tmp_path / "master.key").chmod(0o600)
    (tmp_path / "policies").mkdir()
    for policies in (config / "policies").glob("*.cedar"):
        (tmp_path / "policies" / policies.name).write_text(policies.read_text())
    for issuer in document["issuers"]:
        if "jwks_file" in issuer:  # the others are found when their first token comes
            Path(issuer["jwks_file"]).write_text(json.dumps(world.idp.jwks()))
    async with Program.of("broker", tmp_path / "broker.yaml", tmp_path / "run") as program:
        await program.listening()


async def test_it_serves_tls(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost")
    cert_file, key_file = tmp_path / "cert.pem", tmp_path / "key.pem"
    cert_file.write_bytes(b"".join(blob.bytes() for blob in certificate.cert_chain_pems))
    key_file.write_bytes(certificate.private_key_pem.bytes())
    world = World(tmp_path / "world", free_url(), overrides={"log_level": "info"})
    port = world.url.rpartition(":")[2]
    # The clients' URL is the issuer: here https and a name, on the same port.
    world.url = f"https://localhost:{port}"
    world.overrides |= {
        "bind": f"127.0.0.1:{port}",
        "tls": {"cert_file": str(cert_file), "key_file": str(key_file)},
    }
    context = ssl.create_default_context()
    authority.configure_trust(context)
    async with Program.of("broker", world.write(), tmp_path / "run"):
        connector = aiohttp.TCPConnector(ssl=context)
        async with aiohttp.ClientSession(connector=connector) as client:
            served = Served(world, None, client)  # type: ignore[arg-type]
            status, body, _ = await served.exchange(world.form(world.workload()))
            assert status == 200, body

"""Changing the settings of a running sidecar, and what it does at start and end."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket

import pytest
from aiohttp import web

from tests.support.fleet import Fleet
from tests.support.procs import Program
from valetkey.contracts import oauth


@pytest.fixture
def fleet(tmp_path):
    return Fleet(tmp_path)


async def rejected(fleet, said):
    """Have the file looked at now: it is refused with these words."""
    os.kill(fleet.sidecar.pid, signal.SIGHUP)
    line = await fleet.sidecar.event("reload_rejected", where=lambda line: said in line["reason"])
    assert await fleet.metric("valetkey_config_reloads_total", result="rejected") > 0
    status, ready = await fleet.readyz()
    assert status == 200
    assert ready["rejected_config"] == line["reason"]


async def test_a_changed_route_applies_to_calls_in_flight_too(fleet):
    """What the new settings allow finishes; what they don't is cut by the next sweep (ADR 11)."""
    release = asyncio.Event()

    async def target(request):
        if request.path.endswith("/slow"):
            await release.wait()
        return web.json_response({})

    fleet.target = target
    kept = fleet.route("kept", methods=["GET"], path="/kept/{id}")
    fleet.routes.append(kept)
    async with fleet.running(collector=False):
        assert (await fleet.call("/new/1"))[0] == 403
        slow = [asyncio.ensure_future(fleet.call(path)) for path in ("/api/slow", "/kept/slow")]

        async def there():
            return {"/api/slow", "/kept/slow"} <= {request.path for request in fleet.received}

        await fleet.until(there, "the slow calls at the target")
        fleet.routes[:] = [kept, fleet.route("new", methods=["GET"], path="/new/{id}")]
        fleet.write()
        await fleet.reload()
        assert (await fleet.call("/new/1"))[0] == 200
        assert (await fleet.call("/api/1"))[1]["code"] == "route.no_match"
        status, body = (await slow[0])[:2]
        assert (status, body["code"]) == (403, "route.no_match")
        release.set()
        assert (await slow[1])[0] == 200


async def test_a_call_that_waits_for_its_credential_survives_two_reloads(fleet, aiohttp_server):
    """The target of its snapshot is kept although no connection was lent to it yet."""
    gate = asyncio.Event()

    async def broker(_request):
        await gate.wait()
        return web.json_response(
            {
                "access_token": secrets.token_urlsafe(32),
                "issued_token_type": oauth.TOKEN_TYPE_ACCESS,
                "token_type": "Bearer",
                "expires_in": 60,
            }
        )

    app = web.Application()
    app.router.add_post("/token", broker)
    server = await aiohttp_server(app)
    fleet.sidecar_changes["broker"] = {"url": str(server.make_url("")), "timeout": "20s"}
    async with fleet.running(collector=False, broker=False):
        waiting = asyncio.ensure_future(fleet.call("/api/1"))

        async def in_flight():
            return await fleet.metric("valetkey_exchanges_in_flight") == 1

        await fleet.until(in_flight, "the exchange")
        for name in ("one", "two"):
            fleet.routes.append(fleet.route(name, methods=["GET"], path=f"/{name}/x"))
            fleet.write()
            await fleet.reload()
        await asyncio.sleep(0.6)  # two sweeps, which forget what nobody needs
        gate.set()
        assert (await waiting)[0] == 200
        assert not [line for line in fleet.sidecar.log() if line["event"] == "call_broke"]


BAD = {
    "not YAML": ("{", "not YAML"),
    "an unknown key": ('{"rotes": []}', "rotes"),
    "gone": (None, "can't be read"),
}


async def test_a_bad_file_keeps_the_old_one_and_says_so(fleet):
    async with fleet.running(collector=False):
        for text, said in BAD.values():
            if text is None:
                fleet.config.unlink()
            else:
                fleet.config.write_text(text)
            await rejected(fleet, said)
            assert (await fleet.call("/api/1"))[0] == 200
        fleet.write()
        await fleet.reload()
        assert (await fleet.readyz())[1]["rejected_config"] == ""


async def test_a_change_is_seen_without_a_signal(fleet):
    async with fleet.running(collector=False):
        fleet.routes[:] = [fleet.route("new", methods=["GET"], path="/new/{id}")]
        fleet.write()

        async def changed():
            return (await fleet.call("/new/1"))[0] == 200

        await fleet.until(changed, "the new route")


FIXED = {
    "workload.subject_header": {"workload": {"subject_header": "X-U"}},
    "broker.timeout": {"broker": {"timeout": "7s"}},
    "collector": {"collector": None},
    "spool.commit_every": {"spool": {"commit_every": "9ms"}},
    "listeners": {"listeners": [{"bind": "127.0.0.1:1"}]},
    "admin.bind": {"admin": {"bind": "127.0.0.1:1"}},
    "instance": {"instance": "other"},
    "limits.credentials": {"limits": {"credentials": 5}},
}


def _kept(whole, section):
    """The keys that a section must have."""
    keep = {
        "workload": ("identity",),
        "broker": ("url",),
        "spool": ("dir", "segment_size", "max_size"),
    }
    return {key: whole[section][key] for key in keep.get(section, ())}


async def test_what_needs_a_restart_is_refused_with_its_key(fleet):
    async with fleet.running(collector=False):
        for key, change in FIXED.items():
            whole = fleet.tree()
            for section, value in change.items():
                merged = {**value, **_kept(whole, section)} if isinstance(value, dict) else value
                fleet.sidecar_changes = {section: merged}
            fleet.write()
            await rejected(fleet, f": {key}: a change needs a restart")
        assert (await fleet.call("/api/1"))[0] == 200


async def test_a_target_whose_ca_file_is_bad_is_refused_whole(fleet):
    async with fleet.running(collector=False):
        tickets = fleet.tree()["targets"]["tickets"]
        fleet.sidecar_changes["targets"] = {
            "tickets": tickets | {"url": "https://127.0.0.1:1", "ca_file": "/nonexistent.pem"}
        }
        fleet.write()
        await rejected(fleet, "targets.tickets.ca_file")
        assert (await fleet.call("/api/1"))[0] == 200


async def test_the_log_level_follows(fleet):
    async with fleet.running(collector=False):
        fleet.sidecar_changes["log_level"] = "error"
        fleet.write()
        await fleet.reload()
        assert not [line for line in fleet.sidecar.log() if line["event"] == "reload_applied"]
        assert (await fleet.call("/api/1"))[0] == 200


# --- start ---------------------------------------------------------------------------------------


async def ends_with(program: Program, status: int) -> str:
    program.start()
    assert await program.ended() == status
    return program.stderr_file.read_text()


async def test_an_unknown_variable_stops_the_start(fleet, tmp_path):
    fleet.write()
    program = Program.of("proxy", fleet.config, tmp_path / "run", env={"VALETKEY_PROXI__X": "1"})
    said = await ends_with(program, 2)
    assert said.count("\n") == 1
    assert "VALETKEY_PROXI__X" in said


async def test_a_variable_is_a_setting(fleet, tmp_path):
    fleet.write()
    program = Program.of(
        "proxy", fleet.config, tmp_path / "run", env={"VALETKEY_PROXY__SPOOL__MAX_SIZE": "1KiB"}
    )
    assert "spool.max_size" in await ends_with(program, 2)


@pytest.mark.parametrize("which", ["port", "admin_port"])
async def test_a_port_in_use_stops_the_start(fleet, which):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        setattr(fleet, which, taken.getsockname()[1])
        fleet.write()
        said = await ends_with(fleet.sidecar, 2)
    last = said.splitlines()[-1]
    assert last.startswith("valetkey proxy: ")
    assert f"127.0.0.1:{getattr(fleet, which)}" in last
    assert "Traceback" not in said


async def test_a_second_sidecar_on_the_same_spool(fleet, tmp_path):
    async with fleet.running(collector=False):
        second = Program.of("proxy", fleet.config, tmp_path / "second")
        said = await ends_with(second, 2)
        assert "in use by another sidecar" in said
        assert said.count("\n") == 1
        assert (await fleet.call("/api/1"))[0] == 200


async def test_a_file_that_is_not_there(fleet):
    said = await ends_with(fleet.sidecar, 2)
    assert "can't be read" in said
    assert said.count("\n") == 1


# --- end -----------------------------------------------------------------------------------------


async def test_sigterm_lets_calls_finish_delivers_the_record_and_ends(fleet):
    release = asyncio.Event()

    async def target(_request):
        await release.wait()
        return web.json_response({})

    fleet.target = target
    async with fleet.running():
        slow = asyncio.ensure_future(fleet.call("/api/slow"))

        async def there():
            return bool(fleet.received)

        await fleet.until(there, "the call at the target")
        fleet.sidecar.terminate()

        async def closed():
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", fleet.port)
            except ConnectionError:
                return True
            writer.close()
            return False

        await fleet.until(closed, "no listener")
        assert fleet.sidecar.running
        release.set()
        assert (await slow)[0] == 200
        assert await fleet.sidecar.ended() == 0
        last = fleet.sidecar.log()[-1]
        assert last["event"] == "stopped"
        assert len(fleet.events()) == last["seq"]  # everything was delivered before the end
        verified = await fleet.verify()
        assert verified.exit_code == 0, verified.output


async def test_sigterm_cuts_what_does_not_end_in_time(fleet):
    async def hanging(_request):
        await asyncio.Event().wait()
        return web.Response()

    fleet.target = hanging
    fleet.sidecar_changes["timeouts"] = {"drain": "300ms"}
    async with fleet.running(collector=False):
        slow = asyncio.ensure_future(fleet.call("/api/slow"))

        async def there():
            return bool(fleet.received)

        await fleet.until(there, "the call at the target")
        fleet.sidecar.terminate()
        assert await fleet.sidecar.ended() == 0
        status, problem = await slow
        assert (status, problem["code"]) == (503, "proxy.draining")

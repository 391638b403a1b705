"""A broker's database out of a backup, and ``valetkey restored``: on both databases.

What came after the backup is forgotten with it; each test of a kind shows that, and that the
command ends what may have been ended.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.integration.approvals_support import CLOSING, Desk, desk, world_of
from tests.integration.broker_support import (
    BOT,
    GRANTS,
    IDP,
    TICKETS,
    World,
    claims_of,
    serving,
)
from tests.integration.feed_support import Receiver
from tests.integration.recovery_support import (
    BROKER,
    COPIES,
    NAMED,
    needs_sqlite3,
    section,
    shell,
)
from tests.integration.test_broker_containment import active, code_of, issue
from tests.integration.test_broker_grants_api import code, written
from tests.integration.test_broker_scim import Provisioner, directory
from tests.integration.test_broker_windows import close, opened
from tests.integration.test_broker_windows import create as create_windowed
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.broker.store.restored import KEPT
from valetkey.cli.restored import KINDS
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import ConfigError

pytestmark = needs_sqlite3

COUNTED = {
    "id": "bot-counted",
    "workload": BOT,
    "issuer": IDP,
    "target": "tickets",
    "scopes": ["tickets:count"],
    "max_uses": 5,
}


@dataclass
class Backups:
    """One world's database: copied while the broker runs, and put back where none does."""

    world: World
    server: Postgres | None

    async def take(self) -> None:
        await asyncio.to_thread(self._take)

    async def put_back(self) -> None:
        await asyncio.to_thread(self._put_back)

    def _take(self) -> None:
        """By the page's own command, in the broker's directory."""
        (self.world.root / "backup").mkdir(exist_ok=True)
        for copy in (self.world.root / "backup").iterdir():
            copy.unlink()
        which = "^pg_dump" if self.server is not None else "^sqlite3 broker"
        [command] = section(COPIES, which)
        shell(self._ours(command), self.world.root)

    def _put_back(self) -> None:
        if self.server is not None:
            self.world.overrides["database"] = self.server.database()
            self.world.write()
        which = "^pg_restore" if self.server is not None else "^(rm|cp)"
        for command in section(BROKER, which):
            shell(self._ours(command), self.world.root)

    def _ours(self, command: str) -> str:
        url: str = self.world.overrides.get("database", "")
        return command.replace(NAMED, url.replace("+asyncpg", "", 1))


Worlds = Callable[..., tuple[World, Backups]]


@pytest.fixture(params=["sqlite", "postgres"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Worlds:
    def make(world: World) -> tuple[World, Backups]:
        server: Postgres | None = None
        if request.param == "postgres":
            server = request.getfixturevalue("postgres")
            world.overrides["database"] = server.database()
        return world, Backups(world, server)

    return make


async def restored(world: World, *arguments: str) -> tuple[int, str]:
    """Exit status of the command, and everything that it said."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "valetkey.cli", "restored", "--config",
        str(world.root / "broker.yaml"), "--reason", "the disk is gone", *arguments,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, said.decode()


def later(world: World) -> None:
    """The command goes by the real clock: the world's, which stands still, is after that again."""
    world.clock.now = max(world.clock.now, time.time()) + 20


async def done(world: World, *arguments: str) -> list[str]:
    status, said = await restored(world, *arguments)
    assert status == 0, said
    return said.splitlines()


@asynccontextmanager
async def desk_of(world: World) -> AsyncIterator[Desk]:
    world.write_grants([*GRANTS, CLOSING, COUNTED])
    async with desk(world) as opened_desk:
        yield opened_desk


async def test_nothing_that_ended_after_the_backup_counts_again(
    made: Worlds, tmp_path: Path
) -> None:
    targets = {
        **World(tmp_path, "").document()["targets"],
        "tickets": {"audience": TICKETS, "credential": "bearer", "status_list": True},
    }
    world, backups = made(world_of(tmp_path, targets=targets, directory=directory()))
    async with desk_of(world) as at:
        broker = at.served
        people = Provisioner(broker)
        alice = await people.user("alice")
        sidecar = Receiver(world, broker)
        await sidecar.begin()
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        for_alice = world.user_form(world.workload(), world.user("alice"))
        await issue(broker, for_alice)
        place = claims_of(token)["status"]["status_list"]["uri"].removeprefix(world.url)
        await broker.manage("POST", "/v1/grants", written(scopes=["tickets:archive"]))
        await create_windowed(broker)
        window = await opened(broker)
        approval = await at.opened()
        await at.approve(approval, uses=1)
        waiting = await at.opened(path="/api/tickets/8/close")
        _, deferred = await at.ask(path="/api/tickets/9/close", deferred=True)
        counting = world.form(world.workload(), scope="tickets:count")
        await issue(broker, counting)
        kid = claims_kid(token)

        await backups.take()

        leaked = world.form(world.workload()) | {"token": token}
        assert (await broker.exchange(leaked, path="/revoke"))[0] == 200
        await broker.manage("POST", "/v1/grants/jit-1/revoke", {"reason": "done"})
        assert (await close(broker, window["id"]))[0] == 200
        assert (await at.ask())[0] == 200  # the one use
        await at.decide(waiting, "deny")
        for _ in range(4):
            await issue(broker, counting)
        assert await code_of(broker, counting) == "grant.used_up"
        off = {"op": "replace", "path": "active", "value": False}
        await people.patch(f"/Users/{alice['id']}", off)
        assert await code_of(broker, for_alice) == "subject.inactive"
        key = {"key": kid, "reason": "the machine was entered"}
        assert (await broker.manage("POST", "/v1/incidents", key))[0] == 201

    # A broker does not start on the copy; if it did, it would know nothing of all this.
    await backups.put_back()
    with pytest.raises(ConfigError, match=r"restored\.undeclared"):
        async with desk_of(world):
            pass
    assert await done(world, "--complete") == ["nothing was ended", "ok: brokers may be started"]
    async with desk_of(world) as at:
        broker = at.served
        assert await active(broker, token)
        assert await code(broker, scope="tickets:archive") == "issued"
        assert await code(broker) == "issued", "in the window"
        assert await code_of(broker, counting) == "ok"
        assert await code_of(broker, for_alice) == "ok"
        assert (await at.ask())[0] == 200, "the approval's one use, again"
        assert (
            claims_kid((await issue(broker, world.form(world.workload())))["access_token"]) == kid
        )

    await backups.put_back()
    said = await done(world)
    assert said == [
        "signing keys: 1 ended",
        "streams: 1 ended",
        "status entries: 3 ended",
        "deferral codes: 1 ended",
        "windows: 1 ended",
        "grants made by API: 2 ended",
        "approvals: 3 ended",
        "counted grants: 1 ended",
        "provisioned users: 1 ended",
        "nobody need attest itself anew",
        "ok: brokers may be started",
    ]
    later(world)
    async with desk_of(world) as at:
        broker = at.served
        assert not await active(broker, token)
        assert (await broker.get(place))[0] == 404
        assert kid not in (await broker.get("/jwks"))[1].decode()
        assert await code(broker, scope="tickets:archive") == "grant.ended"
        assert await code(broker) == "grant.ended", "the window and its grant"
        assert await code_of(broker, counting) == "grant.used_up"
        assert await code_of(broker, for_alice) == "subject.inactive"
        status, body = await at.ask()
        assert (status, body["code"]) == (400, "approval.required")
        assert body["approval_id"] != approval
        assert (await at.show(approval))["state"] == "revoked"
        assert (await at.show(waiting))["state"] == "expired"
        assert (await at.poll(deferred["deferral_code"]))[1]["error"] == "invalid_grant"
        known = Receiver(world, broker, key=sidecar.key, stream=sidecar.stream)
        status, body = await known.ask("POST", known.path, {"returnImmediately": True})
        assert (status, body["code"]) == (404, "feed.no_stream")
        # And everybody goes on.
        fresh = (await issue(broker, world.form(world.workload())))["access_token"]
        assert claims_kid(fresh) != kid
        assert await active(broker, fresh)
        people = Provisioner(broker)
        on = {"op": "replace", "path": "active", "value": True}
        assert (await people.patch(f"/Users/{alice['id']}", on))[0] in {200, 204}
        assert await code_of(broker, for_alice) == "ok"
        _, actions, _ = await broker.manage("GET", "/v1/admin/actions")
        mine = [each for each in actions["items"] if each["action"] == "database.restored"]
        assert [(each["actor"], each["reason"]) for each in mine] == [
            ("system:restored", "the disk is gone")
        ]
        assert mine[0]["details"]["ended"]["approvals"] == 3
        assert (await broker.broker.base.actions.verify()).broken_at is None


def claims_kid(token: str) -> str:
    import jwt

    return str(jwt.get_unverified_header(token)["kid"])


async def test_what_is_known_not_to_have_ended_is_kept(made: Worlds, tmp_path: Path) -> None:
    world, backups = made(world_of(tmp_path, directory=directory()))
    async with desk_of(world) as at:
        people = Provisioner(at.served)
        await people.user("alice")
        await at.served.manage("POST", "/v1/grants", written(scopes=["tickets:archive"]))
        await at.served.manage("POST", "/v1/grants", written("two", scopes=["a"], max_uses=3))
        await create_windowed(at.served)
        await opened(at.served)
        approval = await at.opened()
        await at.approve(approval, uses=2)
        await backups.take()
    await backups.put_back()
    keep = [word for kind in KINDS for word in ("--keep", kind) if kind != "uses"]
    said = await done(world, *keep)
    assert said[4:] == [
        "counted grants: 2 ended",
        "grants: kept as they were",
        "windows: kept as they were",
        "approvals: kept as they were",
        "users: kept as they were",
        "nobody need attest itself anew",
        "ok: brokers may be started",
    ]
    async with desk_of(world) as at:
        broker = at.served
        assert await code(broker, scope="tickets:archive") == "issued"
        assert await code(broker, scope="a") == "grant.used_up", "uses were not to be kept"
        assert await code(broker) == "issued"
        assert (await at.ask())[0] == 200
        assert await code_of(broker, world.user_form(world.workload(), world.user("alice"))) == "ok"
    for _ in range(2):  # it may be run again, and be thought better of
        said = await done(world, *keep, "--attest")
        assert said[4] == "counted grants: 0 ended"
        assert said[-2] == "everybody must attest itself anew"


async def test_everybody_attests_anew_where_incidents_are_not_known(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    backups = Backups(world, None)
    async with serving(world) as broker:
        stolen, own = world.workload(), world.assertion()
        await issue(broker, world.form(stolen))
        await backups.take()
        body = {"subject": {"issuer": IDP, "subject": BOT}, "reason": "the pod was entered"}
        assert (await broker.manage("POST", "/v1/incidents", body))[0] == 201
        assert await code_of(broker, world.form(stolen)) == "subject.contained"
    await backups.put_back()
    await done(world, "--complete")
    async with serving(world) as broker:
        assert await code_of(broker, world.form(stolen)) == "ok", "the incident is forgotten"
    assert "everybody must attest itself anew" in await done(world, "--attest")
    async with serving(world) as broker:
        assert await code_of(broker, world.form(stolen)) == "subject.contained"
        # Whoever else was there before, as well.
        assert await code_of(broker, world.form(own)) == "subject.contained"
        later(world)
        assert await code_of(broker, world.form(world.workload())) == "subject.contained", "the key"
        world.proof_key = ProofKey()
        issued = await issue(broker, world.form(world.workload()))
        assert issued.get("epoch", 0) == 0
        assert await active(broker, issued["access_token"])
        # An incident after that asks for more, not for less.
        world.clock.advance(20)
        body = {"subject": {"issuer": IDP, "subject": BOT}, "reason": "again"}
        assert (await broker.manage("POST", "/v1/incidents", body))[0] == 201
        assert await code_of(broker, world.form(world.workload())) == "subject.contained"


async def test_a_database_that_was_moved_whole_goes_on(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    backups = Backups(world, None)
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
    async with serving(world) as broker:  # where it was
        assert await active(broker, token)
    await backups.take()
    await backups.put_back()
    with pytest.raises(ConfigError, match=r"restored\.undeclared"):
        async with serving(world):
            pass
    status, said = await restored(world, "--complete", "--attest")
    assert (status, "--complete ends nothing" in said) == (2, True), said
    await done(world, "--complete")
    async with serving(world) as broker:
        assert await active(broker, token)
        _, actions, _ = await broker.manage("GET", "/v1/admin/actions")
        assert actions["items"][0]["action"] == "database.moved"


async def test_a_running_broker_refuses_it(made: Worlds, tmp_path: Path) -> None:
    world, _ = made(World(tmp_path, free_url()))
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        status, said = await restored(world)
        assert (status, "restored.in_use" in said) == (2, True), said
        assert "nothing was changed" in said
        assert await active(broker, token)


async def test_what_can_t_be_is_said(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    world.write()
    assert "restored.no_database" in (await restored(world))[1]
    assert not (tmp_path / "broker.db").exists()
    (tmp_path / "broker.db").write_bytes(b"not a database, but of some length" * 100)
    status, said = await restored(world)
    assert (status, "restored.database" in said) == (2, True), said


def test_the_command_knows_what_can_be_kept() -> None:
    assert KINDS == KEPT

"""Broker, collector and sidecar as real processes, with a target in the test's own loop.

All of them keep their ports over restarts, so that one can be killed and started again under the
others. The workload has one token file, for broker and collector alike.
"""

from __future__ import annotations

import asyncio
import json
import os
import secrets
import signal
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from click.testing import CliRunner, Result

from tests.support.canaries import CANARIES
from tests.support.idp import Idp
from tests.support.ports import free_port
from tests.support.procs import Program
from tests.support.waiting import SECONDS, until
from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey
from valetkey.proxy.audit.reader import read_segment, segments

WORKLOAD = "system:serviceaccount:agents:bot"
USER = "alice@people.test.example"
TICKETS = "https://tickets.test.example"
PAYMENTS = "https://payments.test.example"


def token_of(request: web.Request) -> str:
    """The credential that a call brought to the target."""
    return request.headers["Authorization"].partition(" ")[2]


class Fleet:
    """Everything in one directory. Change ``routes`` and the like before `running`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.workloads = Idp(directory / "workloads", issuer="https://workloads.test.example")
        self.people = Idp(directory / "people", issuer="https://people.test.example")
        ports = {free_port() for _ in range(16)}
        self.broker_port, self.collector_port, self.port, self.admin_port, self.target_port = (
            ports.pop() for _ in range(5)
        )
        self.broker_url = f"http://127.0.0.1:{self.broker_port}"
        self.url = f"http://127.0.0.1:{self.port}"
        self.admin = f"http://127.0.0.1:{self.admin_port}"
        self.database = directory / "collector.db"
        self.token_file = directory / "token"
        self.spool = directory / "spool"
        self.config = directory / "proxy.yaml"
        self.received: list[web.Request] = []
        self.target: Callable[[web.Request], Awaitable[web.StreamResponse]] = self._answer
        self.broker_changes: dict[str, Any] = {}
        self.collector_changes: dict[str, Any] = {}
        self.sidecar_changes: dict[str, Any] = {}
        self.more_grants: list[dict[str, Any]] = []
        self.routes: list[dict[str, Any]] = [
            self.route("read", methods=["GET"]),
            self.route("write", methods=["POST"], scopes=["t:write"]),
            self.route("close", methods=["DELETE"], scopes=["t:write"], audit="durable"),
            self.route("gap", methods=["GET"], path="/gap/{id}", spool_full="record_gap"),
            self.route("refused", methods=["GET"], path="/refused/{id}", scopes=["t:never"]),
            self.route("once", methods=["GET"], path="/once/{id}", per_request=True),
        ]
        self.renew()
        self.broker = Program.of("broker", self._write_broker(), directory / "run")
        self.collector = Program.of("collector", self._write_collector(), directory / "run")
        self.sidecar = Program.of("proxy", self.config, directory / "run")

    @staticmethod
    def route(name: str, *, path: str = "/api/{id}", **more: Any) -> dict[str, Any]:
        methods = more.pop("methods")
        return {
            "id": name,
            "target": "tickets",
            "match": {"methods": methods, "path": path},
            "scopes": ["t:read"],
        } | more

    def renew(self, subject: str = WORKLOAD, ttl: float = 3600) -> None:
        """A new token in the workload's file."""
        self.workloads.token_file(self.token_file, subject, self.broker_url, ttl)

    def user_token(self) -> str:
        return self.people.mint(USER, self.broker_url)

    # --- settings -----------------------------------------------------------------------------

    def _write_broker(self) -> Path:
        directory = self.directory
        master = directory / "master.key"
        if not master.exists():
            secret = secrets.token_bytes(32)
            CANARIES.add(secret, name="master key", allow=[master])
            master.touch(mode=0o600)
            master.write_bytes(secret)
        self.grant()
        config = directory / "broker.yaml"
        config.write_text(
            json.dumps(
                {
                    "issuer": self.broker_url,
                    "bind": f"127.0.0.1:{self.broker_port}",
                    "database": f"sqlite+aiosqlite:///{directory / 'broker.db'}",
                    "master_key_file": str(master),
                    "grants_file": str(directory / "grants.yaml"),
                    "issuers": [
                        self.workloads.trust(self.broker_url, reusable=True),
                        self.people.trust(self.broker_url, "user"),
                    ],
                    "targets": {"tickets": {"audience": TICKETS, "credential": "bearer"}},
                }
                | self.broker_changes
            )
        )
        return config

    def grant(self, *scopes: str, workload: str = WORKLOAD) -> None:
        """Write the grants: the usual scopes, or these. A running broker takes them up."""
        grant = {
            "workload": workload,
            "issuer": self.workloads.issuer,
            "target": "tickets",
            "scopes": scopes or ("t:read", "t:write"),
        }
        grants = [
            {"id": "bot", **grant},
            {"id": "bot-for-users", **grant, "on_behalf_of": "users"},
            *({**grant, **more} for more in self.more_grants),
        ]
        fresh = self.directory / "grants.new"
        fresh.write_text(json.dumps({"grants": grants}))
        fresh.replace(self.directory / "grants.yaml")

    def _write_collector(self) -> Path:
        config = self.directory / "collector.yaml"
        config.write_text(
            json.dumps(
                {
                    "bind": f"127.0.0.1:{self.collector_port}",
                    "database": f"sqlite+aiosqlite:///{self.database}",
                    "issuers": [self.workloads.trust(self.broker_url, reusable=True)],
                }
                | self.collector_changes
            )
        )
        return config

    def tree(self) -> dict[str, Any]:
        """The sidecar's settings."""
        return {
            "workload": {"identity": {"file": str(self.token_file)}},
            "broker": {"url": self.broker_url, "timeout": "2s"},
            "collector": {"url": f"http://127.0.0.1:{self.collector_port}"},
            "spool": {"dir": str(self.spool), "segment_size": "256KiB", "max_size": "64MiB"},
            "instance": "agent-0",
            "listeners": [{"bind": f"127.0.0.1:{self.port}", "target": "tickets"}],
            "admin": {"bind": f"127.0.0.1:{self.admin_port}"},
            "targets": {
                "tickets": {
                    "url": f"http://127.0.0.1:{self.target_port}",
                    "audience": TICKETS,
                    "allow_networks": ["127.0.0.0/8"],
                    "credential": {"kind": "bearer"},
                }
            },
            "routes": self.routes,
            "timeouts": {"drain": "5s"},
        } | self.sidecar_changes

    def write(self) -> None:
        """Put the sidecar's settings into its file, atomically."""
        fresh = self.config.with_suffix(".new")
        fresh.write_text(json.dumps(self.tree()))
        fresh.replace(self.config)

    async def reload(self) -> None:
        """Have the sidecar take up its file as it is now, and wait until that is in force.

        One reload may have begun before the file was written: it is watched as well. The one after
        it has not.
        """
        for _ in range(2):
            before = await self.reloads()
            os.kill(self.sidecar.pid, signal.SIGHUP)

            async def applied(before: float = before) -> bool:
                return await self.reloads() > before

            await self.until(applied, "a reload")

    async def reloads(self) -> float:
        """How often the sidecar has taken up its file."""
        return await self.metric("valetkey_config_reloads_total", result="applied")

    # --- life ---------------------------------------------------------------------------------

    @asynccontextmanager
    async def running(
        self, *, collector: bool = True, broker: bool = True, sidecar: bool = True
    ) -> AsyncIterator[Fleet]:
        """Everything up and ready."""
        self._write_broker()
        self._write_collector()
        self.write()
        async with AsyncExitStack() as stack:
            runner = web.AppRunner(self._target_app(), access_log=None, shutdown_timeout=0.1)
            await runner.setup()
            stack.push_async_callback(runner.cleanup)
            await web.TCPSite(runner, "127.0.0.1", self.target_port, backlog=2048).start()
            for program, wanted in (
                (self.broker, broker),
                (self.collector, collector),
                (self.sidecar, sidecar),
            ):
                stack.callback(program.kill)
                if wanted:
                    program.start()
            if broker:
                await self.broker.ready(f"{self.broker_url}/readyz")
            if collector:
                await self.collector.ready(f"http://127.0.0.1:{self.collector_port}/readyz")
            if sidecar:
                await self.up()
            self.client = await stack.enter_async_context(
                aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
            )
            if broker and sidecar:
                await self.followed()
            yield self

    async def up(self) -> None:
        """Wait until the sidecar takes calls."""
        await self.sidecar.ready(f"{self.admin}/readyz")

    async def followed(self) -> None:
        """Wait until the sidecar hears from the broker; what it fetched before that is dropped."""

        async def heard() -> bool:
            return (await self.readyz())[1]["feed"] in {"connected", "off"}

        await self.until(heard, "the feed is followed")

    def _target_app(self) -> web.Application:
        async def handle(request: web.Request) -> web.StreamResponse:
            sent = request.headers.get("Authorization") or request.headers["Txn-Token"]
            CANARIES.add(sent.rpartition(" ")[2], name="access token")
            self.received.append(request)
            return await self.target(request)

        app = web.Application()
        app.router.add_route("*", "/{rest:.*}", handle)
        return app

    async def _answer(self, _request: web.Request) -> web.StreamResponse:
        return web.json_response({"status": "open"})

    # --- what tests ask -----------------------------------------------------------------------

    async def call(
        self, path: str = "/api/1", method: str = "GET", **more: Any
    ) -> tuple[int, dict[str, Any]]:
        """Status and JSON body of one call by the workload."""
        async with self.client.request(method, self.url + path, **more) as response:
            return response.status, await response.json(content_type=None)

    async def revoke(self, token: str) -> None:
        """Revoke a credential at the broker (RFC 7009), as the client that it was issued to."""
        key, nonce, url = ProofKey(), "", f"{self.broker_url}/revoke"
        form = {
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self.token_file.read_text(),
            "token": token,
        }
        for _ in range(2):  # RFC 9449 §8: the first proof learns the nonce
            now, jti = int(time.time()), secrets.token_urlsafe(8)
            proof = key.proof(method="POST", url=url, jti=jti, now=now, nonce=nonce)
            async with self.client.post(url, data=form, headers={"DPoP": proof}) as response:
                nonce, status = response.headers["DPoP-Nonce"], response.status
        assert status == 200

    async def granted(self, *scopes: str) -> None:
        """Write the grants, and wait until the broker has read them: no longer may it read."""
        assert "t:read" not in scopes
        self.grant(*scopes)

        async def read() -> bool:
            return (await self.call("/once/granted"))[0] == 403  # a new exchange every time

        await self.until(read, "the broker has read its grants")

    async def metric(self, name: str, base: str | None = None, **labels: str) -> float:
        """The sum of a metric's samples that carry these labels."""
        async with self.client.get(f"{base or self.admin}/metrics") as response:
            text = await response.text()
        wanted = [f'{label}="{value}"' for label, value in labels.items()]
        return sum(
            float(line.rpartition(" ")[2])
            for line in text.splitlines()
            if line.partition("{")[0].partition(" ")[0] == name
            and all(part in line for part in wanted)
        )

    async def readyz(self) -> tuple[int, dict[str, Any]]:
        async with self.client.get(f"{self.admin}/readyz") as response:
            return response.status, await response.json()

    async def until(
        self, holds: Callable[[], Awaitable[bool]], what: str, seconds: float = SECONDS
    ) -> None:
        """Ask until it holds, with a deadline."""
        await until(holds, what, seconds, poll=0.02)

    async def delivered(self) -> None:
        """Wait until the collector has acknowledged everything of the running sidecar."""

        async def settled() -> bool:
            return await self.metric("valetkey_spool_events") == 0

        await self.until(settled, "everything delivered")

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Events on record at the collector, in the order of arrival."""
        with closing(sqlite3.connect(self.database)) as connection:
            rows = connection.execute("SELECT raw FROM events ORDER BY cursor").fetchall()
        found = [json.loads(raw) for (raw,) in rows]
        return [event for event in found if not kind or event["type"] == kind]

    async def spooled(self, kind: str = "") -> list[dict[str, Any]]:
        """Events in the sidecar's spool, in order (without a collector, all that there are)."""
        raws = await asyncio.to_thread(
            lambda: [r.raw for path in segments(self.spool) for r in read_segment(path)]
        )
        found = [json.loads(raw) for raw in raws]
        return [event for event in found if not kind or event["type"] == kind]

    async def verify(self) -> Result:
        """``valetkey audit verify`` on the collector's database."""
        from valetkey.cli.main import main

        return await asyncio.to_thread(
            CliRunner().invoke, main, ["audit", "verify", "--db", str(self.database)]
        )

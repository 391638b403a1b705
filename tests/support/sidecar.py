"""A real sidecar and a real broker as processes, and raw sockets that talk to the sidecar."""

from __future__ import annotations

import asyncio
import json
import re
import socket
import time
import urllib.request
from pathlib import Path
from typing import Any, Final, Self

from tests.support.canaries import CANARIES
from tests.support.idp import Idp
from tests.support.ports import free_port
from tests.support.procs import Program
from tests.support.recording import TIMEOUT, Ended, Wire
from valetkey.proxy.audit.reader import read_spool

BOT: Final = "spiffe://demo.example/ns/agents/sa/bot"
AUDIENCE: Final = "https://upstream.example"
BOUND: Final = "https://bound.example"
LOOPBACK: Final = ["127.0.0.0/8"]


class World:
    """Issuers, a broker process that trusts them, and the bot's token file."""

    def __init__(self, directory: Path, prefix: tuple[str, ...] = ()) -> None:
        self.directory = directory
        self.idp = Idp(directory / "idp", issuer="https://idp.wire.example")
        self.users = Idp(directory / "users", issuer="https://users.wire.example")
        self.url = f"http://127.0.0.1:{free_port()}"
        self.token_file = directory / "token"
        self.idp.token_file(self.token_file, BOT, [self.url])
        self.broker = Program.of("broker", self._broker_config(), directory / "run", prefix=prefix)

    def start(self) -> None:
        self.broker.start()
        asyncio.run(self.broker.listening())

    def user(self, name: str, ttl: float = 600) -> str:
        """A user's token that the broker believes."""
        return self.users.mint(name, self.url, ttl)

    def sidecar(self, name: str, targets: dict[str, Any], **sections: Any) -> Sidecar:
        """A sidecar process, started. ``targets`` as in settings; each gets one route for all.

        ``descriptors``: how many files it may have open.
        """
        prefix, descriptors = sections.pop("prefix", ()), sections.pop("descriptors", None)
        routes = sections.pop("routes", None) or [whole(target) for target in targets]
        document = {
            "workload": {"identity": {"file": str(self.token_file)}},
            "broker": {"url": self.url},
            "spool": {"dir": str(self.directory / name / "spool"), "max_size": "256MiB"},
            "listeners": [{"bind": "127.0.0.1:0"}],
            "admin": {"bind": "127.0.0.1:0"},
            "instance": name,
            "targets": targets,
            "routes": routes,
            **sections,
        }
        directory = self.directory / name
        directory.mkdir(parents=True, exist_ok=True)
        config = directory / "proxy.yaml"
        config.write_text(json.dumps(document))
        program = Program.of("proxy", config, directory, prefix=prefix, descriptors=descriptors)
        return Sidecar(program, directory).start()

    def _broker_config(self) -> Path:
        path = self.directory / "broker.yaml"
        master = self.directory / "master.key"
        master.write_bytes(bytes(range(32)))
        master.chmod(0o600)
        CANARIES.allow(master)
        grants = self.directory / "grants.yaml"
        scopes = ["s:read", "s:write"]
        grants.write_text(
            json.dumps(
                {
                    "grants": [
                        {
                            "id": f"bot-{target}",
                            "workload": BOT,
                            "issuer": self.idp.issuer,
                            "target": target,
                            "scopes": scopes,
                            "on_behalf_of": "users",
                        }
                        for target in ("plain", "bound")
                    ]
                }
            )
        )
        path.write_text(
            json.dumps(
                {
                    "issuer": self.url,
                    "bind": self.url.removeprefix("http://"),
                    "database": f"sqlite+aiosqlite:///{self.directory / 'broker.db'}",
                    "master_key_file": str(master),
                    "grants_file": str(grants),
                    "issuers": [
                        self.idp.trust(self.url, reusable=True, audience_list=True),
                        self.users.trust(self.url, "user"),
                    ],
                    "targets": {
                        "plain": {"audience": AUDIENCE, "credential": "bearer"},
                        "bound": {"audience": BOUND, "credential": "dpop"},
                    },
                }
            )
        )
        return path


def target(url: str, **more: Any) -> dict[str, Any]:
    """A target with a bearer credential that may be on loopback."""
    return {
        "url": url,
        "audience": AUDIENCE,
        "credential": {"kind": "bearer"},
        "allow_networks": LOOPBACK,
        **more,
    }


ALL_METHODS: Final = ["GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"]


def whole(name: str, **more: Any) -> dict[str, Any]:
    """One route for everything on a target."""
    return {
        "id": name,
        "target": name,
        "match": {"methods": ALL_METHODS, "path": "/{rest*}"},
        "scopes": ["s:read"],
        **more,
    }


def lanes(url: str, count: int) -> dict[str, Any]:
    """Targets ``lane0``… by prefix, all to one upstream: each has a pool of its own."""
    return {f"lane{n}": target(url, prefix=f"/lane{n}") for n in range(count)}


class Sidecar:
    """The process and its port."""

    def __init__(self, program: Program, directory: Path) -> None:
        self.program = program
        self.directory = directory
        self.port = 0
        """Of the first listener; those of all are in `ports`, a Unix socket's is 0."""
        self.ports: list[int] = []
        self.admin = 0
        self._lanes = 0
        self._clients: list[Client] = []

    def start(self) -> Sidecar:
        self.program.start()
        asyncio.run(self._started())
        return self

    async def _started(self) -> None:
        await self.program.event("ready")
        for line in self.program.log():
            if line.get("event") == "listening":
                if line["listener"] == "admin":
                    self.admin = int(line["port"])
                else:
                    self.ports.append(int(line["port"]))
        self.port = self.ports[0]

    def lane(self) -> str:
        """A prefix whose pool nobody has used."""
        self._lanes += 1
        return f"/lane{self._lanes - 1}"

    def open(self, listener: int = 0) -> Client:
        """A raw connection to a listener, by its place in settings."""
        where = ("127.0.0.1", self.ports[listener])
        client = Client(socket.create_connection(where, timeout=TIMEOUT))
        self._clients.append(client)
        return client

    def metrics(self) -> str:
        """What `/metrics` says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.admin}/metrics") as page:
            text: str = page.read().decode()
        return text

    def metric(self, name: str) -> float:
        """A metric's value now, by its name with labels; 0 where there is none yet."""
        for line in self.metrics().splitlines():
            if line.startswith(name + " "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """What is in the spool now, in order: everything, or the events of one type.

        A heartbeat may come between any two of them (each 30 s), so what a test is about it picks
        by type, never by place.
        """
        found = [
            json.loads(record.raw)
            for record in read_spool(self.directory / "spool")
            if not record.problem
        ]
        return [event for event in found if not kind or event["type"] == kind]

    def ask(self, raw: bytes, listener: int = 0) -> Answer:
        """One request on a connection of its own; what is behind the answer is an error."""
        with self.open(listener) as client:
            client.send(raw)
            return client.answer(head_only=raw.startswith(b"HEAD "))

    def stop(self) -> None:
        try:
            assert asyncio.run(self.program.stop()) == 0
        finally:
            self.kill()

    def kill(self) -> None:
        """End it, whatever state it is in, and everything that is open to it."""
        self.program.kill()
        for client in self._clients:
            client.close()
        self._clients.clear()

    def defects(self) -> list[dict[str, Any]]:
        """Log lines that no caller or target may be able to cause."""
        return [
            line
            for line in self.program.log()
            if line.get("event") in {"call_broke", "connection_broke"}
            or line.get("level") == "critical"
        ]


class Answer:
    """One response as it came over the wire."""

    def __init__(self, head: bytes, body: bytes) -> None:
        self.head = head
        self.wire = body
        match = re.match(rb"HTTP/1\.1 ([0-9]{3}) ?([^\r]*)\r\n", head)
        assert match, head
        self.status = int(match[1])
        self.reason = match[2]
        self.chunked = b"\r\ntransfer-encoding: chunked\r\n" in head
        self.body = dechunk(body) if self.chunked else body

    def values(self, name: str) -> list[str]:
        return [
            value.strip()
            for field, _, value in (
                line.partition(":") for line in self.head.decode("latin-1").split("\r\n")[1:]
            )
            if field.lower() == name.lower()
        ]

    @property
    def code(self) -> str:
        """The problem's code, or empty for an answer that is the target's."""
        if self.values("content-type") != ["application/problem+json"] or not self.body:
            return ""
        return str(json.loads(self.body)["code"])

    @property
    def closes(self) -> bool:
        return self.values("connection") == ["close"]


def dechunk(wire: bytes) -> bytes:
    """The payload of a whole chunked body, with nothing behind it."""
    body = b""
    while True:
        line, _, wire = wire.partition(b"\r\n")
        size = int(line, 16)
        if not size:
            assert wire == b"\r\n", wire
            return body
        body += wire[:size]
        assert wire[size : size + 2] == b"\r\n"
        wire = wire[size + 2 :]


class Client(Wire):
    """A raw connection to the sidecar."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def answer(self, *, head_only: bool = False) -> Answer:
        """The next final response, read by its framing (or to the end of the connection)."""
        head = self.until(b"\r\n\r\n")
        status = head.split(b" ", 2)[1]
        if head_only or status in {b"204", b"304"}:
            return Answer(head, b"")
        framed = re.search(rb"\r\n(content-length|transfer-encoding):", head.lower())
        return Answer(head, self.body(head) if framed else self.rest())

    def slowly(self, raw: bytes, *cuts: int) -> None:
        """Send in pieces that arrive as such."""
        for begin, end in zip((0, *cuts), (*cuts, len(raw)), strict=True):
            if begin < end:
                self.send(raw[begin:end])
                time.sleep(0.001)

    def broken(self) -> bool:
        """Whether the message that is being read ends before its end."""
        try:
            self.answer()
        except (Ended, ConnectionResetError):
            return True
        return False

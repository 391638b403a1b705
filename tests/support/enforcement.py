"""The real enforcement point, record and connections, without sockets or other processes."""

from __future__ import annotations

import base64
import json
import os
import time
from pathlib import Path
from typing import Any

import msgspec

from valetkey.contracts import events
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.secret import Secret
from valetkey.contracts.settings import parse
from valetkey.proxy.audit.reader import SegmentTail
from valetkey.proxy.audit.recorder import Recorder
from valetkey.proxy.audit.spool import Spool
from valetkey.proxy.core.compilation import compile_snapshot
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.core.eviction import Ended
from valetkey.proxy.credentials.cache import CredentialCache
from valetkey.proxy.credentials.held import HeldCalls
from valetkey.proxy.http1.dial import Dialler
from valetkey.proxy.http1.inbound import WorkloadConnection
from valetkey.proxy.http1.outbound import Place, TargetConnection
from valetkey.proxy.http1.outbox import Outbox
from valetkey.proxy.http1.resolver import Resolver
from valetkey.proxy.identity.file import FileIdentity
from valetkey.proxy.limits import Capacity, LimitHits
from valetkey.proxy.metrics import Metrics
from valetkey.proxy.pep import EnforcementPoint
from valetkey.proxy.revocation import Revocation
from valetkey.proxy.settings import ProxySettings

CANARY = "canary-7f3b9c1e5d2a"
SETTINGS: dict[str, Any] = {
    "workload": {"identity": {"file": "/nonexistent"}},
    "broker": {"url": "http://127.0.0.1:1"},
    "spool": {"dir": "/nonexistent"},
    "listeners": [{"bind": "127.0.0.1:0", "target": "tickets"}],
    "targets": {
        "tickets": {
            "url": "http://127.0.0.1:1",
            "audience": "https://tickets.test.example",
            "credential": {"kind": "bearer"},
        }
    },
    "routes": [
        {
            "id": "read.all",
            "target": "tickets",
            "match": {"methods": ["GET", "HEAD", "PUT", "PURGE"], "path": "/api/{rest*}"},
            "scopes": ["100%s", "t:read", "%d%%"],
        },
        {
            "id": "tools",
            "target": "tickets",
            "match": {"path": "/mcp", "mcp": {"methods": ["tools/*"], "tools": ["get_*"]}},
            "scopes": ["t:read"],
        },
    ],
}


class Wire:
    """A transport that keeps what was written."""

    def __init__(self) -> None:
        self.written = b""

    def write(self, data: bytes) -> None:
        self.written += data

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, _name: str) -> tuple[str, int]:
        return ("127.0.0.1", 4444)

    def pause_reading(self) -> None: ...

    resume_reading = close = abort = write_eof = pause_reading

    def can_write_eof(self) -> bool:
        return True


class Turn:
    """The part of an event loop that the outbox needs."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def call_soon(self, call: Any) -> None:
        self.waiting.append(call)

    def run(self) -> None:
        waiting, self.waiting = self.waiting, []
        for call in waiting:
            call()


class Stand:
    """An enforcement point over a real spool; the broker is a credential in the cache.

    ``exchange`` is asked for what is not there; ``spool`` are settings of it.
    """

    def __init__(
        self,
        directory: Path,
        *,
        exchange: Any = None,
        settings: dict[str, Any] = SETTINGS,
        **spool: Any,
    ) -> None:
        loaded = parse(ProxySettings, json.dumps(settings), name="test", program="proxy")
        token = directory / "token"
        token.write_text(jwt(exp=time.time() + 3600))
        self.identity = FileIdentity(token)
        self.identity.refresh()
        key = ProofKey()
        self.snapshot = compile_snapshot(loaded, thumbprint=key.thumbprint)
        self.spool = Spool(
            directory / "spool",
            **({"segment_size": 4 << 20, "max_size": 1 << 30, "commit_every": 0.005} | spool),
        )
        self.recorder = Recorder(self.spool, "agent-0")
        self.cache = CredentialCache(10)
        self.held = HeldCalls(10)
        self.turn = Turn()
        capacity = Capacity(LimitHits(), descriptors=1024, in_use=16)
        self.pep = EnforcementPoint(
            self.snapshot, self.identity, self.cache, exchange, self.held, key, self.spool,
            self.recorder, Metrics(), Outbox(self.turn, self.spool), Dialler(Resolver(), capacity),
            capacity,
        )  # fmt: skip
        self.tail = SegmentTail.open(self.spool.current_path)
        self.checked = events.ChainHead(self.spool.boot, 0, events.GENESIS)

    def revoke(self, ended: Ended) -> None:
        Revocation(self.cache, self.held, self.pep).revoke(ended)

    def credential(self, number: int = 0, **fields: str) -> None:
        """What the broker answered for that route."""
        route = self.snapshot.routes[number]
        key = self.identity.principal().key(route, self.snapshot.policy_digest)
        token = Secret(CANARY)
        now = time.monotonic()
        self.cache.put(Credential(
            key, token, b"authorization: Bearer " + token.reveal().encode() + b"\r\n",
            expires_at=now + 1000, refresh_at=now + 800,
            **{"subject": "bot", "actor": "bot", "jti": "j", "txn": "t", "policy_digest": "d"}
            | fields,
        ))  # fmt: skip

    def cached(self) -> Credential:
        (credential,) = self.cache._entries.values()
        return credential

    def open(self) -> WorkloadConnection:
        connection = WorkloadConnection(self.pep, Entry(target="tickets"))
        connection.connection_made(Wire())
        return connection

    def target(self) -> TargetConnection:
        """An idle connection to the target."""
        pool = self.pep.ways.by_target[self.snapshot.targets["tickets"]].pool
        connection = TargetConnection(pool)
        connection.connection_made(Wire())
        connection.place = Place.IDLE
        connection.idle_since = time.monotonic()
        pool._idle.append(connection)
        return connection

    def call(self, request: bytes, answer: bytes = b"HTTP/1.1 204 No Content\r\n\r\n") -> bytes:
        connection, target = self.open(), self.target()
        connection.data_received(request)
        self.turn.run()
        if connection.call is not None:
            target.data_received(answer)
            self.turn.run()
        connection.connection_lost(None)
        target.connection_lost(None)
        return connection.transport.written if connection.transport else b""

    def events(self) -> list[bytes]:
        """What was recorded since the last time: whole, readable, a chain."""
        self.spool.keep()
        records = self.tail.read(10_000)
        raws = [record.raw for record in records]
        assert not any(record.problem for record in records)
        for raw in raws:
            assert CANARY.encode() not in raw
            events.read(raw)
            msgspec.json.decode(raw)  # to the last member, strictly UTF-8
            json.loads(raw)
        self.checked, breaks = events.check_chain(self.spool.boot, raws, after=self.checked)
        assert breaks == []
        return raws

    def close(self) -> None:
        self.spool._current.close()
        os.close(self.spool._lock)


def jwt(**claims: Any) -> str:
    def part(value: Any) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    payload = {"iss": "https://idp.test.example", "sub": 'bot "%s" \\ ü'} | claims
    return f"{part({'alg': 'ES256'})}.{part(payload)}.{part({'sig': CANARY})}"

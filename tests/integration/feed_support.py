"""A receiver of the feed, as small as it can be: it signs its requests and keeps what it got."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from tests.integration.broker_support import BOT, Served, World
from valetkey.broker.parts.signals import SignalsPart
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.sets import read_keys, verify_set
from valetkey.contracts.signals import Event, Signal, fleet_audience, read_event


def feed_of(served: Served) -> Any:
    """The replica's feed, where tests need to look into it."""
    return next(part for part in served.broker.parts if isinstance(part, SignalsPart)).feed


async def publish(served: Served, *signals: Signal) -> None:
    """What a part does: tell, in a transaction; in force at this replica before it goes on."""
    base = served.broker.base
    async with base.database.write() as connection:
        for signal in signals:
            await base.signals.publish(connection, signal)
    await base.changes.catch_up()


async def acknowledged(served: Served, txn: str) -> dict[str, float | None]:
    """By stream, when it had acknowledged all of ``txn``."""
    told = await served.broker.base.signals.progress(txn)
    return {one.stream: one.acknowledged_at for one in told}


def ended(value: str, **more: Any) -> Signal:
    return Signal(**{"kind": "txn", "value": value, "at": 1.5, **more})


@dataclass
class Receiver:
    """One sidecar, or whoever ``token`` says."""

    world: World
    served: Served
    subject: str = BOT
    token: str = ""
    key: ProofKey | None = field(default_factory=ProofKey)
    stream: dict[str, Any] = field(default_factory=dict)
    closed: bool = False
    """Whether the broker ended the connection with its last answer."""
    _nonces: dict[str, str] = field(default_factory=dict)

    async def ask(
        self, method: str, path: str, document: Any = None, **more: Any
    ) -> tuple[int, Any]:
        """Status and document of one request, with the nonce that it takes."""
        for _ in range(2):
            status, body, nonce = await self._once(method, path, document, **more)
            if nonce:
                self._nonces[self.served.where] = nonce
            if status != 401 or not isinstance(body, dict) or body.get("code") != "dpop.nonce":
                break
        return status, body

    async def _once(
        self, method: str, path: str, document: Any, **more: Any
    ) -> tuple[int, Any, str]:
        token = self.token or self.world.workload(self.subject)
        headers = {"Authorization": f"Bearer {token}", **more.pop("headers", {})}
        if self.key is not None:
            headers["DPoP"] = self.key.proof(
                method=method,
                url=self.world.url + path.partition("?")[0],
                jti=secrets.token_urlsafe(12),
                now=int(self.world.clock()),
                nonce=self._nonces.get(self.served.where, ""),
            )
        async with self.served.client.request(
            method, self.served.where + path, json=document, headers=headers, **more
        ) as response:
            self.closed = response.headers.get("Connection") == "close"
            text = await response.text()
            body = await response.json(content_type=None) if text else None
            return response.status, body, response.headers.get("DPoP-Nonce", "")

    async def begin(self, **wanted: Any) -> None:
        status, self.stream = await self.ask("POST", "/ssf/streams", wanted)
        assert status == 201, self.stream

    @property
    def id(self) -> str:
        return str(self.stream["stream_id"])

    async def poll(self, wait: int = 0, **asked: Any) -> dict[str, Any]:
        """The answer of one poll; with ``wait``, a long one."""
        status, body = await self.ask(
            "POST",
            self.path,
            {"returnImmediately": not wait, **asked},
            headers={"Prefer": f"wait={wait}"},
        )
        assert status == 200, body
        return dict(body)

    @property
    def path(self) -> str:
        return str(self.stream["delivery"]["endpoint_url"]).removeprefix(self.world.url)

    async def events(self, answer: dict[str, Any], audience: str = "") -> list[Event]:
        """What an answer told, each verified the way a sidecar does it."""
        keys = read_keys((await self.served.get("/jwks"))[1])
        return [
            read_event(
                verify_set(
                    compact,
                    keys,
                    issuer=self.world.url,
                    audience=audience or fleet_audience(self.world.url),
                    now=self.world.clock(),
                ),
                issuer=self.world.url,
            )
            for compact in answer["sets"].values()
        ]

    async def take(self, wait: int = 0) -> list[Event]:
        """Poll, and acknowledge all that came."""
        answer = await self.poll(wait)
        if answer["sets"]:
            await self.poll(ack=list(answer["sets"]), maxEvents=0)
        return await self.events(answer)

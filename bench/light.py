"""Sidecars of which only the requests are real, so that one process can stand for thousands.

What they send, and what they do with nonces, failures and connections, is as the sidecar's own
clients have it (`valetkey.proxy.feed_client`, `valetkey.proxy.credentials.exchange`).
"""

from __future__ import annotations

import asyncio
import random
import secrets
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.signals import STANDBY_NONCE
from valetkey.proxy.feed import _FIRST_PAUSE, _LONGEST_PAUSE

WAIT = 20
"""How long a poll waits: a third of ``broker.feed.tolerance``."""
_ATTEMPTS = 3


class Failed(Exception):  # noqa: N818 - what happened to a request
    """No answer, or none that helps: ``status`` 0 is no answer at all."""

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(f"{status} {reason}")
        self.status = status
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    fields: Mapping[str, str]
    body: bytes


class Line:
    """One HTTP/1.1 connection: opened when it is needed, closed after ``idle`` seconds without use.

    ``ports`` says each time where to; the first that takes the connection has it. ``source`` is the
    loopback address that it comes from.
    """

    def __init__(
        self, ports: Callable[[], Iterable[int]], *, source: str = "", idle: float | None = None
    ) -> None:
        self._ports = ports
        self._source = (source, 0) if source else None
        self._idle = idle
        self._closing: asyncio.TimerHandle | None = None
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.port = 0
        """Where it goes, or went last."""

    async def send(self, request: bytes, timeout: float) -> Answer:
        """Raises `Failed` where no answer comes in time; the connection is gone then."""
        if self._closing is not None:
            self._closing.cancel()
        try:
            async with asyncio.timeout(timeout):
                answer = await self._exchange(request)
        except BaseException as error:
            self.close()
            if isinstance(error, OSError | EOFError):  # TimeoutError is an OSError
                raise Failed(0, type(error).__name__) from error
            raise
        if answer.fields.get("connection") == "close":
            self.close()
        elif self._idle is not None:
            self._closing = asyncio.get_running_loop().call_later(self._idle, self.close)
        return answer

    async def _exchange(self, request: bytes) -> Answer:
        if self._streams is None:
            self._streams = await self._open()
        reader, writer = self._streams
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = head.split("\r\n")
        fields = {name.lower(): v.strip() for name, _, v in (f.partition(":") for f in lines[1:])}
        body = await reader.readexactly(int(fields.get("content-length", "0")))
        return Answer(int(head.split(" ", 2)[1]), fields, body)

    async def _open(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        refused: OSError = ConnectionRefusedError()
        for port in self._ports():
            self.port = port
            try:
                return await asyncio.open_connection("127.0.0.1", port, local_addr=self._source)
            except ConnectionRefusedError as error:
                refused = error
        raise refused

    def close(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


class Prover:
    """Requests to the broker with a proof of possession each, by a key of its own.

    ``url`` is the broker's. ``timeout`` is in seconds: a sidecar's ``broker.timeout``; where an
    answer is asked to wait, it may come later by twice that.
    """

    def __init__(self, url: str, line: Line, *, timeout: float = 5.0) -> None:
        self._url = url
        self._host = url.partition("://")[2]
        self.line = line
        self._timeout = timeout
        self._key = ProofKey()
        self._nonce = self._standby = ""
        self.refused = 0
        """Requests that were repeated for the nonce."""

    async def post(
        self, path: str, body: bytes, content_type: str, more: str = "", *, wait: float = 0.0
    ) -> Answer:
        """An answer, whatever its status. ``wait``: how long it is asked to take.

        Raises `Failed`.
        """
        timeout = wait + 2 * self._timeout if wait else self._timeout
        for _ in range(_ATTEMPTS):
            request = self._request(path, body, content_type, more)
            try:
                answer = await self.line.send(request, timeout)
            except Failed:
                # The replica may be gone, and no other takes its own nonces.
                self._nonce = self._standby or self._nonce
                raise
            self._nonce = answer.fields.get("dpop-nonce", self._nonce)
            self._standby = answer.fields.get(STANDBY_NONCE.lower(), self._standby)
            if answer.status not in {400, 401} or "dpop-nonce" not in answer.fields:
                break
            self.refused += 1
        return answer

    def _request(self, path: str, body: bytes, content_type: str, more: str) -> bytes:
        proof = self._key.proof(
            method="POST", url=self._url + path, jti=secrets.token_urlsafe(16),
            now=int(time.time()), nonce=self._nonce,
        )  # fmt: skip
        return (
            f"POST {path} HTTP/1.1\r\nHost: {self._host}\r\nAccept: application/json\r\n{more}"
            f"DPoP: {proof}\r\nContent-Type: {content_type}\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body


class Light:
    """A sidecar that follows the feed, and does nothing else."""

    def __init__(self, url: str, token: str, line: Line, *, timeout: float = 5.0) -> None:
        self._feed = Prover(url, line, timeout=timeout)
        self._bearer = f"Authorization: Bearer {token}\r\n"
        self.stream = ""
        self._ack: list[str] = []
        self.got: dict[str, float] = {}
        """When an event first came (`time.monotonic`), by ``jti``."""

    async def begin(self) -> None:
        """A stream. Raises `Failed`."""
        path = "/ssf/streams"
        answer = await self._feed.post(path, b"{}", "application/json", self._bearer)
        if answer.status != 201:
            raise Failed(answer.status, "no stream")
        self.stream = msgspec.json.decode(answer.body)["stream_id"]
        self._ack = []

    async def poll(self, *, wait: int) -> None:
        """What there is, or comes within ``wait`` seconds. Raises `Failed`."""
        asked = msgspec.json.encode({"ack": self._ack, "returnImmediately": wait <= 0})
        more = f"{self._bearer}Prefer: wait={wait}\r\n"
        path = f"/ssf/poll/{self.stream}"
        answer = await self._feed.post(path, asked, "application/json", more, wait=wait)
        if answer.status != 200:
            raise Failed(answer.status, "no events")
        now = time.monotonic()
        self._ack = list(msgspec.json.decode(answer.body)["sets"])
        for jti in self._ack:
            self.got.setdefault(jti, now)

    async def run(self) -> None:
        """Follow until cancelled, as `valetkey.proxy.feed.FeedReceiver` does."""
        problem, pause = True, 0.0
        while True:
            try:
                if not self.stream:
                    await self.begin()
                # After a failure, hear at once that the broker is back.
                await self.poll(wait=0 if problem else WAIT)
            except Failed as failed:
                if not problem:
                    self.away()
                self.failed(failed)
                if failed.status == 404:
                    self.stream = ""
                problem, pause = True, pause or _FIRST_PAUSE
                await asyncio.sleep(random.uniform(0, pause))
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                if problem:
                    self.back()
                problem, pause = False, 0.0

    def away(self) -> None:
        """It does not hear the broker any more."""

    def back(self) -> None:
        """It hears the broker, for the first time or again."""

    def failed(self, failed: Failed) -> None:
        """A request of the feed failed."""

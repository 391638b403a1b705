"""The feed on the wire: SSF 1.0 streams and polls (RFC 8936) at the broker, over aiohttp.

The workload's token authenticates, with a proof of possession for each request, as at ``/token``.
The key of these proofs is the receiver's own: the stream is bound to it, so that nobody else with
the same identity can take its events.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Protocol

import aiohttp
import msgspec

from valetkey.contracts import codes
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import BrokerError
from valetkey.contracts.jose import TokenInvalid
from valetkey.contracts.secret import Secret
from valetkey.contracts.sets import SetKeys, SetRefused, read_keys
from valetkey.contracts.signals import STANDBY_NONCE
from valetkey.contracts.trusted_roots import TrustedRoots
from valetkey.proxy.credentials.exchange import NONCE_RETRIES

_STREAMS: Final = "/ssf/streams"
_POLL: Final = "/ssf/poll/"
_JWKS: Final = "/jwks"
# A hundred events of a kilobyte, and room.
_MAX_ANSWER: Final = 1 << 20
_GRACE: Final = 10.0


class Identity(Protocol):
    """Whose token authenticates."""

    def token(self) -> tuple[Secret, float]: ...


class NoStream(Exception):  # noqa: N818 - reads as what it is
    """The broker knows no such stream (any more): what it would have told is not known."""


class _Created(msgspec.Struct, frozen=True):
    stream_id: str


class _Polled(msgspec.Struct, frozen=True, rename="camel"):
    sets: dict[str, str] = {}
    more_available: bool = False


_CREATED: Final = msgspec.json.Decoder(_Created)
_POLLED: Final = msgspec.json.Decoder(_Polled)


class FeedClient:
    """Requests to one broker at ``url``; ``timeout`` (seconds) is for what does not wait."""

    def __init__(
        self, url: str, identity: Identity, *, ca_file: Path | None, timeout: float
    ) -> None:
        self._url = url
        self._identity = identity
        self._key = ProofKey()
        self._nonce = ""
        self._standby = ""
        https = url.startswith("https:")
        self.roots = TrustedRoots("broker.ca_file", ca_file) if https else None
        self._timeout = timeout
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def create(self, description: str) -> str:
        """A new stream of all that ends from now on. Raises `BrokerError`."""
        status, body = await self._send("POST", _STREAMS, {"description": description})
        if status != 201:
            raise _refused(status)
        try:
            return _CREATED.decode(body).stream_id
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BrokerError(codes.BROKER_BAD_RESPONSE, "no stream in the answer") from error

    async def delete(self, stream: str) -> None:
        """End a stream. Raises `BrokerError`."""
        status, _ = await self._send("DELETE", f"{_STREAMS}?stream_id={stream}", None)
        if status not in {204, 404}:
            raise _refused(status)

    async def poll(
        self,
        stream: str,
        *,
        ack: list[str],
        errors: Mapping[str, SetRefused],
        wait: int,
    ) -> tuple[dict[str, str], bool]:
        """SETs by ``jti``, and whether there are more; waits for one for ``wait`` seconds.

        Raises `NoStream`, `BrokerError`.
        """
        asked = {
            "ack": ack,
            "setErrs": {
                jti: {"err": one.err, "description": one.description} for jti, one in errors.items()
            },
            "returnImmediately": wait <= 0,
        }
        headers = {"Prefer": f"wait={max(wait, 0)}"}  # RFC 7240 §4.3
        status, body = await self._send("POST", _POLL + stream, asked, headers, wait)
        if status == 404:
            raise NoStream
        if status != 200:
            raise _refused(status)
        try:
            answer = _POLLED.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise BrokerError(codes.BROKER_BAD_RESPONSE, "no sets in the answer") from error
        return answer.sets, answer.more_available

    async def keys(self) -> SetKeys:
        """The broker's keys as they are now. Raises `BrokerError`."""
        status, body, _ = await self._send_once("GET", _JWKS, None, {}, 0, "", signed=False)
        if status != 200:
            raise _refused(status)
        try:
            return read_keys(body)
        except TokenInvalid as error:
            raise BrokerError(codes.BROKER_BAD_RESPONSE, str(error)) from error

    async def _send(
        self,
        method: str,
        path: str,
        document: Any,
        headers: Mapping[str, str] | None = None,
        wait: int = 0,
    ) -> tuple[int, bytes]:
        sent = headers or {}
        status, body, asked = await self._send_once(method, path, document, sent, wait, self._nonce)
        for _ in range(NONCE_RETRIES):
            if not asked:
                break
            # RFC 9449 §9: once more, with the nonce that came with the refusal; as in an exchange,
            # until it is the turn of the replica that gave it.
            status, body, again = await self._send_once(method, path, document, sent, wait, asked)
            if not again or again == asked:
                break
        return status, body

    async def _send_once(
        self,
        method: str,
        path: str,
        document: Any,
        headers: Mapping[str, str],
        wait: int,
        nonce: str,
        *,
        signed: bool = True,
    ) -> tuple[int, bytes, str]:
        """Status, body, and the nonce to repeat it with if that is what was wrong."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        sent = {"Accept": "application/json", **headers}
        if signed:
            sent["Authorization"] = f"Bearer {self._identity.token()[0].reveal()}"
            sent["DPoP"] = self._key.proof(
                method=method,
                url=self._url + path.partition("?")[0],
                jti=secrets.token_urlsafe(16),
                now=int(time.time()),
                nonce=nonce,
            )
        body = None
        if document is not None:
            body = msgspec.json.encode(document)
            sent["Content-Type"] = "application/json"
        # A connection that died without a word shows by an answer that is overdue.
        limit = wait + _GRACE if wait > 0 else self._timeout
        try:
            async with self._session.request(
                method,
                self._url + path,
                data=body,
                headers=sent,
                ssl=self.roots.context if self.roots is not None else True,
                timeout=aiohttp.ClientTimeout(total=limit),
                allow_redirects=False,
            ) as response:
                answer = await response.content.read(_MAX_ANSWER + 1)
                while len(answer) <= _MAX_ANSWER and not response.content.at_eof():
                    answer += await response.content.read(_MAX_ANSWER + 1 - len(answer))
                if len(answer) > _MAX_ANSWER:
                    raise BrokerError(codes.BROKER_BAD_RESPONSE, "the answer is too large")
                given = response.headers.get("DPoP-Nonce", "")
                self._nonce = given or self._nonce
                self._standby = response.headers.get(STANDBY_NONCE, "") or self._standby
                challenge = response.headers.get("WWW-Authenticate", "")
                wanted = response.status == 401 and 'error="use_dpop_nonce"' in challenge
                return response.status, answer, given if wanted else ""
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # The replica may be gone, and no other takes its own nonces.
            self._nonce = self._standby or self._nonce
            raise BrokerError(codes.BROKER_UNAVAILABLE, type(error).__name__) from error


def _refused(status: int) -> BrokerError:
    return BrokerError(codes.BROKER_UNAVAILABLE, f"the feed answered {status}")

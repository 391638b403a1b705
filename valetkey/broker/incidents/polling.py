"""Fetching security events (RFC 8936): asked for again and again, acknowledged once in force.

An acknowledgement goes with the next request. If this broker ends before that, the transmitter
sends the events again and they are known. Every replica fetches: who is first acts on them. What
can't be verified yet is neither acknowledged nor refused, so that it comes again.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from typing import Any, Final

import aiohttp
import msgspec

from valetkey.broker.incidents.transmitters import (
    Intake,
    SetUndecided,
    Transmitter,
    read_secret,
)
from valetkey.broker.store.database import StoreError
from valetkey.contracts.keys import REFETCH_COOLDOWN
from valetkey.contracts.logs import Log
from valetkey.contracts.sets import SetRefused

_MAX_EVENTS: Final = 50
# Fifty SETs of the longest token that is read.
_MAX_ANSWER: Final = 1 << 20
# A long poll may stay unanswered for minutes (RFC 8936 §2.4); one that does for longer is lost.
_TIMEOUT: Final = 330.0
_FIRST_RETRY: Final = 1.0
_LONGEST_RETRY: Final = 60.0


class PollAnswer(msgspec.Struct, frozen=True, rename="camel"):
    """RFC 8936 §2.3: SETs by ``jti``."""

    sets: dict[str, str]
    more_available: bool = False


_ANSWER: Final = msgspec.json.Decoder(PollAnswer)


class PollFailed(Exception):  # noqa: N818 - it is what happened
    """The transmitter did not answer, or not as it should. The message holds nothing of that."""


class Poller:
    """Follows one transmitter that is polled."""

    def __init__(self, transmitter: Transmitter, intake: Intake) -> None:
        settings = transmitter.settings.poll
        assert settings is not None
        self._transmitter = transmitter
        self._settings = settings
        self._intake = intake
        self._acks: list[str] = []
        self._refused: dict[str, dict[str, str]] = {}
        self._undecided = False
        self._log = Log("broker.transmitters")

    async def run(self) -> None:
        """Until cancelled."""
        wait = _FIRST_RETRY
        while True:
            began = time.monotonic()
            try:
                settled = await self.poll()
            except (PollFailed, StoreError) as error:
                reason = error.reason if isinstance(error, StoreError) else str(error)
                self._log.warning("poll_failed", key=self._transmitter.name, reason=reason)
                await asyncio.sleep(wait)
                wait = min(2 * wait, _LONGEST_RETRY)
                continue
            wait = _FIRST_RETRY
            if not settled:
                # One that knows no long poll is not asked without pause. Nor is one whose events
                # wait for its keys: it answers at once, and the keys are not fetched sooner.
                pause: float = self._settings.every
                if self._undecided:
                    pause = min(pause, REFETCH_COOLDOWN)
                await asyncio.sleep(max(0.0, pause - (time.monotonic() - began)))

    async def poll(self) -> int:
        """One request, and what it brings; says how many events were taken or refused.

        Raises `PollFailed`, `StoreError` (what was not acted on comes again).
        """
        acks, refused = self._acks, self._refused
        document: dict[str, Any] = {"maxEvents": _MAX_EVENTS, "returnImmediately": bool(acks)}
        if acks:
            document["ack"] = acks
        if refused:
            document["setErrs"] = refused
        answer = await self._ask(document)
        # Told: an answer came. What was lost before that is told again.
        self._acks, self._refused, self._undecided = [], {}, False
        for jti, compact in answer.sets.items():
            try:
                await self._intake.take(self._transmitter, compact, jti=jti)
            except SetRefused as error:
                self._log.warning(
                    "event_refused",
                    key=self._transmitter.name,
                    error=error.err,
                    reason=error.description,
                )
                self._refused[jti] = {"err": error.err, "description": error.description}
            except SetUndecided as error:
                self._undecided = True
                self._log.warning(
                    "event_undecided", key=self._transmitter.name, reason=error.reason
                )
            else:
                self._acks.append(jti)
        return len(self._acks) + len(self._refused)

    async def _ask(self, document: dict[str, Any]) -> PollAnswer:
        settings = self._settings
        try:
            token = await read_secret(settings.token_file)
            tls: ssl.SSLContext | bool = True
            if settings.ca_file is not None:
                tls = await asyncio.to_thread(
                    ssl.create_default_context, cafile=str(settings.ca_file)
                )
            async with (
                aiohttp.ClientSession(
                    timeout=aiohttp.ClientTimeout(total=_TIMEOUT, sock_connect=10),
                    trust_env=False,
                    cookie_jar=aiohttp.DummyCookieJar(),
                ) as session,
                session.post(
                    settings.url,
                    data=msgspec.json.encode(document),
                    headers={
                        "Authorization": f"Bearer {token}",
                        "Content-Type": "application/json",
                        "Accept": "application/json",
                    },
                    ssl=tls,
                    allow_redirects=False,
                ) as response,
            ):
                body = bytearray()
                async for chunk in response.content.iter_any():
                    body += chunk
                    if len(body) > _MAX_ANSWER:
                        raise PollFailed("the answer is too large")
                if response.status != 200:
                    raise PollFailed(f"it answered {response.status}")
                return _ANSWER.decode(body)
        except (OSError, ValueError, aiohttp.ClientError, TimeoutError) as error:
            # ValueError: msgspec's errors, a token that is no header value, bytes that are no text.
            raise PollFailed(type(error).__name__) from error

"""Push-based delivery (RFC 8935) to the receivers that settings name.

Durable: what is pushed is what the stream has not acknowledged, in order, from the database's
position on; after a restart or at another replica it goes on there. One replica pushes a stream at
a time (a lease). A receiver that fails is tried again with growing pauses. One that refuses the
event itself (400 ``invalid_request``) gets the next; one that does not believe it, or can't be
understood, gets it again: it may hold a JWK Set from before the signing key was replaced, and a
revocation that it never has is one that is not in force there.

Requests go to exactly the URLs in settings, over https (http on loopback), without redirects,
proxies of the environment, or cookies.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import aiohttp
import msgspec

from valetkey.broker.core.feed import ENABLED, Published, Stream
from valetkey.broker.feed import Feed, Followed
from valetkey.broker.feed_settings import FeedReceiverSettings
from valetkey.broker.issuers.sets import SetIssuer
from valetkey.broker.metrics import Metrics
from valetkey.broker.store.database import StoreError, to_the_end
from valetkey.broker.store.sealing import SealBroken, Sealer
from valetkey.broker.store.streams import FeedStreams
from valetkey.contracts.logs import Log
from valetkey.contracts.sets import MEDIA_TYPE
from valetkey.contracts.trusted_roots import TrustedRoots

LEASE: Final = 30.0
_LOOK: Final = 5.0
_FIRST_PAUSE: Final = 1.0
_LONGEST_PAUSE: Final = 300.0
_TIMEOUT: Final = 10.0
_MAX_ANSWER: Final = 4096
_AT_ONCE: Final = 50
_DELIVERED: Final = frozenset({200, 202, 204})
# Results after which the event is not pushed again.
_SETTLED: Final = frozenset({"delivered", "refused"})
_DISBELIEVED: Final = frozenset({"invalid_key", "invalid_issuer", "invalid_audience"})


class _Refusal(msgspec.Struct):
    """RFC 8935 §2.4."""

    err: str = ""


class Pusher:
    """One per replica. ``holder`` names the replica in leases."""

    def __init__(
        self,
        feed: Feed,
        streams: FeedStreams,
        sets: SetIssuer,
        sealer: Sealer,
        receivers: Iterable[FeedReceiverSettings],
        metrics: Metrics,
        *,
        holder: str,
    ) -> None:
        self._feed = feed
        self._streams = streams
        self._sets = sets
        self._sealer = sealer
        self._receivers = {(one.issuer, one.subject): one for one in receivers if one.push}
        self._roots = {
            key: TrustedRoots("feed.receivers: ca_file", one.ca_file)
            for key, one in self._receivers.items()
        }
        self._counts = metrics.pushes
        self._holder = holder
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._log = Log("broker.push")

    @property
    def has_receivers(self) -> bool:
        return bool(self._receivers)

    async def run(self) -> None:
        """Push until cancelled."""
        try:
            while True:
                try:
                    await self._look()
                except StoreError as error:
                    self._log.warning("streams_unread", reason=error.reason)
                await self._something(_LOOK)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._release()

    async def _release(self) -> None:
        try:
            await self._streams.release(self._holder)
        except StoreError as error:
            self._log.warning("leases_kept", reason=error.reason, seconds=LEASE)

    async def _something(self, seconds: float) -> None:
        """Until an event was published, at most so long."""
        try:
            async with asyncio.timeout(seconds):
                await self._feed.published.wait()
        except TimeoutError:
            return
        self._feed.published.clear()

    async def _look(self) -> None:
        """One task for each stream that has something to push; those that end are forgotten."""
        self._tasks = {name: task for name, task in self._tasks.items() if not task.done()}
        for stream in await to_the_end(self._streams.pushing()):
            if stream.id not in self._tasks and stream.status == ENABLED:
                self._tasks[stream.id] = asyncio.create_task(self._drain(stream.id))

    async def _drain(self, stream_id: str) -> None:
        """Push what is open, with pauses while the receiver fails."""
        pause = _FIRST_PAUSE
        while True:
            try:
                done = await self._push_some(stream_id)
            except StoreError as error:
                self._log.warning("push_postponed", reason=error.reason)
                done = None
            if done:
                return
            if done is None:
                await asyncio.sleep(pause)
                pause = min(pause * 2, _LONGEST_PAUSE)
            else:
                pause = _FIRST_PAUSE

    async def _push_some(self, stream_id: str) -> bool | None:
        """True: nothing is left, or others do it. ``None``: the receiver failed."""
        found = await to_the_end(self._open(stream_id))
        if found is None:
            return True
        followed, events = found
        stream = followed.stream
        receiver = self._receivers[stream.owner_issuer, stream.owner_subject]
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with aiohttp.ClientSession(
            timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            for event in events:
                result = await self._push(session, event, stream, receiver)
                self._counts.labels(result).inc()
                if result not in _SETTLED:
                    return None
                if not await to_the_end(self._pushed(followed, event, result)):
                    return True
        return False

    async def _open(self, stream_id: str) -> tuple[Followed, list[Published]] | None:
        """The stream and what is to be pushed, if there is anything and it is ours to do."""
        if not await self._streams.lease(stream_id, self._holder, seconds=LEASE):
            return None
        stream = await self._streams.find(stream_id)
        if stream is None or stream.status != ENABLED:
            return None
        receiver = self._receivers.get((stream.owner_issuer, stream.owner_subject))
        if receiver is None or stream.push_url not in receiver.push:
            return None  # settings have changed since it was created
        followed = Followed(stream, 0.0)
        events, _ = await self._feed.pending(followed, _AT_ONCE)
        return (followed, events) if events else None

    async def _pushed(self, followed: Followed, event: Published, result: str) -> bool:
        """Write down what became of an event; whether the next one is still ours to push."""
        if result == "delivered":
            await self._feed.acknowledge(followed, [event.jti])
        else:
            await self._feed.give_up(followed, [event.jti])
        await self._feed.pending(followed, 0)  # moves the cursor
        await self._feed.flush()
        return await self._streams.lease(followed.stream.id, self._holder, seconds=LEASE)

    async def _push(
        self,
        session: aiohttp.ClientSession,
        event: Published,
        stream: Stream,
        receiver: FeedReceiverSettings,
    ) -> str:
        """``delivered``, ``refused``, ``disbelieved`` or ``failed``."""
        headers = {"Content-Type": MEDIA_TYPE, "Accept": "application/json"}
        if stream.push_authorization is not None:
            try:
                value = self._sealer.open(stream.push_authorization, kid=stream.id)
            except SealBroken:
                self._log.error("push_authorization_unreadable", subject=stream.owner_subject)
                return "failed"
            headers["Authorization"] = value.decode()
        compact = self._sets.issue(event, audience=receiver.audience, with_reason=True)
        context = await self._roots[receiver.issuer, receiver.subject].current()
        try:
            async with session.post(
                stream.push_url,
                data=compact.encode(),
                headers=headers,
                ssl=context,
                allow_redirects=False,
            ) as response:
                if response.status in _DELIVERED:
                    return "delivered"
                body = await response.content.read(_MAX_ANSWER)
                return self._judge(response.status, body, event, stream)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._log.warning(
                "push_failed", subject=stream.owner_subject, error_type=type(error).__name__
            )
            return "failed"

    def _judge(self, status: int, body: bytes, event: Published, stream: Stream) -> str:
        if status != 400:
            self._log.warning("push_failed", subject=stream.owner_subject, status=status)
            return "failed"
        try:
            err = msgspec.json.decode(body, type=_Refusal).err
        except (msgspec.DecodeError, UnicodeDecodeError):
            err = ""
        if err in {"authentication_failed", "access_denied"}:
            # The receiver does not know us: another event would fare no better (RFC 8935 §2.4).
            self._log.warning("push_failed", subject=stream.owner_subject, status=status)
            return "failed"
        refused = err == "invalid_request"
        self._log.error(
            "event_refused" if refused else "event_disbelieved",
            jti=event.jti,
            subject=stream.owner_subject,
            status=status,
            # Nothing but what RFC 8935 §2.4 registers goes from a receiver's answer into the log.
            error=err if refused or err in _DISBELIEVED else "unknown",
        )
        return "refused" if refused else "disbelieved"

"""JetStream, and the one module of the collector that imports its library.

A connection is made once, with files as they are then, and is not mended: what fails is closed, and
who uses it makes another. So nothing that was given up can be sent later by a library's buffer.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Awaitable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import nats.errors
import nkeys
from nats.aio.client import Client, RawCredentials
from nats.js import api, errors
from nats.js.client import JetStreamContext

from valetkey.collector.core import stream as rules
from valetkey.collector.core.stream import Stream
from valetkey.collector.nats_settings import NatsSettings
from valetkey.collector.sinks.sink import HandoffFailed, Published, Reason, State
from valetkey.collector.store.handoffs import Waiting
from valetkey.contracts.errors import ConfigError

T = TypeVar("T")

# Errors of JetStream's API (nats-server, server/errors.json).
_REASONS: Final = {
    10023: Reason.FULL,  # insufficient resources
    10028: Reason.FULL,  # resource limits exceeded for account
    10039: Reason.NO_JETSTREAM,  # not enabled for account
    10047: Reason.FULL,  # insufficient storage resources available
    10054: Reason.TOO_LARGE,  # message size exceeds maximum allowed
    10059: Reason.NO_STREAM,
    10060: Reason.NO_STREAM,  # expected stream does not match
    10070: Reason.OUT_OF_TURN,  # wrong last message id
    10071: Reason.OUT_OF_TURN,  # wrong last sequence
    10076: Reason.NO_JETSTREAM,  # not enabled
    10077: Reason.FULL,  # maximum messages or bytes exceeded
    10109: Reason.MISCONFIGURED,  # sealed
}
_ID: Final = api.Header.MSG_ID.value
_NO_MESSAGE: Final = 10037
_MAX_FILE: Final = 64 << 10
_GOODBYE: Final = 2.0


class JetStream:
    """One connection. `open` makes it; every method raises `HandoffFailed`."""

    def __init__(self, settings: NatsSettings) -> None:
        self._settings = settings
        self._client = _Client(tls=settings.servers[0].startswith("tls:"))
        self._broken: asyncio.Future[HandoffFailed] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, settings: NatsSettings, *, name: str) -> Self:
        """Connect as the settings' files say."""
        opened = cls(settings)
        try:
            context, identity = await asyncio.to_thread(_files, settings)
        except (ConfigError, OSError, ValueError, nkeys.NkeysError) as error:
            told = str(error) if isinstance(error, ConfigError) else type(error).__name__
            raise HandoffFailed(Reason.UNAUTHORIZED, f"its files: {told}") from error
        try:
            async with asyncio.timeout(settings.connect):
                await opened._client.connect(
                    servers=list(settings.servers),
                    name=name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,  # of each server, for a connection to begin with
                    connect_timeout=max(1, round(settings.connect)),
                    tls=context,
                    error_cb=opened._on_error,
                    disconnected_cb=opened._on_end,
                    closed_cb=opened._on_end,
                    **identity,
                )
        except _FAILURES as error:
            await opened.close()
            # What was said of the first server that was tried says more than that time is over.
            first = opened.end() or _failure(error, Reason.UNREACHABLE)
            raise first from error
        opened._broken = asyncio.get_running_loop().create_future()
        return opened

    async def close(self) -> None:
        with contextlib.suppress(*_FAILURES):
            async with asyncio.timeout(_GOODBYE):
                await self._client.close()

    def end(self) -> HandoffFailed | None:
        """Why the connection is of no use any more, if that is known."""
        return self._broken.result() if self._broken.done() else None

    async def state(self) -> State:
        """The stream as it is now."""
        info = await self._ask(self._stream().stream_info(self._settings.stream))
        state = info.state
        return State(_described(info.config), state.first_seq, state.last_seq, state.messages)

    async def message(self, sequence: int) -> bytes | None:
        """The payload of a message; ``None`` where it is not there (any more)."""
        try:
            found = await self._ask(self._stream().get_msg(self._settings.stream, seq=sequence))
        except HandoffFailed as error:
            if error.number == _NO_MESSAGE:
                return None
            raise
        return found.data or b""

    async def publish(self, waiting: Sequence[Waiting], *, after: int) -> Published:
        """Publish in this order, behind the stream's message ``after``.

        The first states the number of the message before it, each other one the id: one that is
        refused is a bar to all that follow, and no other writer comes in between. (Numbers alone
        would not do: what another wrote in place of one that was refused counts like that one.)
        """
        stream = self._stream()
        futures: list[asyncio.Future[api.PubAck]] = []
        failure: HandoffFailed | None = None
        try:
            behind = {api.Header.EXPECTED_LAST_SEQUENCE.value: str(after)}
            for event in waiting:
                message = self._message(event, behind)
                futures.append(await stream.publish_async(**message))
                behind = {api.Header.EXPECTED_LAST_MSG_ID.value: message["headers"][_ID]}
        except _FAILURES as error:
            failure = _failure(error, Reason.UNREACHABLE)
        if futures:
            await self._answered(_all(futures), self._settings.answer)
        return self._counted(futures, after, failure)

    def _message(self, event: Waiting, behind: dict[str, str]) -> dict[str, Any]:
        prefix = self._settings.subject
        return {
            "subject": rules.subject(prefix, event.type, event.decision, event.source),
            "payload": event.raw,
            "headers": {
                _ID: rules.message_id(event.source, event.id),
                api.Header.EXPECTED_STREAM.value: self._settings.stream,
                "content-type": rules.CONTENT_TYPE,
                **behind,
            },
        }

    def _counted(
        self,
        futures: Iterable[asyncio.Future[api.PubAck]],
        after: int,
        failure: HandoffFailed | None,
    ) -> Published:
        count = duplicates = 0
        sequence = after
        for future in futures:
            if not future.done():
                failure = self._broken.result() if self._broken.done() else _LATE
            elif (error := future.exception()) is not None:
                failure = _failure(error, Reason.REFUSED)
            else:
                ack = future.result()
                count += 1
                duplicates += bool(ack.duplicate)
                sequence = sequence if ack.duplicate else ack.seq
                continue
            break
        for future in futures:  # none is waited for any more, and none complains later
            if not future.done():
                future.cancel()
            elif not future.cancelled():
                future.exception()
        return Published(count, duplicates, sequence, failure)

    def _stream(self) -> JetStreamContext:
        more = {"domain": self._settings.domain} if self._settings.domain else {}
        context: JetStreamContext = self._client.jetstream(timeout=self._settings.answer, **more)
        return context

    async def _ask(self, asked: Awaitable[T]) -> T:
        try:
            answer = await self._answered(asked)
            if not answer.cancelled():
                return answer.result()
        except _FAILURES as error:
            raise _failure(error, Reason.REFUSED) from error
        raise self._broken.result()

    async def _answered(
        self,
        asked: Awaitable[T],
        timeout: float | None = None,  # noqa: ASYNC109 - not all at once
    ) -> asyncio.Future[T]:
        """Wait for an answer, or for the end of the connection or of the time: then cancelled."""
        answer: asyncio.Future[T] = asyncio.ensure_future(asked)
        both: set[asyncio.Future[Any]] = {answer, self._broken}
        try:
            await asyncio.wait(both, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not answer.done():
                answer.cancel()
                await asyncio.wait([answer])
        return answer

    async def _on_error(self, error: Exception) -> None:
        """What the server says of no request in particular: that something is not permitted."""
        self._break(_failure(error, Reason.UNREACHABLE))

    async def _on_end(self) -> None:
        self._break(HandoffFailed(Reason.UNREACHABLE, "the connection ended"))

    def _break(self, failure: HandoffFailed) -> None:
        if not self._broken.done():
            self._broken.set_result(failure)


class _Client(Client):
    """One that goes on in TLS, or not at all."""

    def __init__(self, *, tls: bool) -> None:
        super().__init__()
        self._only_tls = tls

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        """What a server says first, in plain text, also where somebody else says it.

        The library goes on without TLS if it does not say that it requires it.
        """
        if self._only_tls and info.get("tls_required") is not True:
            raise nats.errors.Error("the server does not speak TLS")
        await super()._process_info(info, initial_connection)


async def _all(futures: Iterable[asyncio.Future[api.PubAck]]) -> None:
    """Until all are answered, or one is refused: all behind it will be."""
    await asyncio.wait(list(futures), return_when=asyncio.FIRST_EXCEPTION)


def _files(settings: NatsSettings) -> tuple[ssl.SSLContext | None, dict[str, Any]]:
    """TLS and who we are, as files have it now.

    Raises `ConfigError`, `OSError`, `ValueError`, `nkeys.NkeysError`.
    """
    identity: dict[str, Any] = {}
    if settings.credentials_file is not None:
        text = _secret(settings.credentials_file)
        # The library would look for them for ever.
        if "BEGIN NATS USER JWT" not in text or "BEGIN USER NKEY SEED" not in text:
            raise ConfigError(f"{settings.credentials_file} is no credentials file")
        identity["user_credentials"] = RawCredentials(text)
    if settings.nkey_file is not None:
        seed = _secret(settings.nkey_file).strip()
        nkeys.from_seed(bytearray(seed.encode())).wipe()
        identity["nkeys_seed_str"] = seed
    return settings.context(), identity


def _secret(path: Path) -> str:
    with path.open(encoding="ascii") as file:
        return file.read(_MAX_FILE)


def _described(config: api.StreamConfig) -> Stream:
    return Stream(
        subjects=tuple(config.subjects or ()),
        retention=_text(config.retention),
        storage=_text(config.storage),
        discard=_text(config.discard),
        max_age=float(config.max_age or 0),
        max_msgs=config.max_msgs or 0,
        max_bytes=config.max_bytes or 0,
        max_msgs_per_subject=config.max_msgs_per_subject or 0,
        duplicate_window=float(config.duplicate_window or 0),
        no_ack=bool(config.no_ack),
        sealed=bool(config.sealed),
        mirrored=bool(config.mirror or config.sources),
        transformed=bool(config.subject_transform),
        deny_delete=bool(config.deny_delete),
        deny_purge=bool(config.deny_purge),
    )


def _text(value: Any) -> str:
    return str(getattr(value, "value", value) or "")


_LATE: Final = HandoffFailed(Reason.TIMEOUT, "no acknowledgement in time")
# What the library raises; nkeys for a seed that is none, ValueError for a file that is none.
_FAILURES: Final = (nats.errors.Error, nkeys.NkeysError, OSError, ValueError, KeyError)


def _failure(error: BaseException, otherwise: Reason) -> HandoffFailed:
    """An error of the library's in our words. Its own text may quote what a server said."""
    kind = type(error).__name__
    if isinstance(error, errors.APIError) and error.err_code is not None:
        reason = _REASONS.get(error.err_code, Reason.REFUSED)
        return HandoffFailed(reason, f"{kind} {error.err_code}", number=error.err_code)
    if isinstance(error, errors.NoStreamResponseError | errors.ServiceUnavailableError):
        return HandoffFailed(Reason.NO_STREAM, "nothing takes this subject")
    if isinstance(error, nats.errors.NoRespondersError):
        return HandoffFailed(Reason.NO_JETSTREAM, "nobody answers for JetStream")
    if isinstance(error, nats.errors.MaxPayloadError):
        return HandoffFailed(Reason.TOO_LARGE, "an event is larger than max_payload")
    said = str(error).lower()
    if "permissions violation" in said:
        return HandoffFailed(Reason.PERMISSION, "the server does not permit it")
    if isinstance(error, nats.errors.AuthorizationError) or "authorization" in said:
        return HandoffFailed(Reason.UNAUTHORIZED, "the server knows no such user")
    if isinstance(error, nkeys.NkeysError):
        return HandoffFailed(Reason.UNAUTHORIZED, "the credentials are none")
    if isinstance(error, TimeoutError):
        return HandoffFailed(Reason.TIMEOUT, kind)
    if isinstance(error, ssl.SSLError) or "tls" in said:
        return HandoffFailed(Reason.UNREACHABLE, f"TLS: {kind}")
    return HandoffFailed(otherwise, kind)

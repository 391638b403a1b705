"""Managing streams (SSF 1.0 §8.1): configuration, status, subjects, verification; the metadata.

A workload may have streams that it polls. Subjects, status and push are for the receivers that
settings name: a sidecar must not be able to hear less than it has to.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Mapping
from typing import Any, Final

import msgspec
from aiohttp import web

from valetkey.broker.api.admin import ContentInvalid, answer, read_json
from valetkey.broker.api.ssf_wire import (
    ADD_SUBJECT_PATH,
    METADATA_PATH,
    POLL,
    POLL_PATH,
    PUSH,
    REMOVE_SUBJECT_PATH,
    STATUS_PATH,
    STREAMS_PATH,
    VERIFY_PATH,
    Caller,
    Callers,
    Delivery,
    StatusRequest,
    StreamRequest,
    SubjectRequest,
    VerificationRequest,
)
from valetkey.broker.core.feed import DISABLED, STATUSES, Stream, canonical_subject
from valetkey.broker.core.rate_limit import RateLimit, whole_seconds
from valetkey.broker.store.sealing import Sealer
from valetkey.broker.store.signals import Signals
from valetkey.broker.store.streams import IDLE, FeedStreams
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.service import problem_response
from valetkey.contracts.signals import EVENTS, Verification

# SSF 1.0 §8.1.4.2: how often a receiver may ask for a verification event.
VERIFICATION_INTERVAL: Final = 10
_MAX_EXCLUDED: Final = 1000


class StreamEndpoints:
    """``audience`` is the ``aud`` of all sidecars' events, ``most`` the streams of one owner."""

    def __init__(
        self,
        streams: FeedStreams,
        signals: Signals,
        sealer: Sealer,
        *,
        issuer: str,
        audience: str,
        most: int,
        timer: Clock,
    ) -> None:
        self._streams = streams
        self._signals = signals
        self._sealer = sealer
        self._issuer = issuer
        self._audience = audience
        self._most = most
        self._verifications = RateLimit(
            rate=1 / VERIFICATION_INTERVAL, burst=1, callers=100_000, timer=timer
        )

    def add_routes(self, router: web.UrlDispatcher, callers: Callers) -> None:
        router.add_post(STREAMS_PATH, callers.guard(self.create))
        router.add_get(STREAMS_PATH, callers.guard(self.read), allow_head=False)
        router.add_patch(STREAMS_PATH, callers.guard(self.change))
        router.add_put(STREAMS_PATH, callers.guard(self.replace))
        router.add_delete(STREAMS_PATH, callers.guard(self.delete))
        router.add_get(STATUS_PATH, callers.guard(self.status), allow_head=False)
        router.add_post(STATUS_PATH, callers.guard(self.set_status))
        router.add_post(ADD_SUBJECT_PATH, callers.guard(self.add_subject))
        router.add_post(REMOVE_SUBJECT_PATH, callers.guard(self.remove_subject))
        router.add_post(VERIFY_PATH, callers.guard(self.verify))

    # --- configuration ------------------------------------------------------------------------

    async def create(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.1.1."""
        asked = await read_json(request, StreamRequest)
        if asked.stream_id is not None:
            raise ContentInvalid("stream_id is ours to give")
        wanted = self._applied(
            Stream(secrets.token_urlsafe(24), caller.issuer, caller.subject, caller.key, 0, 0),
            asked,
            caller,
        )
        stream = await self._streams.create(wanted, most=self._most)
        if stream is None:
            raise CallerError(codes.FEED_TOO_MANY_STREAMS, f"{caller.subject} has its streams")
        return answer(self._describe(stream, caller), status=201)

    async def read(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.1.2: one, or all of the caller's."""
        if "stream_id" in request.query:
            stream = await self._own(request.query["stream_id"], caller)
            return answer(self._describe(stream, caller))
        owned = await self._streams.owned_by(caller.issuer, caller.subject)
        return answer([self._describe(one, caller) for one in owned if caller.owns(one)])

    async def change(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.1.3: what is given."""
        asked = await read_json(request, StreamRequest)
        return await self._store(asked, caller, lambda stream: stream)

    async def replace(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.1.4: what is not given is as if it never was."""
        asked = await read_json(request, StreamRequest)
        return await self._store(
            asked,
            caller,
            lambda stream: dataclasses.replace(
                stream,
                description="",
                events_requested=EVENTS,
                push_url="",
                push_authorization=None,
            ),
        )

    async def _store(self, asked: StreamRequest, caller: Caller, base: Any) -> web.Response:
        if asked.stream_id is None:
            raise ContentInvalid("stream_id is missing")
        stream = await self._streams.change(
            asked.stream_id,
            lambda found: self._applied(base(_owned(found, caller)), asked, caller),
        )
        return answer(self._describe(stream, caller))

    async def delete(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.1.5."""
        stream = await self._own(request.query.get("stream_id", ""), caller)
        await self._streams.delete(stream.id)
        return web.Response(status=204)

    async def _own(self, stream_id: str, caller: Caller) -> Stream:
        return _owned(await self._streams.find(stream_id), caller)

    def _applied(self, stream: Stream, asked: StreamRequest, caller: Caller) -> Stream:
        """The stream with what was asked for. Raises `CallerError`."""
        if asked.iss not in {None, self._issuer} or asked.aud not in (None, self._aud(caller)):
            raise ContentInvalid("iss and aud are ours, and other than that")
        changes: dict[str, Any] = {}
        if not isinstance(asked.delivery, msgspec.UnsetType):
            changes |= self._delivery(stream.id, asked.delivery, caller)
        if not isinstance(asked.events_requested, msgspec.UnsetType):
            if caller.receiver is None and set(EVENTS) - set(asked.events_requested):
                raise ContentInvalid("a sidecar hears all events: leave events_requested out")
            changes["events_requested"] = asked.events_requested
        if not isinstance(asked.description, msgspec.UnsetType):
            changes["description"] = asked.description
        return dataclasses.replace(stream, **changes)

    def _delivery(self, stream_id: str, asked: Delivery, caller: Caller) -> dict[str, Any]:
        if asked.method == POLL:
            if asked.endpoint_url not in {"", self._poll_url(stream_id)}:
                raise ContentInvalid("delivery: the URL to poll is ours to give")
            return {"push_url": "", "push_authorization": None}
        if asked.method != PUSH:
            raise ContentInvalid(f"delivery: method is neither {PUSH} nor {POLL}")
        # Nobody makes this broker send requests to a place that its settings do not name.
        if caller.receiver is None or asked.endpoint_url not in caller.receiver.push:
            raise CallerError(codes.SERVICE_FORBIDDEN, "a push URL that settings do not allow")
        sealed = None
        if asked.authorization_header:
            value = asked.authorization_header
            if not value.isascii() or not value.isprintable():
                raise ContentInvalid("delivery: authorization_header is no header value")
            sealed = self._sealer.seal(value.encode(), kid=stream_id)
        return {"push_url": asked.endpoint_url, "push_authorization": sealed}

    def _aud(self, caller: Caller) -> str:
        return self._audience if caller.receiver is None else caller.receiver.audience

    def _poll_url(self, stream_id: str) -> str:
        return self._issuer + POLL_PATH + stream_id

    def _describe(self, stream: Stream, caller: Caller) -> Mapping[str, Any]:
        delivery = (
            {"method": PUSH, "endpoint_url": stream.push_url}
            if stream.push_url
            else {"method": POLL, "endpoint_url": self._poll_url(stream.id)}
        )
        return {
            "stream_id": stream.id,
            "iss": self._issuer,
            "aud": self._aud(caller),
            "delivery": delivery,
            "events_supported": EVENTS,
            "events_requested": stream.events_requested,
            "events_delivered": stream.events_delivered,
            "description": stream.description,
            "min_verification_interval": VERIFICATION_INTERVAL,
            "inactivity_timeout": int(IDLE),
        }

    # --- status -------------------------------------------------------------------------------

    async def status(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.2.1."""
        stream = await self._own(request.query.get("stream_id", ""), caller)
        return answer(_status(stream))

    async def set_status(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.2.2. What happens while a stream is paused waits; disabled, it is lost."""
        asked = await read_json(request, StatusRequest)
        owner, head = _named(caller), await self._signals.head()

        def change(found: Stream | None) -> Stream:
            stream = _owned(found, owner)
            if asked.status not in STATUSES:
                raise ContentInvalid(f"status is one of {', '.join(STATUSES)}")
            enabled = stream.status == DISABLED and asked.status != DISABLED
            return dataclasses.replace(
                stream,
                status=asked.status,
                status_reason=asked.reason,
                position=max(stream.position, head) if enabled else stream.position,
            )

        return answer(_status(await self._streams.change(asked.stream_id, change)))

    # --- subjects -----------------------------------------------------------------------------

    async def add_subject(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.3.2: by default a stream has all subjects, so this ends an exclusion."""
        await self._subject(request, caller, excluded=False)
        return web.Response(status=200)

    async def remove_subject(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.3.3."""
        await self._subject(request, caller, excluded=True)
        return web.Response(status=204)

    async def _subject(self, request: web.Request, caller: Caller, *, excluded: bool) -> None:
        asked = await read_json(request, SubjectRequest)
        owner, subject = _named(caller), frozenset({canonical_subject(asked.subject)})

        def change(found: Stream | None) -> Stream:
            stream = _owned(found, owner)
            if not isinstance(asked.subject.get("format"), str):
                raise ContentInvalid("subject: format is missing")  # RFC 9493 §3
            subjects = stream.excluded | subject if excluded else stream.excluded - subject
            if len(subjects) > _MAX_EXCLUDED:
                raise ContentInvalid(f"more than {_MAX_EXCLUDED} subjects are excluded")
            return dataclasses.replace(stream, excluded=subjects)

        await self._streams.change(asked.stream_id, change)

    # --- verification -------------------------------------------------------------------------

    async def verify(self, request: web.Request, caller: Caller) -> web.Response:
        """SSF 1.0 §8.1.4.2: the event comes by the stream."""
        asked = await read_json(request, VerificationRequest)
        stream = await self._own(asked.stream_id, caller)
        wait = self._verifications.take(stream.id)
        if wait:
            return problem_response(
                codes.SERVICE_RATE_LIMITED, headers={"Retry-After": str(whole_seconds(wait))}
            )
        async with self._streams.write() as connection:
            await self._signals.publish_to(connection, Verification(stream.id, asked.state))
        return web.Response(status=204)


def _owned(stream: Stream | None, caller: Caller) -> Stream:
    """The stream, if it is the caller's. Raises `CallerError`."""
    if stream is None or not caller.owns(stream):
        raise CallerError(codes.FEED_NO_STREAM, "no such stream of this caller")
    return stream


def _named(caller: Caller) -> Caller:
    """The caller, if settings name it. Raises `CallerError`."""
    if caller.receiver is None:
        raise CallerError(codes.SERVICE_FORBIDDEN, "only receivers of settings narrow a stream")
    return caller


def _status(stream: Stream) -> dict[str, str]:
    told = {"stream_id": stream.id, "status": stream.status}
    if stream.status_reason:
        told["reason"] = stream.status_reason
    return told


def metadata(issuer: str, jwks_path: str) -> bytes:
    """``/.well-known/ssf-configuration`` (SSF 1.0 §7.1)."""
    return msgspec.json.encode(
        {
            "spec_version": "1_0",
            "issuer": issuer,
            "jwks_uri": issuer + jwks_path,
            "delivery_methods_supported": [PUSH, POLL],
            "configuration_endpoint": issuer + STREAMS_PATH,
            "status_endpoint": issuer + STATUS_PATH,
            "add_subject_endpoint": issuer + ADD_SUBJECT_PATH,
            "remove_subject_endpoint": issuer + REMOVE_SUBJECT_PATH,
            "verification_endpoint": issuer + VERIFY_PATH,
            "critical_subject_members": ["session", "application"],
            "default_subjects": "ALL",
            "authorization_schemes": [{"spec_urn": "urn:ietf:rfc:6750"}],
        }
    )


def add_metadata(router: web.UrlDispatcher, issuer: str, jwks_path: str) -> None:
    """Serve the metadata: it never changes while the process runs."""
    document = metadata(issuer, jwks_path)

    async def handle(_request: web.Request) -> web.Response:
        return web.Response(
            body=document,
            headers={"Content-Type": "application/json", "Cache-Control": "public, max-age=3600"},
        )

    router.add_get(METADATA_PATH, handle)

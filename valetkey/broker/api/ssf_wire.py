"""What the endpoints of the feed share: who calls, and the messages of SSF 1.0 §8."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any, Final

import msgspec
from aiohttp import web

from valetkey.broker.core.feed import Stream
from valetkey.broker.core.rate_limit import RateLimit, whole_seconds
from valetkey.broker.feed_settings import FeedReceiverSettings
from valetkey.broker.trust.clients import ClientAuthenticator
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.service import Handler, problem_response
from valetkey.contracts.signals import STANDBY_NONCE

PUSH: Final = "urn:ietf:rfc:8935"
POLL: Final = "urn:ietf:rfc:8936"

STREAMS_PATH: Final = "/ssf/streams"
STATUS_PATH: Final = "/ssf/status"
ADD_SUBJECT_PATH: Final = "/ssf/subjects/add"
REMOVE_SUBJECT_PATH: Final = "/ssf/subjects/remove"
VERIFY_PATH: Final = "/ssf/verify"
POLL_PATH: Final = "/ssf/poll/"
METADATA_PATH: Final = "/.well-known/ssf-configuration"

_MAX_TEXT: Final = 256
Text = Annotated[str, msgspec.Meta(max_length=_MAX_TEXT)]
Url = Annotated[str, msgspec.Meta(max_length=2048)]
EventTypes = Annotated[tuple[Url, ...], msgspec.Meta(max_length=64)]


class Delivery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """SSF 1.0 §6.1. ``authorization_header`` comes with every push, as it is."""

    method: str
    endpoint_url: Url = ""
    authorization_header: Annotated[str, msgspec.Meta(max_length=4096)] = ""


class StreamRequest(msgspec.Struct, frozen=True):
    """A stream as its receiver wants it (SSF 1.0 §8.1.1).

    What the transmitter supplies may be repeated, and must then be what it was (§8.1.1.3).
    """

    stream_id: str | None = None
    delivery: Delivery | msgspec.UnsetType = msgspec.UNSET
    events_requested: EventTypes | msgspec.UnsetType = msgspec.UNSET
    description: Text | msgspec.UnsetType = msgspec.UNSET
    iss: str | None = None
    aud: Any = None


class StatusRequest(msgspec.Struct, frozen=True):
    """SSF 1.0 §8.1.2.2."""

    stream_id: str
    status: str
    reason: Text = ""


class SubjectRequest(msgspec.Struct, frozen=True):
    """SSF 1.0 §8.1.3.2 and §8.1.3.3."""

    stream_id: str
    subject: dict[str, Any]
    verified: bool = True


class VerificationRequest(msgspec.Struct, frozen=True):
    """SSF 1.0 §8.1.4.2."""

    stream_id: str
    state: Annotated[str, msgspec.Meta(max_length=1024)] = ""


class SetError(msgspec.Struct, frozen=True):
    """Why a receiver refused a SET (RFC 8936 §2.4)."""

    err: Text
    description: str = ""


class PollRequest(msgspec.Struct, frozen=True, rename="camel"):
    """RFC 8936 §2.2."""

    max_events: Annotated[int, msgspec.Meta(ge=0)] | None = None
    return_immediately: bool = False
    ack: tuple[str, ...] = ()
    set_errs: dict[str, SetError] = {}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who called. ``key`` is the proof key's thumbprint; ``receiver`` what settings say of it."""

    issuer: str
    subject: str
    key: str
    receiver: FeedReceiverSettings | None

    def owns(self, stream: Stream) -> bool:
        """Whether the stream is this caller's.

        A stream that was created with a proof is bound to its key: sidecars that share an identity
        can't take each other's events.
        """
        return (self.issuer, self.subject) == (stream.owner_issuer, stream.owner_subject) and (
            not stream.owner_key or stream.owner_key == self.key
        )


CallerHandler = Callable[[web.Request, Caller], Awaitable[web.StreamResponse]]


class Callers:
    """Authenticates who follows the feed: workloads, as at ``/token``, and named receivers."""

    def __init__(
        self,
        clients: ClientAuthenticator,
        receivers: Iterable[FeedReceiverSettings],
        limit: RateLimit,
        *,
        issuer: str,
    ) -> None:
        self._clients = clients
        self._receivers = {(one.issuer, one.subject): one for one in receivers}
        self._limit = limit
        self._issuer = issuer

    def guard(self, handler: CallerHandler) -> Handler:
        """``handler``, for authenticated callers only; every answer carries the DPoP nonce."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            proofs = request.headers.getall("DPoP", ())
            try:
                caller = await self._authenticate(request, proofs)
            except CallerError as error:
                return self._refuse(error, proofs)
            wait = self._limit.take((caller.issuer, caller.subject, caller.key))
            if wait:
                return problem_response(
                    codes.SERVICE_RATE_LIMITED, headers={"Retry-After": str(whole_seconds(wait))}
                )
            response = await handler(request, caller)
            nonce = self._clients.nonce(proofs)
            if nonce and not response.prepared:
                response.headers["DPoP-Nonce"] = nonce
                standby = self._clients.standby_nonce()
                if standby:
                    response.headers[STANDBY_NONCE] = standby
            return response

        return guarded

    async def _authenticate(self, request: web.Request, proofs: Any) -> Caller:
        given = request.headers.getall("Authorization", ())
        scheme, _, token = given[0].partition(" ") if len(given) == 1 else ("", "", "")
        if scheme.lower() != "bearer" or not token:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, "no bearer token")
        client = await self._clients.authenticate_bearer(
            token.strip(),
            proofs,
            method=request.method,
            url=self._issuer + request.path,
            unbound=self._may_be_unbound,
        )
        claims = client.assertion.claims
        return Caller(
            claims.issuer,
            claims.subject,
            client.proof,
            self._receivers.get((claims.issuer, claims.subject)),
        )

    def _may_be_unbound(self, issuer: str, subject: str) -> bool:
        receiver = self._receivers.get((issuer, subject))
        return receiver is not None and receiver.bearer

    def _refuse(self, error: CallerError, proofs: Any) -> web.Response:
        """RFC 6750 §3, RFC 9449 §7.1: a 401 that names the schemes, and the nonce if one helps."""
        if error.code.family not in {"dpop", "actor", "service"} or error.code.status >= 500:
            raise error
        challenge = "Bearer"
        if error.code.family == "dpop":
            challenge = f'DPoP error="{error.code.oauth}", algs="ES256"'
        response = problem_response(error.code, headers={"WWW-Authenticate": challenge})
        response.set_status(401)
        nonce = self._clients.nonce(proofs, error.code)
        if nonce:
            response.headers["DPoP-Nonce"] = nonce
        return response

"""``POST /revoke`` (RFC 7009): the client gives a token back, and all that descends from it."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from valetkey.broker.api.wire import error_answer, json_answer, read_form
from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.incidents.exposed import exposure_of
from valetkey.broker.incidents.response import Report, Response
from valetkey.broker.issuers.jwt import JwtIssuer
from valetkey.broker.metrics import Metrics
from valetkey.broker.settings import MAX_TTL
from valetkey.broker.store.revocations import Revocations
from valetkey.broker.trust.clients import Client, ClientAuthenticator
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError, ValetkeyError
from valetkey.contracts.logs import Log

PATH: Final = "/revoke"
# Ours: the client says that somebody else may have the token, so it is not enough to end it.
EXPOSED: Final = "exposed"


class RevokeEndpoint:
    """Revokes the token and its transaction (RFC 7009 §2.1, cascading).

    With ``reason=exposed`` it opens an incident about the token, which contains the client too.
    ``limit`` says how often each client may ask.
    """

    def __init__(
        self,
        clients: ClientAuthenticator,
        issuer: JwtIssuer,
        revocations: Revocations,
        metrics: Metrics,
        response: Response,
        limit: RateLimit,
        *,
        url: str,
        clock: Clock,
    ) -> None:
        self._clients = clients
        self._issuer = issuer
        self._revocations = revocations
        self._metrics = metrics
        self._response = response
        self._limit = limit
        self._url = url
        self._clock = clock
        self._log = Log("broker.revoke")

    async def handle(self, request: web.Request) -> web.Response:
        proofs = request.headers.getall("DPoP", ())
        try:
            form = await read_form(request)
            token = form.required("token")
            client = await self._clients.authenticate(form, proofs, url=self._url, request=request)
            self._count(client)
            await self._revoke(token, client, reason=form.get("reason"))
        except ValetkeyError as error:
            self._log.info("revocation_refused", code=error.code.name, reason=error.reason)
            return error_answer(error.code, nonce=self._clients.nonce(proofs, error.code))
        return json_answer({}, nonce=self._clients.nonce(proofs))

    def _count(self, client: Client) -> None:
        claims = client.assertion.claims
        if self._limit.take((claims.issuer, claims.subject)):
            raise CallerError(
                codes.SERVICE_RATE_LIMITED, f"workload {claims.subject} of {claims.issuer}"
            )

    async def _revoke(self, token: str, client: Client, *, reason: str) -> None:
        if reason not in {"", EXPOSED}:
            raise CallerError(codes.SERVICE_BAD_REQUEST, "reason is none that we know")
        own = self._issuer.recognise(token)
        if own is None:
            return  # RFC 7009 §2.2: unknown, expired or foreign is 200: nothing is left to do
        claims = client.assertion.claims
        if (claims.issuer, claims.subject) != (own.client_issuer, own.client_id):
            # RFC 7009 §2.1: refused, and the client is told.
            raise CallerError(codes.SERVICE_FORBIDDEN, "the token was issued to another client")
        if reason == EXPOSED:
            report = Report(
                exposure_of(own),
                source="revocation",
                by=f"{claims.subject} of {claims.issuer}",
                reason="revoked by its client as exposed",
            )
            await self._response.open(report)
            return
        new = await self._revocations.revoke(
            jti=own.jti,
            txn=own.txn,
            expires=own.expires,
            descendants=self._clock() + MAX_TTL,
        )
        if not new:
            return
        self._metrics.revocations.inc()
        self._log.info("token_revoked", jti=own.jti, workload=claims.subject, issuer=claims.issuer)

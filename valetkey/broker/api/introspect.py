"""``POST /introspect`` (RFC 7662): whether a token of ours still counts, for whom it concerns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

from valetkey.broker.api.wire import error_answer, json_answer, read_form, told_of
from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.issuers.jwt import TXN_TYP, JwtIssuer, OwnToken
from valetkey.broker.settings import ResourceServerSettings
from valetkey.broker.store.signals import Signals
from valetkey.broker.trust.clients import Client, ClientAuthenticator
from valetkey.broker.trust.standing import Standings
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError, ValetkeyError
from valetkey.contracts.logs import Log

PATH: Final = "/introspect"
# RFC 7662 §2.2, RFC 9449 §6.2, RFC 9396 §9.2, RFC 8693 §4
_ANSWERED: Final = (
    "scope",
    "client_id",
    "exp",
    "iat",
    "sub",
    "aud",
    "iss",
    "jti",
    "act",
    "cnf",
    "txn",
    "authorization_details",
    "epoch",  # ours
)


class IntrospectEndpoint:
    """``resource_servers`` say which callers may ask about which audiences' tokens.

    ``limit`` says how often each caller may ask; ``catches_up`` how often with what costs a query:
    to catch up with a signal that this replica does not know.
    """

    def __init__(
        self,
        clients: ClientAuthenticator,
        issuer: JwtIssuer,
        standings: Standings,
        resource_servers: Iterable[ResourceServerSettings],
        signals: Signals,
        limit: RateLimit,
        catches_up: RateLimit,
        *,
        url: str,
    ) -> None:
        self._clients = clients
        self._issuer = issuer
        self._standings = standings
        self._signals = signals
        self._limit = limit
        self._catches_up = catches_up
        self._url = url
        self._audiences: dict[tuple[str, str], frozenset[str]] = {}
        for server in resource_servers:
            caller = (server.issuer, server.subject)
            known = self._audiences.get(caller, frozenset())
            self._audiences[caller] = known | frozenset(server.audiences)
        self._log = Log("broker.introspect")

    async def handle(self, request: web.Request) -> web.Response:
        proofs = request.headers.getall("DPoP", ())
        try:
            form = await read_form(request)
            token = form.required("token")
            client = await self._clients.authenticate(form, proofs, url=self._url, request=request)
            self._count(client, self._limit)
            self._standings.require_current()
            await self._reach(told_of(request), client)
            answer = self._describe(token, client)
        except ValetkeyError as error:
            self._log.info("introspection_refused", code=error.code.name, reason=error.reason)
            return error_answer(error.code, nonce=self._clients.nonce(proofs, error.code))
        return json_answer(answer, nonce=self._clients.nonce(proofs))

    def _count(self, client: Client, limit: RateLimit) -> None:
        claims = client.assertion.claims
        if limit.take((claims.issuer, claims.subject)):
            raise CallerError(
                codes.SERVICE_RATE_LIMITED, f"workload {claims.subject} of {claims.issuer}"
            )

    async def _reach(self, told: str, client: Client) -> None:
        """What the caller heard of has ended for this replica too, before it says what counts."""
        if told and not self._signals.has_reached(told):
            self._count(client, self._catches_up)
            await self._signals.reach(told)

    def _describe(self, token: str, client: Client) -> dict[str, Any]:
        own = self._issuer.recognise(token)
        if (
            own is None
            or not self._standings.token_counts(own, token)
            or not self._concerns(own, client)
        ):
            # RFC 7662 §2.2: nothing else, whatever the reason.
            return {"active": False}
        answer: dict[str, Any] = {"active": True}
        answer |= {name: own.claims[name] for name in _ANSWERED if name in own.claims}
        bound = "DPoP" if "jkt" in own.claims.get("cnf", {}) else "Bearer"
        # RFC 8693 §2.2.1: a transaction token is not to be sent as an access token.
        answer["token_type"] = "N_A" if own.typ == TXN_TYP else bound
        return answer

    def _concerns(self, own: OwnToken, client: Client) -> bool:
        """RFC 7662 §4: a caller must not fish for tokens that are none of its business."""
        claims = client.assertion.claims
        caller = (claims.issuer, claims.subject)
        return caller == (own.client_issuer, own.client_id) or own.claims.get(
            "aud"
        ) in self._audiences.get(caller, ())

"""``POST /introspect`` (RFC 7662): whether a token of ours still counts, for whom it concerns."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from aiohttp import web

from valetkey.broker.api.wire import error_answer, json_answer, read_form
from valetkey.broker.issuers.jwt import TXN_TYP, JwtIssuer, OwnToken
from valetkey.broker.settings import ResourceServerSettings
from valetkey.broker.trust.clients import Client, ClientAuthenticator
from valetkey.broker.trust.standing import Standings
from valetkey.contracts.errors import ValetkeyError
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
    """``resource_servers`` say which callers may ask about which audiences' tokens."""

    def __init__(
        self,
        clients: ClientAuthenticator,
        issuer: JwtIssuer,
        standings: Standings,
        resource_servers: Iterable[ResourceServerSettings],
        *,
        url: str,
    ) -> None:
        self._clients = clients
        self._issuer = issuer
        self._standings = standings
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
        except ValetkeyError as error:
            self._log.info("introspection_refused", code=error.code.name, reason=error.reason)
            return error_answer(error.code, nonce=self._clients.nonce(proofs, error.code))
        return json_answer(self._describe(token, client), nonce=self._clients.nonce(proofs))

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

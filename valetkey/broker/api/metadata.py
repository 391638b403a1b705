"""``/.well-known/oauth-authorization-server`` (RFC 8414)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import msgspec
from aiohttp import web

from valetkey.broker.api import introspect, jwks, revoke, token
from valetkey.contracts.issuer import IssuerSettings, Kind
from valetkey.contracts.oauth import DETAILS_HTTP_CALL, GRANT_DEFERRED, GRANT_TOKEN_EXCHANGE

PATH: Final = "/.well-known/oauth-authorization-server"


class MetadataEndpoint:
    """The document never changes while the process runs, so it is made once.

    ``mtls`` is the URL of the listener for client certificates, if there is one.
    """

    def __init__(
        self,
        *,
        issuer: str,
        issuers: Iterable[IssuerSettings],
        defers: bool = False,
        mtls: str | None = None,
    ) -> None:
        workload = [trusted for trusted in issuers if trusted.use == "workload"]
        kinds = {trusted.kind for trusted in workload}
        methods = _methods(kinds, mtls=mtls is not None)
        algorithms = sorted(
            {
                algorithm
                for trusted in workload
                if trusted.kind != "x509"
                for algorithm in trusted.algorithms
            }
        )
        document: dict[str, object] = {
            "issuer": issuer,  # RFC 8414 §3.3: what the client built the URL from
            "token_endpoint": issuer + token.PATH,
            "jwks_uri": issuer + jwks.PATH,
            "introspection_endpoint": issuer + introspect.PATH,
            "revocation_endpoint": issuer + revoke.PATH,
            "grant_types_supported": [GRANT_TOKEN_EXCHANGE],
            "response_types_supported": [],  # required; there is no authorization endpoint
            "dpop_signing_alg_values_supported": ["ES256"],  # RFC 9449 §5.1
            "authorization_details_types_supported": [DETAILS_HTTP_CALL],  # RFC 9396 §10
        }
        if defers:  # draft-ietf-oauth-deferred-token-response
            document["deferred_token_response_supported"] = True
            document["grant_types_supported"] = [GRANT_TOKEN_EXCHANGE, GRANT_DEFERRED]
        for endpoint in ("token", "introspection", "revocation"):
            document[f"{endpoint}_endpoint_auth_methods_supported"] = methods
            document[f"{endpoint}_endpoint_auth_signing_alg_values_supported"] = algorithms
        if mtls is not None:  # RFC 8705 §3.3, §5
            document["tls_client_certificate_bound_access_tokens"] = True
            document["mtls_endpoint_aliases"] = {
                "token_endpoint": mtls + token.PATH,
                "introspection_endpoint": mtls + introspect.PATH,
                "revocation_endpoint": mtls + revoke.PATH,
            }
        self._body = msgspec.json.encode(document)

    async def handle(self, _request: web.Request) -> web.Response:
        return web.Response(
            body=self._body,
            headers={"Content-Type": "application/json", "Cache-Control": "public, max-age=3600"},
        )


def _methods(kinds: set[Kind], *, mtls: bool) -> list[str]:
    """How clients authenticate (RFC 8414 §2); draft-ietf-oauth-spiffe-client-auth §4 names two."""
    methods = []
    if kinds & {"oidc", "kubernetes"}:
        methods.append("private_key_jwt")
    if "spiffe" in kinds:
        methods += ["spiffe_jwt", "spiffe_x509"] if mtls else ["spiffe_jwt"]
    if "x509" in kinds and mtls:
        methods.append("tls_client_auth")
    return methods

"""A client and a resource server that know nothing of this project: Authlib's, by public API.

Authlib speaks through a session of the `requests` kind; the one here is `urllib` and nothing else.
The broker is a real process on the real clock.
"""

from __future__ import annotations

import asyncio
import json
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from authlib.oauth2 import OAuth2Error
from authlib.oauth2.client import OAuth2Client
from authlib.oauth2.rfc6750.errors import InsufficientScopeError, InvalidTokenError
from authlib.oauth2.rfc7523 import PrivateKeyJWT, private_key_jwt_sign
from authlib.oauth2.rfc9068 import JWTBearerTokenValidator
from joserfc.jwk import ECKey, KeySet

from tests.integration.broker_support import PAYMENTS, SELF_SIGNED, TICKETS, World
from tests.support.ports import free_url
from tests.support.procs import Program
from valetkey.contracts import oauth


@dataclass
class Response:
    status_code: int
    text: str

    def json(self) -> Any:
        return json.loads(self.text)

    def raise_for_status(self) -> None:
        if self.status_code >= 400:
            raise AssertionError(f"{self.status_code} {self.text}")


class Session:
    """As much of a `requests` session as Authlib uses."""

    def get(self, url: str) -> Response:
        return self._send(urllib.request.Request(url))

    def post(self, url: str, data: Any, headers: dict[str, str], auth: Any) -> Response:
        url, headers, body = auth.prepare("POST", url, headers, urlencode(data))
        return self._send(urllib.request.Request(url, body.encode(), headers, method="POST"))

    def _send(self, request: urllib.request.Request) -> Response:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return Response(answer.status, answer.read().decode())
        except urllib.error.HTTPError as error:
            with error:
                return Response(error.code, error.read().decode())


class Client:
    """An OAuth client that knows the issuer's URL, its own key, and the RFCs."""

    def __init__(self, world: World) -> None:
        self.session = Session()
        self.issuer = world.url
        self.metadata = self.session.get(
            world.url + "/.well-known/oauth-authorization-server"
        ).json()
        assert self.metadata["issuer"] == world.url
        assert "private_key_jwt" in self.metadata["token_endpoint_auth_methods_supported"]
        self.key = ECKey.import_key(world.own.key)
        self.kid = world.own.kid

    def oauth(self) -> OAuth2Client:
        """A client for one request: Authlib's method object signs one `jti`."""
        client = OAuth2Client(
            self.session,
            client_id=SELF_SIGNED,
            client_secret=self.key,
            token_endpoint_auth_method="private_key_jwt",
            revocation_endpoint_auth_method="private_key_jwt",
            **self.metadata,
        )
        client.register_client_auth_method(
            PrivateKeyJWT(
                self.issuer,  # RFC 7523bis: the audience is the issuer identifier
                claims={"exp": int(time.time()) + 60},
                headers={"kid": self.kid},
                alg="ES256",
            )
        )
        return client

    def exchange(self, **changes: Any) -> dict[str, Any]:
        """RFC 8693 with a token of the client's own as subject."""
        client = self.oauth()
        subject = private_key_jwt_sign(
            self.key,
            client_id=SELF_SIGNED,
            token_endpoint=self.issuer,
            alg="ES256",
            header={"kid": self.kid},
            expires_in=60,
        )
        parameters = {
            "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
            "subject_token": subject,
            "subject_token_type": oauth.TOKEN_TYPE_JWT,
            "audience": TICKETS,
            "scope": "tickets:read",
            **changes,
        }
        return dict(client.fetch_token(self.metadata["token_endpoint"], **parameters))


class TicketsApi(JWTBearerTokenValidator):
    """A resource server that verifies RFC 9068 tokens with the keys that the issuer publishes."""

    def __init__(self, client: Client, audience: str = TICKETS) -> None:
        super().__init__(issuer=client.issuer, resource_server=audience)
        self._client = client

    def get_jwks(self) -> Any:
        document = self._client.session.get(self._client.metadata["jwks_uri"]).json()
        return KeySet.import_key_set(document)

    def check(self, token: str, scope: str) -> Any:
        claims = self.authenticate_token(token)
        self.validate_token(claims, [scope], None)
        return claims


def conversation(world: World) -> None:
    client = Client(world)
    token = client.exchange()
    assert token["token_type"] == "Bearer"
    assert token["scope"] == "tickets:read"
    claims = TicketsApi(client).check(token["access_token"], "tickets:read")
    assert claims["sub"] == claims["client_id"] == SELF_SIGNED
    with pytest.raises(InsufficientScopeError):
        TicketsApi(client).check(token["access_token"], "tickets:delete")
    with pytest.raises(InvalidTokenError):
        TicketsApi(client, PAYMENTS).check(token["access_token"], "tickets:read")

    for changes, error in (
        ({"scope": "tickets:delete"}, "invalid_scope"),
        ({"audience": "https://nowhere.example"}, "invalid_target"),
        ({"subject_token": "x.y.z"}, "invalid_request"),
        ({"audience": PAYMENTS, "scope": "payments:read"}, "invalid_dpop_proof"),
    ):
        with pytest.raises(OAuth2Error) as refused:
            client.exchange(**changes)
        assert refused.value.error == error

    def state() -> Any:
        return (
            client.oauth()
            .introspect_token(
                client.metadata["introspection_endpoint"], token=token["access_token"]
            )
            .json()
        )

    assert state()["active"] is True
    revoked = client.oauth().revoke_token(
        client.metadata["revocation_endpoint"], token=token["access_token"]
    )
    assert revoked.status_code == 200
    assert state() == {"active": False}


async def test_exchange_verify_introspect_revoke(tmp_path: Path) -> None:
    world = World(tmp_path / "world", free_url(), overrides={"log_level": "info"})
    world.overrides["bind"] = world.url.removeprefix("http://")
    async with Program.of("broker", world.write(), tmp_path / "run"):
        await asyncio.to_thread(conversation, world)

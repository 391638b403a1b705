"""A ticketing API, as somebody else wrote it: ``python -m valetkey.cli.demo.ticket_api``.

It is a resource server of its own: it verifies the tokens that come in (RFC 9068: ``typ``,
signature under the authorization server's JWK Set, ``iss``, ``aud``, ``exp``), asks for scopes per
endpoint, and takes sender-constrained tokens only at its attachments (RFC 9449: proof, nonce,
``cnf.jkt``, no replay). It has never heard of a sidecar.

Each call that arrives is one line in ``--record``: what the token said, and the SHA-256 of every
header value, so that somebody who holds a secret can tell whether it arrived here.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import aiohttp
import jwt
import msgspec
from aiohttp import web

from valetkey.contracts import logs, service
from valetkey.contracts.dpop import PROOF_LIFETIME, NonceRequired, verify_proof
from valetkey.contracts.jose import TokenInvalid

TICKETS: Final = "https://tickets.demo.example"
ATTACHMENTS: Final = "https://attachments.demo.example"
_CLAIMS: Final = ("iss", "exp", "aud", "sub", "client_id", "iat", "jti")  # RFC 9068 §2.2
_NONCE_LIFE: Final = 300.0


@dataclass(frozen=True, slots=True)
class Needs:
    """What an endpoint asks for."""

    audience: str
    scope: str
    dpop: bool = False


class Refused(Exception):  # noqa: N818 - it is an answer
    """401 or 403 with a challenge (RFC 6750 §3, RFC 9449 §7.1)."""

    def __init__(self, status: int, error: str, needs: Needs) -> None:
        super().__init__(error)
        self.status = status
        self.error = error
        self.challenge = f'{"DPoP" if needs.dpop else "Bearer"} error="{error}"'


class AuthorizationServer:
    """The public keys of the one authorization server that this API trusts."""

    def __init__(self, issuer: str) -> None:
        self.issuer = issuer
        self._keys: dict[str, jwt.PyJWK] = {}

    async def key(self, kid: str) -> jwt.PyJWK | None:
        """The key of that id, asking for the set anew when it is not known."""
        if kid not in self._keys:
            async with (
                aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as session,
                session.get(f"{self.issuer}/jwks", allow_redirects=False) as response,
            ):
                entries = (await response.json())["keys"]
            self._keys = {entry["kid"]: jwt.PyJWK(entry, algorithm="ES256") for entry in entries}
        return self._keys.get(kid)


class Proofs:
    """DPoP proofs: nonces that this server gave, and the proofs that it has seen."""

    def __init__(self) -> None:
        self._nonce = ""
        self._before = ""
        self._made = float("-inf")
        self._seen: dict[str, float] = {}

    def nonce(self, now: float) -> str:
        """The current nonce; the one before stays good while clients move on."""
        if now - self._made >= _NONCE_LIFE:
            self._before, self._nonce = self._nonce, secrets.token_urlsafe(16)
            self._made = now
        return self._nonce

    def check(self, proof: str, *, method: str, url: str, token: str, now: float) -> str:
        """The thumbprint of the key that made the proof. Raises `TokenInvalid`."""
        nonces = {self.nonce(now), self._before} - {""}
        verified = verify_proof(
            proof,
            method=method,
            url=url,
            now=now,
            access_token=token,
            nonce_is_ours=nonces.__contains__,
        )
        old = now - 2 * PROOF_LIFETIME
        self._seen = {jti: seen for jti, seen in self._seen.items() if seen > old}
        if verified.jti in self._seen:
            raise TokenInvalid("the proof was used before")
        self._seen[verified.jti] = now
        return verified.thumbprint


class Guard:
    """Lets a call in or refuses it, and puts it on record either way."""

    def __init__(self, server: AuthorizationServer, url: str, record: TextIO) -> None:
        self._server = server
        self._url = url
        self._record = record
        self._proofs = Proofs()

    def __call__(
        self,
        needs: Needs,
        endpoint: Callable[[web.Request, str], dict[str, Any]],
        status: int = 200,
    ) -> Callable[[web.Request], Awaitable[web.Response]]:
        """The handler of an endpoint that needs a token."""

        async def handle(request: web.Request) -> web.Response:
            headers = {"DPoP-Nonce": self._proofs.nonce(time.time())} if needs.dpop else {}
            seen = _facts(request)
            try:
                claims = await self._authorize(request, needs, seen)
                body, code = endpoint(request, claims["sub"]), status
            except Refused as refused:
                seen["error"] = refused.error
                headers["WWW-Authenticate"] = refused.challenge
                body, code = {"error": refused.error}, refused.status
            seen["status"] = code
            self._record.write(msgspec.json.encode(seen).decode() + "\n")
            return web.json_response(body, status=code, headers=headers)

        return handle

    async def _authorize(
        self, request: web.Request, needs: Needs, seen: dict[str, Any]
    ) -> dict[str, Any]:
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        seen["scheme"] = scheme
        if scheme != ("DPoP" if needs.dpop else "Bearer"):
            raise Refused(401, "invalid_token", needs)
        try:
            claims = await self._verify(token, needs)
        except (jwt.PyJWTError, aiohttp.ClientError, KeyError) as error:
            raise Refused(401, "invalid_token", needs) from error
        bound_to = claims.get("cnf", {}).get("jkt")
        seen |= {name: claims.get(name) for name in ("sub", "act", "scope", "aud", "jti")}
        seen |= {"lifetime": claims["exp"] - claims["iat"], "bound_to": bound_to}
        if needs.dpop:
            proofs = request.headers.getall("DPoP", [])
            seen["proved_by"] = self._prove(request, proofs, token, needs)
            if seen["proved_by"] != bound_to:
                raise Refused(401, "invalid_token", needs)
        elif bound_to:  # RFC 9449 §7.2: a bound token is not a bearer token
            raise Refused(401, "invalid_token", needs)
        if needs.scope not in claims.get("scope", "").split():
            raise Refused(403, "insufficient_scope", needs)
        return claims

    async def _verify(self, token: str, needs: Needs) -> dict[str, Any]:
        header = jwt.get_unverified_header(token)
        key = await self._server.key(header["kid"])
        if header.get("typ") != "at+jwt" or key is None:
            raise jwt.InvalidTokenError
        claims: dict[str, Any] = jwt.decode(
            token,
            key,
            algorithms=["ES256"],
            audience=needs.audience,
            issuer=self._server.issuer,
            options={"require": list(_CLAIMS)},
        )
        return claims

    def _prove(self, request: web.Request, proofs: list[str], token: str, needs: Needs) -> str:
        if len(proofs) != 1:
            raise Refused(401, "invalid_dpop_proof", needs)
        try:
            return self._proofs.check(
                proofs[0],
                method=request.method,
                url=self._url + request.path,
                token=token,
                now=time.time(),
            )
        except NonceRequired as error:
            raise Refused(401, "use_dpop_nonce", needs) from error
        except TokenInvalid as error:
            raise Refused(401, "invalid_dpop_proof", needs) from error


def _facts(request: web.Request) -> dict[str, Any]:
    """What can be said of a call without believing any of it, and without keeping a secret."""
    values = [word for value in request.headers.values() for word in (value, *value.split())]
    return {
        "method": request.method,
        "path": request.path,
        "digests": sorted({hashlib.sha256(value.encode()).hexdigest() for value in values}),
    }


def _ticket(request: web.Request, caller: str) -> dict[str, Any]:
    return {"ticket": request.match_info["id"], "title": "Printer on fire", "shown_to": caller}


def _tickets(_request: web.Request, caller: str) -> dict[str, Any]:
    return {"tickets": ["7", "8", "9"], "shown_to": caller}


def _comment(request: web.Request, caller: str) -> dict[str, Any]:
    return {"ticket": request.match_info["id"], "comment_by": caller}


def _delete(request: web.Request, caller: str) -> dict[str, Any]:
    return {"ticket": request.match_info["id"], "deleted_by": caller}


def _close(request: web.Request, caller: str) -> dict[str, Any]:
    return {"ticket": request.match_info["id"], "closed_by": caller}


def _purge(_request: web.Request, caller: str) -> dict[str, Any]:
    return {"purged_by": caller}


def _attachment(request: web.Request, caller: str) -> dict[str, Any]:
    return {"attachment": request.match_info["id"], "shown_to": caller}


async def _healthz(_request: web.Request) -> web.Response:
    return web.json_response({"status": "ok"})


def make_app(issuer: str, url: str, record: TextIO) -> web.Application:
    """The API. ``url`` is where its clients reach it: the ``htu`` of their proofs."""
    guard = Guard(AuthorizationServer(issuer), url, record)
    app = web.Application()
    read, comment = Needs(TICKETS, "tickets:read"), Needs(TICKETS, "tickets:comment")
    delete, close = Needs(TICKETS, "tickets:delete"), Needs(TICKETS, "tickets:close")
    purge = Needs(TICKETS, "tickets:purge")
    attachment = Needs(ATTACHMENTS, "attachments:read", dpop=True)
    app.router.add_get("/healthz", _healthz)
    app.router.add_get("/api/tickets", guard(read, _tickets))
    app.router.add_get("/api/tickets/{id}", guard(read, _ticket))
    app.router.add_post("/api/tickets/{id}/comments", guard(comment, _comment, 201))
    app.router.add_post("/api/tickets/{id}/close", guard(close, _close))
    app.router.add_post("/api/tickets/purge", guard(purge, _purge))
    app.router.add_delete("/api/tickets/{id}", guard(delete, _delete))
    app.router.add_get("/api/attachments/{id}", guard(attachment, _attachment))
    return app


def main() -> None:
    parser = argparse.ArgumentParser(prog="ticket-api", description="A ticketing API.")
    parser.add_argument("--host", default="127.0.0.1", help="the address to listen on")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--url", help="where its clients reach it; default: that port on loopback")
    parser.add_argument("--cert-file", type=Path, help="PEM, with --key-file: speak TLS")
    parser.add_argument("--key-file", type=Path)
    parser.add_argument("--issuer", required=True, help="the authorization server")
    parser.add_argument("--record", type=Path, required=True, help="one line per call")
    options = parser.parse_args()
    if (options.cert_file is None) is not (options.key_file is None):
        parser.error("--cert-file and --key-file go together")
    logs.configure()
    context = None
    if options.cert_file is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.cert_file, options.key_file)
    url = options.url or f"http://127.0.0.1:{options.port}"
    with options.record.open("a", buffering=1, encoding="utf-8") as record:
        app = make_app(options.issuer, url, record)
        asyncio.run(service.serve(app, f"{options.host}:{options.port}", context=context))


if __name__ == "__main__":
    main()

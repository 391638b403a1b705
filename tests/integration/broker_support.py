"""What tests need around a broker: issuers with real keys, settings on disk, a real server."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import yaml
from aiohttp import web
from cryptography.hazmat.primitives.asymmetric import ec

from tests.support.canaries import CANARIES
from valetkey.broker.app import Broker, listeners
from valetkey.broker.settings import BrokerSettings
from valetkey.contracts import oauth, settings
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.jose import b64url

IDP = "https://idp.demo.example"  # projected tokens: reusable
USERS = "https://users.demo.example"
OPERATIONS = "https://operations.demo.example"  # administrators
CI = "https://ci.demo.example"  # deployments
BOT = "spiffe://demo.example/ns/agents/sa/bot"
SELF_SIGNED = "spiffe://demo.example/ns/batch/sa/report"
READER = "spiffe://demo.example/ns/api/sa/tickets"
TICKETS = "https://tickets.example.com"
PAYMENTS = "https://payments.example.com"
FILES = "https://files.example.com"
JOB = "repo:acme/tickets:environment:production"
JOB_CLAIMS = {"repository": "acme/tickets", "ref": "refs/heads/main", "environment": "production"}

GRANTS: list[dict[str, Any]] = [
    {
        "id": "bot-tickets",
        "workload": BOT,
        "issuer": IDP,
        "target": "tickets",
        "scopes": ["tickets:read", "tickets:list"],
        "on_behalf_of": "users",
    },
    {
        "id": "bot-payments",
        "workload": "spiffe://demo.example/ns/*/sa/bot",
        "issuer": IDP,
        "target": "payments",
        "scopes": ["payments:read"],
    },
    {
        "id": "bot-files",
        "workload": BOT,
        "issuer": IDP,
        "target": "files",
        "scopes": ["files:read"],
        "ttl": "30s",
        "conditions": [
            {"methods": ["GET", "HEAD"], "path": "/files/{id}"},
            {"methods": ["GET"], "path": "/public/{rest*}"},
        ],
    },
    {
        "id": "report-tickets",
        "workload": SELF_SIGNED,
        "issuer": SELF_SIGNED,
        "target": "tickets",
        "scopes": ["tickets:read"],
    },
    {
        "id": "report-payments",
        "workload": SELF_SIGNED,
        "issuer": SELF_SIGNED,
        "target": "payments",
        "scopes": ["payments:read"],
    },
]


class Clock:
    """A clock that tests move; it never runs by itself."""

    def __init__(self, now: float | None = None) -> None:
        self.now = time.time() if now is None else now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


class Issuer:
    """An identity provider with one P-256 key, for tokens that hold and tokens that do not."""

    def __init__(self, name: str, kid: str = "k1") -> None:
        self.name = name
        self.kid = kid
        self.key = ec.generate_private_key(ec.SECP256R1())

    def jwks(self) -> dict[str, Any]:
        public = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(self.key.public_key()))
        return {"keys": [{**public, "kid": self.kid, "use": "sig", "alg": "ES256"}]}

    def token(
        self,
        subject: str,
        audience: Any,
        *,
        now: float,
        ttl: float = 3600,
        headers: dict[str, Any] | None = None,
        drop: Iterable[str] = (),
        **claims: Any,
    ) -> str:
        payload = {
            "iss": self.name,
            "sub": subject,
            "aud": audience,
            "iat": int(now),
            "exp": int(now + ttl),
            **claims,
        }
        for name in drop:
            payload.pop(name, None)
        token = jwt.encode(
            payload, self.key, algorithm="ES256", headers={"kid": self.kid, **(headers or {})}
        )
        CANARIES.add(token, name=f"token of {self.name}")
        return token


@dataclass
class World:
    """A directory with everything a broker reads, and the keys that tests sign with."""

    root: Path
    url: str
    clock: Clock = field(default_factory=Clock)
    idp: Issuer = field(default_factory=lambda: Issuer(IDP))
    users: Issuer = field(default_factory=lambda: Issuer(USERS))
    own: Issuer = field(default_factory=lambda: Issuer(SELF_SIGNED))
    operations: Issuer = field(default_factory=lambda: Issuer(OPERATIONS))
    ci: Issuer = field(default_factory=lambda: Issuer(CI))
    overrides: dict[str, Any] = field(default_factory=dict)
    proof_key: ProofKey = field(default_factory=ProofKey)

    def write(self) -> Path:
        """Write all files; gives the settings file."""
        self.root.mkdir(parents=True, exist_ok=True)
        for name, issuer in (
            ("idp", self.idp),
            ("users", self.users),
            ("own", self.own),
            ("operations", self.operations),
            ("ci", self.ci),
        ):
            (self.root / f"{name}.json").write_text(json.dumps(issuer.jwks()))
        master = self.root / "master.key"
        if not master.exists():
            master.write_bytes(secrets.token_bytes(48))
            master.chmod(0o600)
            CANARIES.add(master.read_bytes(), name="master key", allow=[master])
        grants = self.root / "grants.yaml"
        if not grants.exists():
            self.write_grants(GRANTS)
        config = self.root / "broker.yaml"
        config.write_text(yaml.safe_dump(self.document()))
        return config

    def write_grants(self, grants: Any) -> None:
        """Replace the grants file in one step, as a careful operator does."""
        new = self.root / "grants.yaml.new"
        new.write_text(yaml.safe_dump({"grants": grants}))
        new.rename(self.root / "grants.yaml")

    def document(self) -> dict[str, Any]:
        return {
            "issuer": self.url,
            "bind": "127.0.0.1:0",
            "database": f"sqlite+aiosqlite:///{self.root / 'broker.db'}",
            "master_key_file": str(self.root / "master.key"),
            "grants_file": str(self.root / "grants.yaml"),
            "issuers": [
                {
                    "issuer": IDP,
                    "audience": self.url,
                    "use": "workload",
                    "jwks_file": str(self.root / "idp.json"),
                    "audience_list": True,
                    "reusable": True,
                },
                {
                    "issuer": SELF_SIGNED,
                    "audience": self.url,
                    "use": "workload",
                    "jwks_file": str(self.root / "own.json"),
                },
                {
                    "issuer": USERS,
                    "audience": self.url,
                    "use": "user",
                    "jwks_file": str(self.root / "users.json"),
                },
            ],
            "targets": {
                "tickets": {"audience": TICKETS, "credential": "bearer"},
                "payments": {"audience": PAYMENTS, "credential": "dpop", "ttl": "60s"},
                "files": {
                    "audience": FILES,
                    "credential": "bearer",
                    "resource": "https://files.example.com/v1",
                },
            },
            "admin": {
                "issuers": [
                    {
                        "issuer": OPERATIONS,
                        "audience": self.url,
                        "use": "admin",
                        "jwks_file": str(self.root / "operations.json"),
                    }
                ],
                "roles": [
                    {"role": role, "issuer": OPERATIONS, "claims": {"groups": [f"{role}s"]}}
                    for role in ("viewer", "approver", "operator", "admin", "provisioner")
                ],
            },
            "deployments": {
                "issuers": [
                    {
                        "issuer": CI,
                        "audience": self.url,
                        "use": "deployment",
                        "jwks_file": str(self.root / "ci.json"),
                    }
                ]
            },
            "resource_servers": [{"issuer": IDP, "subject": READER, "audiences": [TICKETS]}],
            "log_level": "warning",
            # Tests ask until something holds, by a clock that may stand: no budget would come back.
            "limits": {"admin": {"rate": 1000, "burst": 1_000_000}},
            **self.overrides,
        }

    def settings(self) -> BrokerSettings:
        return settings.load(BrokerSettings, self.write(), program="broker", environ={})

    # --- tokens and proofs ---------------------------------------------------------------------
    def workload(self, subject: str = BOT, **more: Any) -> str:
        return self.idp.token(subject, more.pop("aud", [self.url]), now=self.clock(), **more)

    def job(self, subject: str = JOB, **more: Any) -> str:
        """A token of one run of a CI job; ``jti=None`` leaves it out."""
        claims = {"ttl": 600, "jti": secrets.token_urlsafe(16), **JOB_CLAIMS, **more}
        claims = {name: value for name, value in claims.items() if value is not None}
        return self.ci.token(subject, claims.pop("aud", self.url), now=self.clock(), **claims)

    def assertion(self, **more: Any) -> str:
        claims = {"ttl": 60, "jti": secrets.token_urlsafe(16), **more}
        return self.own.token(SELF_SIGNED, claims.pop("aud", self.url), now=self.clock(), **claims)

    def user(self, subject: str = "alice", **more: Any) -> str:
        return self.users.token(subject, more.pop("aud", self.url), now=self.clock(), **more)

    def admin(self, subject: str = "olga", *, role: str = "operator", **more: Any) -> str:
        """A token of an administrator with one role; ``groups`` gives others."""
        claims = {"groups": [f"{role}s"], **more}
        return self.operations.token(
            subject, claims.pop("aud", self.url), now=self.clock(), **claims
        )

    def proof(self, *, nonce: str = "", path: str = "/token", **more: Any) -> str:
        values: dict[str, Any] = {
            "method": "POST",
            "url": self.url + path,
            "jti": secrets.token_urlsafe(16),
            "now": int(self.clock()),
            "nonce": nonce,
            **more,
        }
        return self.proof_key.proof(**values)

    def form(self, token: str, **changes: Any) -> dict[str, Any]:
        """The parameters of a good exchange for tickets; ``None`` drops a parameter."""
        form = {
            "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": token,
            "subject_token": token,
            "subject_token_type": oauth.TOKEN_TYPE_JWT,
            "audience": TICKETS,
            "scope": "tickets:read",
            "capabilities": "dpop feed mcp_filter mtls single_use txn_token",
            **changes,
        }
        return {name: value for name, value in form.items() if value is not None}

    def user_form(self, token: str, user: str, **changes: Any) -> dict[str, Any]:
        return self.form(
            token,
            **{
                "subject_token": user,
                "actor_token": token,
                "actor_token_type": oauth.TOKEN_TYPE_JWT,
                **changes,
            },
        )


def details(path: str, *methods: str, audience: str = FILES, **more: Any) -> str:
    """An ``authorization_details`` parameter with one entry."""
    entry = {
        "type": oauth.DETAILS_HTTP_CALL,
        "locations": [audience],
        "actions": list(methods),
        "identifier": "route-1",
        "path": path,
        **more,
    }
    return json.dumps([{name: value for name, value in entry.items() if value is not None}])


@dataclass
class Served:
    """A broker that listens, with a client to it."""

    world: World
    broker: Broker
    client: aiohttp.ClientSession
    own_url: str = ""
    """Where a replica listens, if that is not the world's URL."""

    @property
    def where(self) -> str:
        return self.own_url or self.world.url

    async def post(
        self, form: Any, *, path: str = "/token", proofs: Iterable[str] = (), **more: Any
    ) -> tuple[int, dict[str, Any], Any]:
        headers = [("DPoP", proof) for proof in proofs] + list(more.pop("headers", []))
        if isinstance(form, bytes) and not any(name == "Content-Type" for name, _ in headers):
            headers.append(("Content-Type", "application/x-www-form-urlencoded"))
        async with self.client.post(
            self.where + path, data=form, headers=headers, **more
        ) as response:
            body = await response.json()
            if "access_token" in body:
                CANARIES.add(body["access_token"], name="access token")
            return response.status, body, response.headers

    async def nonce(self) -> str:
        """A current nonce, got the way a client gets it."""
        status, body, headers = await self.post(
            self.world.form(self.world.workload()), proofs=[self.world.proof()]
        )
        assert (status, body["error"]) == (400, "use_dpop_nonce"), body
        return headers["DPoP-Nonce"]

    async def exchange(
        self, form: dict[str, Any], *, path: str = "/token"
    ) -> tuple[int, dict[str, Any], Any]:
        """Post with a fresh proof that carries the current nonce."""
        proof = self.world.proof(nonce=await self.nonce(), path=path)
        return await self.post(form, path=path, proofs=[proof])

    async def manage(
        self, method: str, path: str, document: Any = None, *, token: str = "", **more: Any
    ) -> tuple[int, Any, Any]:
        """A call of the admin API with ``token`` (default: an operator's)."""
        headers = {"Authorization": f"Bearer {token or self.world.admin()}"}
        if document is not None:
            more["json"] = document
        async with self.client.request(
            method, self.where + path, headers=headers | more.pop("headers", {}), **more
        ) as response:
            body = await response.read()
            return response.status, json.loads(body) if body else None, response.headers

    async def items(self, path: str) -> list[dict[str, Any]]:
        """All that a list of the admin API has, page by page."""
        found: list[dict[str, Any]] = []
        after = ""
        while True:
            _, page, _ = await self.manage("GET", f"{path}?limit=500&after={after}")
            found += page["items"]
            after = page.get("next", "")
            if not after:
                return found

    async def get(self, path: str) -> tuple[int, Any, Any]:
        async with self.client.get(self.where + path) as response:
            return response.status, await response.read(), response.headers


def claims_of(token: str) -> dict[str, Any]:
    """The claims of a token that came straight from the broker; tests of signatures verify."""
    claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return claims


@asynccontextmanager
async def serving(
    world: World, where: str = "", *, timer: Clock | None = None
) -> AsyncIterator[Served]:
    """Run a broker for ``world`` at its URL, or a replica of it at another one.

    ``timer``: how long something takes is told by another clock than when it is.
    """
    where = where or world.url
    port = int(where.rpartition(":")[2])
    config = await asyncio.to_thread(world.settings)
    broker = await Broker.open(config, clock=world.clock, timer=timer or world.clock)
    runner = web.AppRunner(broker.app, access_log=None)
    try:
        await runner.setup()
        for listener in listeners(config, broker.base.certificates):
            await listener.open(runner)
        await web.TCPSite(runner, "127.0.0.1", port).start()
        # Several DPoP headers and raw bodies must reach the server as they are.
        async with aiohttp.ClientSession() as client:
            yield Served(world, broker, client, where)
    finally:
        await runner.cleanup()
        await broker.close()


def mutate(compact: str, part: int, index: int, flip: int) -> str:
    """Another token: one byte of one decoded part changed, canonically encoded again."""
    import base64

    parts = compact.split(".")
    raw = bytearray(base64.urlsafe_b64decode(parts[part] + "=" * (-len(parts[part]) % 4)))
    raw[index % len(raw)] ^= flip
    parts[part] = b64url(bytes(raw))
    return ".".join(parts)

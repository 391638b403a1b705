"""Clients with certificates: over real TLS, behind a terminator, and tokens bound to them."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import trustme
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from tests.integration.broker_support import GRANTS, Served, World, claims_of, serving
from tests.support.ports import free_url
from tests.support.trust_domain import Authority, Svid, TrustDomain
from tests.support.waiting import until
from valetkey.contracts.binding import check_binding, thumbprint
from valetkey.contracts.errors import CallerError
from valetkey.contracts.oauth import ASSERTION_JWT_SPIFFE

VAULT = "https://vault.example.com"
BOT = "spiffe://acme.example/ns/agents/sa/bot"
OTHER = "spiffe://acme.example/ns/agents/sa/other"
PKI = "https://pki.example"
GATEWAY = "gateway.example"
TERMINATOR = "spiffe://acme.example/ns/edge/sa/terminator"


@dataclass
class Edge:
    """A world whose broker takes certificates, and how clients reach it."""

    world: World
    domain: TrustDomain
    authority: trustme.CA
    pki: TrustDomain
    root: Path
    where: str = ""

    def form(self, **changes: Any) -> dict[str, Any]:
        """An exchange for the vault by certificate: the SVID as token is the subject alone."""
        subject = self.domain.jwt_svid([self.world.url], now=self.world.clock())
        form = {
            "client_assertion": None,
            "client_assertion_type": None,
            "client_id": BOT,
            "audience": VAULT,
            "scope": "vault:read",
            **changes,
        }
        return self.world.form(subject, **form)

    def with_assertion(self, **changes: Any) -> dict[str, Any]:
        token = self.domain.jwt_svid([self.world.url], now=self.world.clock())
        form = {"client_assertion_type": ASSERTION_JWT_SPIFFE, **changes}
        return self.world.form(token, audience=VAULT, scope="vault:read", **form)

    def context(self, svid: Svid | None) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if svid is not None:
            context.load_cert_chain(svid.write(self.root / f"{svid.thumbprint}.pem"))
        return context

    async def post(
        self,
        form: dict[str, Any],
        svid: Svid | None,
        *,
        path: str = "/token",
        headers: list[tuple[str, str]] | None = None,
        where: str = "",
    ) -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as client,
            client.post(
                (where or self.where) + path,
                data=form,
                headers=headers,
                ssl=self.context(svid) if not where else True,
            ) as response,
        ):
            return response.status, await response.json()


def grants() -> list[dict[str, Any]]:
    return [
        *GRANTS,
        {
            "id": "bot-vault",
            "workload": BOT,
            "issuer": "spiffe://acme.example",
            "target": "vault",
            "scopes": ["vault:read"],
            "on_behalf_of": "users",
        },
        {
            "id": "gateway-vault",
            "workload": GATEWAY,
            "issuer": PKI,
            "target": "vault",
            "scopes": ["vault:read"],
            "on_behalf_of": "users",
        },
        {
            "id": "bot-payments-too",
            "workload": BOT,
            "issuer": "spiffe://acme.example",
            "target": "payments",
            "scopes": ["payments:read"],
        },
    ]


def build(root: Path, terminator: str = "") -> Edge:
    world = World(root, free_url())
    root.mkdir(parents=True, exist_ok=True)
    domain, partner = TrustDomain(), TrustDomain("partner.example")
    authority = trustme.CA()
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_pem.write_to_path(root / "server.key")
    for chain in server.cert_chain_pems:
        chain.write_to_path(root / "server.pem", append=True)
    port = free_url().rpartition(":")[2]
    document = world.document()
    for one, name in ((domain, "bundle"), (partner, "partner")):
        one.write(root / f"{name}.json")
        document["issuers"].append(
            {
                "issuer": one.name,
                "kind": "spiffe",
                "audience": world.url,
                "use": "workload",
                "jwks_file": str(root / f"{name}.json"),
            }
        )
    pki = TrustDomain("pki.example")
    (root / "pki.pem").write_bytes(pki.authority.certificate.public_bytes(Encoding.PEM))
    document["issuers"].append(
        {
            "issuer": PKI,
            "kind": "x509",
            "use": "workload",
            "ca_file": str(root / "pki.pem"),
            "subjects": [GATEWAY, "https://gateway.example/*"],
        }
    )
    document["targets"]["vault"] = {"audience": VAULT, "credential": "mtls"}
    mtls = {"bind": f"127.0.0.1:{port}", "url": f"https://localhost:{port}"}
    if terminator:
        mtls["terminator"] = terminator
    # The main listener stays plain on loopback: a server in front of it would speak its TLS.
    world.overrides = {
        "issuers": document["issuers"],
        "targets": document["targets"],
        "mtls": mtls,
        "tls": {"cert_file": str(root / "server.pem"), "key_file": str(root / "server.key")},
        "resource_servers": [
            *document["resource_servers"],
            {"issuer": domain.name, "subject": OTHER, "audiences": [VAULT]},
        ],
    }
    world.write()
    world.write_grants(grants())
    edge = Edge(world, domain, authority, pki, root)
    edge.where = f"http://127.0.0.1:{port}" if terminator == "loopback" else mtls["url"]
    return edge


@asynccontextmanager
async def running(root: Path, terminator: str = "") -> AsyncIterator[tuple[Edge, Served]]:
    edge = build(root, terminator)
    async with serving(edge.world) as served:
        yield edge, served


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "edge"


# --- over TLS ------------------------------------------------------------------------------------
async def test_an_svid_authenticates_and_binds(root: Path) -> None:
    async with running(root) as (edge, _):
        svid = edge.domain.x509_svid()
        status, body = await edge.post(edge.form(), svid)
        assert status == 200, body
        assert body["token_type"] == "Bearer", "RFC 8705 §3: bound, and a bearer token all the same"
        claims = claims_of(body["access_token"])
        assert claims["cnf"] == {"x5t#S256": svid.thumbprint}
        assert (claims["client_iss"], claims["client_id"]) == (edge.domain.name, BOT)


async def test_a_chain_with_an_intermediate(root: Path) -> None:
    async with running(root) as (edge, _):
        middle = Authority(edge.domain.name, issuer=edge.domain.authority)
        svid = edge.domain.x509_svid(authority=middle, intermediates=[middle])
        status, body = await edge.post(edge.form(), svid)
        assert status == 200, body


async def test_beside_an_assertion_the_certificate_binds(root: Path) -> None:
    async with running(root) as (edge, _):
        svid = edge.domain.x509_svid()
        status, body = await edge.post(edge.with_assertion(), svid)
        assert status == 200, body
        assert claims_of(body["access_token"])["cnf"] == {"x5t#S256": svid.thumbprint}


async def test_for_a_user_with_the_svid_as_actor(root: Path) -> None:
    async with running(root) as (edge, _):
        own = edge.domain.jwt_svid([edge.world.url], now=edge.world.clock())
        form = edge.world.user_form(
            own,
            edge.world.user(),
            client_assertion=None,
            client_assertion_type=None,
            client_id=BOT,
            audience=VAULT,
            scope="vault:read",
        )
        status, body = await edge.post(form, edge.domain.x509_svid())
        assert status == 200, body
        assert claims_of(body["access_token"])["act"] == {"sub": BOT, "iss": edge.domain.name}


async def test_a_proof_names_the_url_of_the_alias(root: Path) -> None:
    async with running(root) as (edge, served):
        form = edge.form(audience="https://payments.example.com", scope="payments:read")
        nonce = await served.nonce()
        for url, expected in ((edge.where, 200), (edge.world.url, 400)):
            proof = edge.world.proof(nonce=nonce, url=url + "/token")
            status, body = await edge.post(form, edge.domain.x509_svid(), headers=[("DPoP", proof)])
            assert status == expected, body


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no client_id": ({"client_id": None}, "actor.invalid"),
    "another client_id": ({"client_id": OTHER}, "actor.invalid"),
    "the trust domain": ({"client_id": "spiffe://acme.example"}, "actor.invalid"),
    "a secret too": ({"client_secret": "s"}, "service.unauthenticated"),
}


async def test_client_id_is_the_spiffe_id(root: Path) -> None:
    async with running(root) as (edge, _):
        for name, (changes, code) in REFUSED.items():
            status, body = await edge.post(edge.form(**changes), edge.domain.x509_svid())
            assert (status, body["error"], body["code"]) == (401, "invalid_client", code), name


async def test_the_certificate_of_another_workload_beside_an_assertion(root: Path) -> None:
    async with running(root) as (edge, _):
        status, body = await edge.post(edge.with_assertion(), edge.domain.x509_svid(OTHER))
        assert (status, body["code"]) == (401, "actor.invalid")


LEAVES: dict[str, dict[str, Any]] = {
    "two URIs": {"uris": (BOT, OTHER)},
    "no URI": {"uris": ("",)},
    "a URI with a query": {"uris": (BOT + "?x",)},
    "a URI with a port": {"uris": ("spiffe://acme.example:443/bot",)},
    "a trust domain in capitals": {"uris": ("spiffe://ACME.example/bot",)},
    "another scheme": {"uris": ("https://acme.example/bot",)},
    "a trust domain alone": {"uris": ("spiffe://acme.example",)},
    "a foreign trust domain": {"uris": ("spiffe://stranger.example/bot",)},
    "a neighbour's name under our root": {"uris": ("spiffe://partner.example/bot",)},
    "no digital signature": {"key_usage": ("key_encipherment",)},
    "may sign certificates": {"key_usage": ("digital_signature", "key_cert_sign")},
    "may sign lists": {"key_usage": ("digital_signature", "crl_sign")},
    "a CA": {"ca": True, "key_usage": ("digital_signature", "key_cert_sign")},
}


async def test_certificates_that_are_no_svid_of_ours(root: Path) -> None:
    turned_away = []
    async with running(root) as (edge, _):
        for name, made in LEAVES.items():
            options = {key: value for key, value in made.items() if key != "uris"}
            svid = edge.domain.x509_svid(*made.get("uris", ()), **options)
            try:
                status, body = await edge.post(edge.form(), svid)
            except aiohttp.ClientError:
                turned_away.append(name)  # by the handshake
                continue
            answer = (status, body["error"], body["code"])
            assert answer == (401, "invalid_client", "mtls.invalid"), name
    assert set(turned_away) <= {"no digital signature", "a CA", "may sign certificates"}


@pytest.mark.parametrize(
    "limits",
    [
        {"subjects": ["spiffe://acme.example/ns/agents/sa/other"]},
        {"claims": [{"anything": ["x"]}]},
    ],
    ids=["subjects", "claims"],
)
async def test_what_limits_an_issuer_s_tokens_limits_its_certificates(
    root: Path, limits: dict[str, Any]
) -> None:
    edge = build(root)
    (issuer,) = (
        one for one in edge.world.overrides["issuers"] if one["issuer"] == edge.domain.name
    )
    issuer.update(limits)
    async with serving(edge.world):
        for form in (edge.form(), edge.with_assertion()):
            status, body = await edge.post(form, edge.domain.x509_svid())
            assert (status, body["code"]) == (401, "mtls.invalid")


async def test_the_handshake_turns_away(root: Path) -> None:
    async with running(root) as (edge, _):
        for svid in (
            edge.domain.x509_svid(ttl=-1, starts=-3600),
            edge.domain.x509_svid(starts=300),
            TrustDomain().x509_svid(),
            None,
        ):
            with pytest.raises(aiohttp.ClientError):
                await edge.post(edge.form(), svid)


async def test_a_certificate_that_expires_on_an_open_connection(root: Path) -> None:
    async with running(root) as (edge, _):
        svid = edge.domain.x509_svid(ttl=600)
        async with aiohttp.ClientSession() as client:
            # The certificate's end is by the machine's clock, which went on since the broker's was set.
            for wait, expected in ((0, 200), (700, 401)):
                edge.world.clock.advance(wait)
                async with client.post(
                    edge.where + "/token", data=edge.form(), ssl=edge.context(svid)
                ) as response:
                    body = await response.json()
                    assert response.status == expected, body
            assert body["code"] == "mtls.invalid"


async def test_a_root_that_left_the_bundle_stops_counting(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """OpenSSL still knows the old root; what decides is the bundle as it is now."""
    from valetkey.contracts import keys

    monkeypatch.setattr(keys, "REFRESH_AFTER", 0.0)
    monkeypatch.setattr(keys, "REFETCH_COOLDOWN", 0.0)
    async with running(root) as (edge, served):
        old = edge.domain.x509_svid()
        edge.domain.authority = Authority(edge.domain.name)
        edge.domain.write(root / "bundle.json")
        status, body = await edge.post(edge.form(), old)
        assert (status, body["code"]) == (401, "mtls.invalid")
        await served.broker.base.certificates.load_roots()
        status, body = await edge.post(edge.form(), edge.domain.x509_svid())
        assert status == 200, body


async def test_a_bundle_on_disk_that_changes_counts_within_seconds(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No restart, and no wait until keys are fetched again."""
    from valetkey.contracts import keys

    monkeypatch.setattr(keys, "REFETCH_COOLDOWN", 0.0)
    async with running(root) as (edge, served):
        status, body = await edge.post(edge.form(), edge.domain.x509_svid())
        assert status == 200, body
        old = edge.domain.x509_svid()
        edge.domain.authority = Authority(edge.domain.name)
        edge.domain.write(root / "bundle.json")

        async def known() -> bool:
            try:
                return (await edge.post(edge.form(), edge.domain.x509_svid()))[0] == 200
            except aiohttp.ClientError:
                return False  # the handshake does not know the root yet

        await until(known, "the new root counts")
        status, body = await edge.post(edge.form(), old)
        assert (status, body["code"]) == (401, "mtls.invalid"), "the old one counts no longer"
        (root / "bundle.json").write_text("no bundle")
        await served.broker.base.certificates.load_roots()
        status, body = await edge.post(edge.form(), edge.domain.x509_svid())
        assert status == 200, "a bad file changes nothing"


async def test_without_a_certificate_the_vault_s_tokens_are_refused(root: Path) -> None:
    async with running(root) as (edge, served):
        proof = edge.world.proof(nonce=await served.nonce())
        status, body, _ = await served.post(edge.with_assertion(), proofs=[proof])
        assert (status, body["error"], body["code"]) == (400, "invalid_request", "mtls.missing")


async def test_the_metadata_name_the_aliases(root: Path) -> None:
    async with running(root) as (edge, served):
        _, body, _ = await served.get("/.well-known/oauth-authorization-server")
        document = json.loads(body)
        assert document["tls_client_certificate_bound_access_tokens"] is True
        assert document["mtls_endpoint_aliases"] == {
            "token_endpoint": edge.where + "/token",
            "introspection_endpoint": edge.where + "/introspect",
            "revocation_endpoint": edge.where + "/revoke",
        }
        methods = document["token_endpoint_auth_methods_supported"]
        assert methods == ["private_key_jwt", "spiffe_jwt", "spiffe_x509", "tls_client_auth"]


# --- certificates of another PKI -----------------------------------------------------------------
def for_a_user(edge: Edge, **changes: Any) -> dict[str, Any]:
    """A client that has nothing but its certificate: no token of its own, so no actor_token."""
    form = {"client_assertion": None, "client_assertion_type": None, "client_id": GATEWAY}
    return edge.world.form(
        edge.world.user(), **{**form, "audience": VAULT, "scope": "vault:read", **changes}
    )


async def test_a_client_of_a_pki_acts_for_a_user(root: Path) -> None:
    async with running(root) as (edge, _):
        own = edge.pki.x509_svid(dns=(GATEWAY,))
        status, body = await edge.post(for_a_user(edge), own)
        assert status == 200, body
        claims = claims_of(body["access_token"])
        assert claims["act"] == {"sub": GATEWAY, "iss": PKI}
        assert claims["cnf"] == {"x5t#S256": own.thumbprint}
        # For itself it would need a token, and its issuer gives none.
        form = for_a_user(edge, subject_token=edge.world.workload())
        status, body = await edge.post(form, own)
        assert (status, body["code"]) == (400, "subject.invalid")


async def test_names_of_a_pki_are_exact(root: Path) -> None:
    async with running(root) as (edge, _):
        middle = Authority("https://pki.example/middle", issuer=edge.pki.authority)
        good = {
            GATEWAY: edge.pki.x509_svid(dns=(GATEWAY,), authority=middle, intermediates=[middle]),
            "https://gateway.example/a": edge.pki.x509_svid("https://gateway.example/a"),
        }
        for client_id, svid in good.items():
            form = {"token": "x", "client_id": client_id}
            status, body = await edge.post(form, svid, path="/introspect")
            assert (status, body) == (200, {"active": False}), client_id
            form = {"token": "x", "client_id": "other.example"}
            status, body = await edge.post(form, svid, path="/introspect")
            assert (status, body["code"]) == (401, "actor.invalid"), client_id
        mailbox, address = x509.RFC822Name("gateway@example.org"), ip_address("10.0.0.1")
        bad = {
            "two hosts": edge.pki.x509_svid(dns=(GATEWAY, "other.example")),
            "a host and a URI": edge.pki.x509_svid("https://gateway.example/a", dns=(GATEWAY,)),
            "a wildcard": edge.pki.x509_svid(dns=("*.example",)),
            "an address": edge.pki.x509_svid(others=(x509.IPAddress(address),)),
            "a mailbox": edge.pki.x509_svid(others=(mailbox,)),
            "a distinguished name alone": edge.pki.x509_svid(""),
            "another subject": edge.pki.x509_svid(dns=("other.example",)),
            "a subject of two segments": edge.pki.x509_svid("https://gateway.example/a/b"),
            "a workload of a trust domain": edge.pki.x509_svid(BOT),
            "the name under a trust domain's root": edge.domain.x509_svid(dns=(GATEWAY,)),
        }
        for name, svid in bad.items():
            form = {"token": "x", "client_id": GATEWAY}
            status, body = await edge.post(form, svid, path="/introspect")
            answer = (status, body["error"], body["code"])
            assert answer == (401, "invalid_client", "mtls.invalid"), name


# --- a resource server that takes bound tokens ---------------------------------------------------
async def test_a_resource_server_compares_the_thumbprint_of_introspection(root: Path) -> None:
    """RFC 8705 §3, §3.2: with another certificate, or none, the token is 401 invalid_token."""
    async with running(root) as (edge, _):
        own, other = edge.domain.x509_svid(), edge.domain.x509_svid()
        server = edge.domain.x509_svid(OTHER)
        _, body = await edge.post(edge.form(), own)
        token = body["access_token"]

        async def resource(request: web.Request) -> web.Response:
            bearer = request.headers["Authorization"].removeprefix("Bearer ")
            form = {"token": bearer, "client_id": OTHER}
            status, answer = await edge.post(form, server, path="/introspect")
            assert (status, answer["active"], answer["token_type"]) == (200, True, "Bearer")
            assert request.transport is not None
            tls = request.transport.get_extra_info("ssl_object")
            certificate = tls.getpeercert(binary_form=True)
            try:
                check_binding(answer, thumbprint(certificate) if certificate else "")
            except CallerError as error:
                challenge = f'Bearer error="{error.code.oauth}"'
                return web.Response(
                    status=error.code.status, headers={"WWW-Authenticate": challenge}
                )
            return web.Response(text="secret")

        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        edge.authority.issue_cert("localhost").configure_cert(context)
        context.verify_mode = ssl.CERT_OPTIONAL
        context.load_verify_locations(
            cadata=edge.domain.authority.certificate.public_bytes(Encoding.DER)
        )
        app = web.Application()
        app.router.add_get("/", resource)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context).start()
        url = f"https://localhost:{runner.addresses[0][1]}/"
        try:
            for svid, expected in ((own, 200), (other, 401), (None, 401)):
                async with (
                    aiohttp.ClientSession() as client,
                    client.get(
                        url,
                        headers={"Authorization": f"Bearer {token}"},
                        ssl=edge.context(svid),
                    ) as response,
                ):
                    assert response.status == expected
                    if expected == 401:
                        assert response.headers["WWW-Authenticate"] == (
                            'Bearer error="invalid_token"'
                        )
        finally:
            await runner.cleanup()


async def test_an_administrator_s_bound_token_needs_its_certificate(root: Path) -> None:
    async with running(root) as (edge, _):
        own, other = edge.domain.x509_svid(), edge.domain.x509_svid()
        bound = edge.world.admin(cnf={"x5t#S256": own.thumbprint})
        unknown = edge.world.admin(cnf={"jkt": "x"})
        cases = [
            (edge.where, bound, own, 200),
            (edge.where, bound, other, 401),
            (edge.world.url, bound, own, 401),  # no certificate gets through there
            (edge.where, unknown, own, 401),
            (edge.where, edge.world.admin(), other, 200),
        ]
        for where, token, svid, expected in cases:
            async with (
                aiohttp.ClientSession() as client,
                client.get(
                    where + "/v1/admin/whoami",
                    headers={"Authorization": f"Bearer {token}"},
                    ssl=edge.context(svid),
                ) as response,
            ):
                body = await response.json()
                assert response.status == expected, body
                if expected == 401:
                    assert body["code"] == "mtls.mismatch"


# --- behind a terminator -------------------------------------------------------------------------
def headers(svid: Svid, *, chain: bool = True) -> list[tuple[str, str]]:
    """RFC 9440 §2, as HAProxy or Envoy are made to send it."""
    fields = [
        f":{base64.b64encode(one.public_bytes(Encoding.DER)).decode()}:" for one in svid.chain
    ]
    made = [("Client-Cert", fields[0])]
    if chain and fields[1:]:
        made.append(("Client-Cert-Chain", ", ".join(fields[1:])))
    return made


async def test_behind_a_terminator_on_loopback(root: Path) -> None:
    async with running(root, "loopback") as (edge, _):
        middle = Authority(edge.domain.name, issuer=edge.domain.authority)
        svid = edge.domain.x509_svid(authority=middle, intermediates=[middle])
        status, body = await edge.post(edge.form(), None, headers=headers(svid), where=edge.where)
        assert status == 200, body
        assert claims_of(body["access_token"])["cnf"] == {"x5t#S256": svid.thumbprint}
        for sent in ([], headers(svid, chain=False)):
            status, body = await edge.post(edge.form(), None, headers=sent, where=edge.where)
            assert (status, body["error"]) == (401, "invalid_client")


BAD_HEADERS: dict[str, list[tuple[str, str]]] = {
    "no colons": [("Client-Cert", "AAAA")],
    "not base64": [("Client-Cert", ":??:")],
    "empty": [("Client-Cert", "::")],
    "no certificate": [("Client-Cert", ":AAAA:")],
    "twice": [("Client-Cert", ":AAAA:"), ("Client-Cert", ":AAAA:")],
    "a list": [("Client-Cert", ":AAAA:, :AAAA:")],
    "a chain alone": [("Client-Cert-Chain", ":AAAA:")],
    "a long chain": [("Client-Cert", ":AAAA:"), ("Client-Cert-Chain", ", ".join([":AAAA:"] * 9))],
    "PEM": [("Client-Cert", "-----BEGIN CERTIFICATE-----")],
}


async def test_headers_that_hold_no_certificate(root: Path) -> None:
    async with running(root, "loopback") as (edge, _):
        for name, sent in BAD_HEADERS.items():
            status, body = await edge.post(edge.form(), None, headers=sent, where=edge.where)
            answer = (status, body["error"], body["code"])
            assert answer == (401, "invalid_client", "mtls.invalid"), name


@pytest.mark.parametrize("terminator", ["", "loopback", TERMINATOR], ids=["none", "own", "id"])
async def test_a_header_from_a_stranger_is_refused(root: Path, terminator: str) -> None:
    """At the main listener nobody is a terminator, whatever stands before it."""
    async with running(root, terminator) as (edge, served):
        value = headers(edge.domain.x509_svid())[0][1]
        form = {**edge.form(), "token": "x"}
        for path in ("/token", "/introspect", "/revoke"):
            for name in ("Client-Cert", "Client-Cert-Chain"):
                status, body, _ = await served.post(form, path=path, headers=[(name, value)])
                answer = (status, body["error"], body["code"])
                assert answer == (400, "invalid_request", "mtls.header"), (path, name)


@pytest.mark.parametrize("terminator", ["", TERMINATOR], ids=["none", "another"])
async def test_a_client_s_own_header_over_tls_is_refused(root: Path, terminator: str) -> None:
    async with running(root, terminator) as (edge, _):
        victim = edge.domain.x509_svid()
        status, body = await edge.post(
            edge.form(), edge.domain.x509_svid(OTHER), headers=headers(victim)
        )
        assert (status, body["code"]) == (400, "mtls.header")


async def test_a_terminator_that_authenticates(root: Path) -> None:
    async with running(root, TERMINATOR) as (edge, _):
        terminator = edge.domain.x509_svid(TERMINATOR)
        svid = edge.domain.x509_svid()
        status, body = await edge.post(edge.form(), terminator, headers=headers(svid))
        assert status == 200, body
        assert claims_of(body["access_token"])["cnf"] == {"x5t#S256": svid.thumbprint}
        # A client without a certificate does not come in as the terminator.
        status, body = await edge.post(edge.form(client_id=TERMINATOR), terminator)
        assert (status, body["code"]) == (401, "service.unauthenticated")
        # And clients may come directly.
        status, body = await edge.post(edge.form(), svid)
        assert status == 200, body

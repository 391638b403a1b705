"""The way to the target: addresses, TLS, redirects, many routes; and the credential in the call."""

from __future__ import annotations

import ssl
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
import trustme

from tests.support.canaries import CANARIES
from tests.support.recording import OK, Recording, Wire
from tests.support.sidecar import AUDIENCE, BOT, BOUND, Sidecar, World, target, whole
from valetkey.contracts.dpop import VerifiedProof, verify_proof
from valetkey.contracts.jose import TokenInvalid

pytest_plugins = ["tests.support.wire_fixtures"]

ROUTES = 1000


@dataclass
class Ends:
    """TLS upstreams by what is wrong with them, and the files that they are verified with."""

    upstreams: dict[str, Recording]
    ca_file: Path
    asked: list[str | None]
    """Server names that the good one was asked for (RFC 6066 §3)."""


def _server(authority: trustme.CA, *names: str, **more: Any) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names, **more).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def ends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ends]:
    ours, strangers = trustme.CA(), trustme.CA()
    past = datetime.now(UTC) - timedelta(days=1)
    contexts = {
        "good": _server(ours, "localhost", "127.0.0.1"),
        "name": _server(ours, "elsewhere.example"),
        "stranger": _server(strangers, "localhost"),
        "expired": _server(ours, "localhost", not_after=past),
    }
    asked: list[str | None] = []
    contexts["good"].set_servername_callback(lambda _tls, name, _context: asked.append(name))
    upstreams = {name: Recording(context=context) for name, context in contexts.items()}
    ca_file = tmp_path_factory.mktemp("ca") / "ca.pem"
    ours.cert_pem.write_to_path(str(ca_file))
    yield Ends(upstreams, ca_file, asked)
    for upstream in upstreams.values():
        upstream.close()


@pytest.fixture(scope="module")
def sidecar(wire_world: World, session_upstream: Recording, ends: Ends) -> Iterator[Sidecar]:
    plain = session_upstream.url
    port = session_upstream.port
    targets = {
        "bearer": target(plain, prefix="/bearer", hosts=["bearer.local"]),
        "header": target(
            plain, prefix="/header", credential={"kind": "header", "name": "X-Vendor-Key"}
        ),
        "dpop": target(plain, prefix="/dpop", audience=BOUND, credential={"kind": "dpop"}),
        "many": target(plain, prefix="/many"),
        "exact": target(plain, prefix="/exact"),
        "denied": target(plain, prefix="/denied", allow_networks=[]),
        "named": target(f"http://localhost:{port}", prefix="/named", allow_networks=["10.0.0.0/8"]),
        "metadata": target("http://169.254.169.254", prefix="/metadata", allow_networks=["0.0.0.0/0"]),
        "nowhere": target("http://no-such-name.invalid", prefix="/nowhere"),
        "refused": target(plain, prefix="/refused", audience="https://not-granted.example"),
    }  # fmt: skip
    for name, upstream in ends.upstreams.items():
        targets[f"tls-{name}"] = target(
            f"https://localhost:{upstream.port}",
            prefix=f"/tls-{name}",
            ca_file=str(ends.ca_file),
            allow_networks=["127.0.0.0/8", "::1/128"],
        )
    targets["tls-address"] = target(
        ends.upstreams["good"].url, prefix="/tls-address", ca_file=str(ends.ca_file)
    )
    targets["tls-to-plain"] = target(
        f"https://127.0.0.1:{port}", prefix="/tls-to-plain", ca_file=str(ends.ca_file)
    )
    routes = [whole(name) for name in targets if name not in {"many", "exact"}]
    routes += [
        {
            "id": f"many-{n}",
            "target": "many",
            "match": {"methods": ["GET"], "path": f"/svc{n}/items/{{id}}"},
            "scopes": ["s:read"],
        }
        for n in range(ROUTES)
    ]
    routes.append(whole("exact", per_request=True, scopes=["s:write"]))
    made = wire_world.sidecar("targets", targets, routes=routes)
    yield made
    assert made.defects() == []
    made.stop()


def get(path: str, *lines: str, method: str = "GET", body: bytes = b"") -> bytes:
    head = "\r\n".join([f"{method} {path} HTTP/1.1", "Host: h", *lines, "", ""])
    return head.encode() + body


def claims(token: str) -> dict[str, Any]:
    """The claims of a token that the upstream got; it came straight from the broker."""
    CANARIES.add(token, name="access token")
    decoded: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    return decoded


def bearer(upstream: Recording) -> dict[str, Any]:
    [value] = upstream.requests[-1].values("authorization")
    assert value.startswith("Bearer ")
    return claims(value.removeprefix("Bearer "))


# --- TLS ------------------------------------------------------------------------------------------

TLS = [
    ("good", "tls-good", None),
    ("good, by address", "tls-address", None),
    ("wrong name", "tls-name", "target.tls_failed"),
    ("unknown authority", "tls-stranger", "target.tls_failed"),
    ("expired", "tls-expired", "target.tls_failed"),
    ("no TLS at all", "tls-to-plain", "target.tls_failed"),
]


@pytest.mark.parametrize(("name", "prefix", "code"), TLS, ids=[case[0] for case in TLS])
def test_tls_targets(
    name: str, prefix: str, code: str | None, sidecar: Sidecar, ends: Ends, upstream: Recording
) -> None:
    if code is None:
        good = ends.upstreams["good"]
        good.clear()
        for _ in range(2):
            assert sidecar.ask(get(f"/{prefix}/a")).body == b"ok"
        assert [request.line for request in good.requests] == [b"GET /a HTTP/1.1"] * 2
        assert len(good.wires) == 1  # kept open
        assert isinstance(good.wires[0].sock, ssl.SSLSocket)
        return
    if prefix == "tls-to-plain":
        upstream.script(lambda wire: (wire.peek(), wire.send(OK), wire.close()))
    answer = sidecar.ask(get(f"/{prefix}/a"))
    assert (answer.code, answer.status) == (code, 502)
    assert not any(other.requests for name, other in ends.upstreams.items() if name != "good")
    assert upstream.requests == []


def test_one_name_for_policy_server_name_certificate_and_host(sidecar: Sidecar, ends: Ends) -> None:
    """Whatever the caller's Host says: the settings' name, or address, is asked for and sent."""
    good = ends.upstreams["good"]
    good.clear()
    for prefix, name in (("tls-good", "localhost"), ("tls-address", "127.0.0.1")):
        raw = f"GET /{prefix}/a HTTP/1.1\r\nHost: ELSEWHERE.example.\r\n\r\n".encode()
        assert sidecar.ask(raw).body == b"ok"
        assert good.requests[-1].values("host") == [f"{name}:{good.port}"]
    assert set(ends.asked) == {"localhost", None}


def test_a_large_body_goes_through_tls_both_ways(sidecar: Sidecar, ends: Ends) -> None:
    good = ends.upstreams["good"]
    good.clear()
    body = bytes(range(256)) * 4096 * 4
    good.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    with sidecar.open() as client:
        client.send(get("/tls-good/a", f"Content-Length: {len(body)}", method="PUT", body=body))
        assert client.answer().body == body
    assert good.requests[-1].body == body


def test_tls_that_ends_without_a_word_is_a_broken_answer(sidecar: Sidecar, ends: Ends) -> None:
    """An unframed body whose end is not authenticated may have been cut (RFC 8446 §6.1)."""
    good = ends.upstreams["good"]
    good.clear()

    def cut(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        # Past the TLS layer: the TCP connection ends, and no close_notify was sent.
        wire.sock.shutdown(2)

    good.script(cut)
    with sidecar.open() as client:
        client.send(get("/tls-good/a"))
        assert client.broken()


def test_tls_that_says_goodbye_is_a_whole_answer(sidecar: Sidecar, ends: Ends) -> None:
    good = ends.upstreams["good"]
    good.clear()

    def end(wire: Wire) -> None:
        wire.request()
        wire.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        assert isinstance(wire.sock, ssl.SSLSocket)
        wire.sock = wire.sock.unwrap()

    good.script(end)
    assert sidecar.ask(get("/tls-good/a")).body == b"hello"


# --- addresses ------------------------------------------------------------------------------------

ADDRESSES = [
    ("loopback that is not allowed", "denied", "target.address_denied", 403),
    ("a name that leads to what is not allowed", "named", "target.address_denied", 403),
    ("metadata, with everything allowed", "metadata", "target.address_denied", 403),
    ("a name that leads nowhere", "nowhere", "target.unreachable", 502),
]


@pytest.mark.parametrize(
    ("name", "prefix", "code", "status"), ADDRESSES, ids=[case[0] for case in ADDRESSES]
)
def test_addresses(
    name: str, prefix: str, code: str, status: int, sidecar: Sidecar, upstream: Recording
) -> None:
    answer = sidecar.ask(get(f"/{prefix}/a"))
    assert (answer.code, answer.status) == (code, status)
    assert upstream.wires == []


# --- what comes back ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_is_passed_on_and_never_followed(
    status: int, sidecar: Sidecar, upstream: Recording
) -> None:
    location = f"{upstream.url}/elsewhere".encode()
    upstream.replies(
        b"HTTP/1.1 %d Moved\r\nLocation: %b\r\nContent-Length: 0\r\n\r\n" % (status, location)
    )
    answer = sidecar.ask(get("/bearer/a"))
    assert (answer.status, answer.values("location")) == (status, [location.decode()])
    assert [request.line for request in upstream.requests] == [b"GET /a HTTP/1.1"]


def test_what_the_target_says_of_credentials_does_not_come_back(
    sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.replies(
        b"HTTP/1.1 403 No\r\nWWW-Authenticate: Bearer\r\nProxy-Authenticate: x\r\nDPoP-Nonce: n\r\n"
        b"Authentication-Info: a\r\nKeep-Alive: timeout=5\r\nX-Kept: yes\r\nContent-Length: 2\r\n\r\nno"
    )
    answer = sidecar.ask(get("/bearer/a"))
    assert (answer.status, answer.reason, answer.body) == (403, b"No", b"no")
    kept = b"X-Kept: yes\r\nvia: 1.1 valetkey\r\ncontent-length: 2\r\n\r\n"
    assert answer.head == b"HTTP/1.1 403 No\r\n" + kept


# --- routes ---------------------------------------------------------------------------------------


def test_a_thousand_routes_lead_where_they_should(sidecar: Sidecar, upstream: Recording) -> None:
    numbers = [0, 1, 499, ROUTES - 1]
    with sidecar.open() as client:
        for n in numbers:
            client.send(get(f"/many/svc{n}/items/7"))
            assert client.answer().body == b"ok"
        for path in (f"/many/svc{ROUTES}/items/7", "/many/svc0/items", "/many/svc0/items/7/8"):
            client.send(get(path))
            assert client.answer().code == "route.no_match"
    assert [request.line for request in upstream.requests] == [
        b"GET /svc%d/items/7 HTTP/1.1" % n for n in numbers
    ]


def test_an_encoded_prefix_is_cut_where_it_ends(sidecar: Sidecar, upstream: Recording) -> None:
    assert sidecar.ask(get("/%62earer/a/b")).body == b"ok"
    assert upstream.requests[-1].line == b"GET /a/b HTTP/1.1"


@pytest.mark.parametrize("host", ["bearer.local", "BEARER.local.", "bearer.local:80"])
def test_a_target_by_its_host(host: str, sidecar: Sidecar, upstream: Recording) -> None:
    assert sidecar.ask(f"GET /a HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).body == b"ok"
    assert upstream.requests[-1].fields[0] == f"host: 127.0.0.1:{upstream.port}".encode()


# --- credentials ----------------------------------------------------------------------------------


def test_a_bearer_is_the_workloads_and_fits_the_call(sidecar: Sidecar, upstream: Recording) -> None:
    assert sidecar.ask(get("/bearer/a", "Authorization: Bearer stolen")).body == b"ok"
    token = bearer(upstream)
    assert (token["sub"], token["aud"], token["scope"]) == (BOT, AUDIENCE, "s:read")
    assert "cnf" not in token


def test_a_named_header_carries_the_token_alone(sidecar: Sidecar, upstream: Recording) -> None:
    assert sidecar.ask(get("/header/a", "x_vendor_KEY: stolen", "X-Vendor-Key: too")).body == b"ok"
    request = upstream.requests[-1]
    [value] = request.values("x-vendor-key")
    assert claims(value)["aud"] == AUDIENCE
    assert request.values("authorization") == []
    assert b"stolen" not in request.head


def test_a_users_token_makes_the_user_the_subject_and_the_workload_the_actor(
    sidecar: Sidecar, upstream: Recording, wire_world: World
) -> None:
    for name, scheme in (("alice", "Bearer "), ("bob", "")):
        raw = get("/bearer/a", f"X-Valetkey-Subject: {scheme}{wire_world.user(name)}")
        assert sidecar.ask(raw).body == b"ok"
        token = bearer(upstream)
        assert (token["sub"], token["act"]["sub"]) == (name, BOT)
        assert upstream.requests[-1].values("x-valetkey-subject") == []
    assert sidecar.ask(get("/bearer/a")).body == b"ok"
    assert bearer(upstream)["sub"] == BOT  # not whoever came before


def test_an_expired_users_token_is_refused(
    sidecar: Sidecar, upstream: Recording, wire_world: World
) -> None:
    expired = wire_world.user("alice", ttl=-60)
    answer = sidecar.ask(get("/bearer/a", f"X-Valetkey-Subject: {expired}"))
    assert (answer.code, answer.status) == ("subject.invalid", 403)
    assert upstream.requests == []


def test_a_target_that_was_not_granted_is_refused(sidecar: Sidecar, upstream: Recording) -> None:
    answer = sidecar.ask(get("/refused/a"))
    assert answer.status == 403
    assert answer.code.partition(".")[0] in {"grant", "broker"}
    assert upstream.wires == []


def test_one_credential_per_call_names_the_call(sidecar: Sidecar, upstream: Recording) -> None:
    seen = []
    for path in ("/exact/a/1", "/exact/a/2?x=y"):
        raw = get(path, "Content-Length: 2", method="POST", body=b"hi")
        assert sidecar.ask(raw).body == b"ok"
        token = bearer(upstream)
        [details] = token["authorization_details"]
        seen.append((token["jti"], details["path"], details["actions"], details["exact"]))
    assert [entry[1:] for entry in seen] == [
        ("/a/1", ["POST"], True), ("/a/2", ["POST"], True),
    ]  # fmt: skip
    assert seen[0][0] != seen[1][0]


# --- 401 ------------------------------------------------------------------------------------------

UNAUTHORIZED = b"HTTP/1.1 401 No\r\nWWW-Authenticate: Bearer\r\nContent-Length: 2\r\n\r\nno"


@pytest.mark.parametrize("body", [b"", b"hello"])
def test_a_401_gets_a_new_credential_once(
    body: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    raw = get("/bearer/a", f"Content-Length: {len(body)}", method="POST", body=body)
    upstream.replies(UNAUTHORIZED)
    assert sidecar.ask(raw).body == b"ok"
    first, second = upstream.requests
    assert (first.line, first.body) == (second.line, second.body)
    assert first.values("authorization") != second.values("authorization")
    # What is fresh is kept.
    assert sidecar.ask(raw).body == b"ok"
    assert upstream.requests[-1].values("authorization") == second.values("authorization")


def test_a_second_401_is_the_answer(sidecar: Sidecar, upstream: Recording) -> None:
    for _ in range(2):
        upstream.replies(UNAUTHORIZED)
    answer = sidecar.ask(get("/bearer/a"))
    assert (answer.status, answer.body, answer.values("www-authenticate")) == (401, b"no", [])
    assert len(upstream.requests) == 2


def test_a_call_whose_body_is_still_coming_is_not_repeated(
    sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.script(lambda wire: (wire.until(b"\r\n\r\n"), wire.send(UNAUTHORIZED)))
    with sidecar.open() as client:
        client.send(get("/bearer/a", "Content-Length: 10", method="POST", body=b"hello"))
        assert client.answer().status == 401
    assert sidecar.ask(get("/bearer/a")).body == b"ok"  # with a new credential


# --- DPoP -----------------------------------------------------------------------------------------


def proof_of(
    upstream: Recording, path: str, *, method: str = "GET", nonce: str = ""
) -> VerifiedProof:
    """The proof of the last request, with everything that a resource server checks."""
    request = upstream.requests[-1]
    [authorization], [proof] = request.values("authorization"), request.values("dpop")
    scheme, _, token = authorization.partition(" ")
    assert scheme == "DPoP"
    verified = verify_proof(
        proof,
        method=method,
        url=f"{upstream.url}{path}",
        now=time.time(),
        access_token=token,
        nonce_is_ours=lambda given: given == nonce,
    )
    token_claims = claims(token)
    assert token_claims["cnf"] == {"jkt": verified.thumbprint}
    assert token_claims["aud"] == BOUND
    return verified


@pytest.fixture
def no_nonce(sidecar: Sidecar, upstream: Recording) -> None:
    """The target's last nonce, as far as the sidecar knows, is ``n-0``."""
    upstream.replies(b"HTTP/1.1 200 OK\r\nDPoP-Nonce: n-0\r\nContent-Length: 2\r\n\r\nok")
    assert sidecar.ask(get("/dpop/")).values("dpop-nonce") == []
    upstream.requests.clear()


@pytest.mark.usefixtures("no_nonce")
def test_each_call_has_a_proof_of_its_own(sidecar: Sidecar, upstream: Recording) -> None:
    proofs = []
    for path in ("/a/b", "/a/b?c=d"):
        assert sidecar.ask(get(f"/dpop{path}", "DPoP: stolen")).body == b"ok"
        proofs.append(proof_of(upstream, "/a/b", nonce="n-0"))  # htu has no query
        with pytest.raises(TokenInvalid):
            proof_of(upstream, "/a/c", nonce="n-0")
    assert proofs[0].jti != proofs[1].jti
    assert proofs[0].thumbprint == proofs[1].thumbprint


CHALLENGE = (
    b'HTTP/1.1 401 No\r\nWWW-Authenticate: DPoP error="use_dpop_nonce"\r\n'
    b"DPoP-Nonce: n-1\r\nContent-Length: 0\r\n\r\n"
)


@pytest.mark.usefixtures("no_nonce")
@pytest.mark.parametrize(("method", "body"), [("GET", b""), ("POST", b"hello")])
def test_a_nonce_challenge_is_met_with_the_same_token(
    method: str, body: bytes, sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.replies(CHALLENGE)
    raw = get("/dpop/a", f"Content-Length: {len(body)}", method=method, body=body)
    answer = sidecar.ask(raw)
    assert (answer.status, answer.body) == (200, b"ok")
    assert answer.values("dpop-nonce") == []
    first, second = upstream.requests
    assert (second.line, second.body) == (first.line, body)
    assert second.values("authorization") == first.values("authorization")
    proof_of(upstream, "/a", method=method, nonce="n-1")
    # And the next call has it from the start.
    assert sidecar.ask(raw).body == b"ok"
    proof_of(upstream, "/a", method=method, nonce="n-1")
    assert len(upstream.requests) == 3


@pytest.mark.usefixtures("no_nonce")
def test_a_nonce_challenge_to_chunks_is_met_too(sidecar: Sidecar, upstream: Recording) -> None:
    upstream.replies(CHALLENGE)
    body = b"5\r\nhello\r\n0\r\n\r\n"
    raw = get("/dpop/a", "Transfer-Encoding: chunked", method="POST", body=body)
    assert sidecar.ask(raw).body == b"ok"
    assert [request.body for request in upstream.requests] == [body, body]


@pytest.mark.usefixtures("no_nonce")
def test_a_target_that_challenges_for_ever_is_answered_once(
    sidecar: Sidecar, upstream: Recording
) -> None:
    for _ in range(2):
        upstream.replies(CHALLENGE)
    assert sidecar.ask(get("/dpop/a")).status == 401
    assert len(upstream.requests) == 2


@pytest.mark.usefixtures("no_nonce")
def test_a_nonce_that_comes_with_a_good_answer_is_used_next(
    sidecar: Sidecar, upstream: Recording
) -> None:
    upstream.replies(OK.replace(b"\r\n\r\n", b"\r\nDPoP-Nonce: n-2\r\n\r\n"))
    assert sidecar.ask(get("/dpop/a")).body == b"ok"
    assert sidecar.ask(get("/dpop/a")).body == b"ok"
    proof_of(upstream, "/a", nonce="n-2")


def test_a_401_without_a_broker_is_the_outcome_of_the_call_and_no_second_decision(
    tmp_path: Path, upstream: Recording
) -> None:
    world = World(tmp_path)
    world.start()
    made = world.sidecar("alone", {"up": target(upstream.url, prefix="/up")})
    try:
        assert made.ask(get("/up/1")).body == b"ok"
        world.broker.kill()
        upstream.replies(UNAUTHORIZED)
        answer = made.ask(get("/up/2"))
        assert (answer.code, answer.status) == ("broker.unavailable", 503)
        assert answer.values("retry-after") == ["5"]
        with urllib.request.urlopen(f"http://127.0.0.1:{made.admin}/metrics") as page:
            metrics = page.read().decode()
        # The boot, and a decision with its outcome for each of the two calls.
        assert "valetkey_events_written_total 5.0" in metrics.splitlines()
        made.stop()
    finally:
        world.broker.kill()
        made.kill()

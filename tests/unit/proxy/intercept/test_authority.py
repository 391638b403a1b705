"""Contexts per host: who gets one, who is refused and why, and how long one is kept."""

from __future__ import annotations

import ssl
import time

import pytest

from tests.support.handshake import client_context, shake
from valetkey.contracts import codes
from valetkey.contracts.settings import Duration
from valetkey.proxy.intercept import authority as module
from valetkey.proxy.intercept import certificates
from valetkey.proxy.intercept.authority import InterceptionAuthority
from valetkey.proxy.intercept.certificates import CannotIssue
from valetkey.proxy.intercept.handshake import HandshakeFailed
from valetkey.proxy.settings import InterceptionSettings

HOST = "api.example.com"


class Clock:
    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def authority(clock: Clock) -> InterceptionAuthority:
    return InterceptionAuthority.open(InterceptionSettings(), instance="sidecar-1", now=clock)


@pytest.fixture
def client(authority: InterceptionAuthority) -> ssl.SSLContext:
    return client_context(authority.pem)


VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("host", [HOST, "127.0.0.1", "2001:db8::1", "a." * 120 + "example"])
def test_a_host_is_served(authority, host, version):
    client = client_context(authority.pem, maximum=version)
    shaken = shake(authority.context(host), client, host)
    assert shaken.good
    assert shaken.client.version() == {VERSIONS[0]: "TLSv1.2", VERSIONS[1]: "TLSv1.3"}[version]
    assert shaken.client.selected_alpn_protocol() == "http/1.1"


async def test_a_context_is_made_without_blocking_the_loop(authority):
    """No file is read or written: blockbuster would say so."""
    authority.context(HOST)


SPELLINGS = [
    (HOST, "API.Example.COM"),
    (HOST, "api.example.com."),
    ("127.0.0.1", "127.0.0.1"),
    ("2001:db8::1", "[2001:DB8:0::1]"),
]


@pytest.mark.parametrize(("host", "spelt"), SPELLINGS)
def test_one_host_has_one_context_however_it_is_spelt(authority, client, host, spelt):
    assert authority.context(spelt) is authority.context(host)
    assert authority.minted == 1
    assert shake(authority.context(spelt), client, host).good


@pytest.mark.parametrize("asked", ["API.example.COM", "api.example.com."])
def test_the_clients_spelling_does_not_matter_either(authority, client, asked):
    client.check_hostname = False
    assert shake(authority.context(HOST), client, asked).server_error is None


REFUSED = [
    ("another name", HOST, "other.example.com", "other.example.com"),
    ("a name below", HOST, "x.api.example.com", "x.api.example.com"),
    ("a name above", HOST, "example.com", "example.com"),
    ("none", HOST, None, ""),
    ("a name for an address", "127.0.0.1", "localhost", "localhost"),
]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(("_name", "host", "asked", "told"), REFUSED, ids=[r[0] for r in REFUSED])
def test_another_server_name_is_refused(authority, _name, host, asked, told, version):
    shaken = shake(authority.context(host), client_context(authority.pem, maximum=version), asked)
    error = shaken.server_error
    assert isinstance(error, HandshakeFailed)
    assert (error.code, error.server_name, error.detail) == (
        codes.INTERCEPTION_SERVER_NAME,
        told,
        "",
    )
    assert shaken.client_error.reason == "TLSV1_UNRECOGNIZED_NAME"  # alert 112


def test_an_address_is_served_without_a_server_name(authority, client):
    assert shake(authority.context("127.0.0.1"), client, None).good


def test_a_client_that_does_not_trust_the_ca_is_told_apart(authority):
    other = InterceptionAuthority.open(InterceptionSettings(), instance="sidecar-1")
    error = shake(authority.context(HOST), client_context(other.pem), HOST).server_error
    assert isinstance(error, HandshakeFailed)
    assert error.code is codes.INTERCEPTION_UNTRUSTED
    assert error.server_name == HOST


def test_an_old_protocol_is_refused(authority):
    client = client_context(authority.pem)
    client.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    error = shake(authority.context(HOST), client, HOST).server_error
    assert isinstance(error, HandshakeFailed)
    assert error.code is codes.INTERCEPTION_HANDSHAKE_FAILED
    assert error.detail == "UNSUPPORTED_PROTOCOL"


NOT_TLS = {
    "a request": b"GET / HTTP/1.1\r\n\r\n",
    "a request to a proxy": b"CONNECT a.example:443 HTTP/1.1\r\n\r\n",
    "HTTP/2 without TLS": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "SSH": b"SSH-2.0-OpenSSH_9.2\r\n",
    "PostgreSQL": b"\x00\x00\x00\x08\x04\xd2\x16\x2f",
    "zeros": bytes(64),
    "a record without a hello": b"\x16\x03\x01\x00\x05hello" + bytes(300),
    "a record too long": b"\x16\x03\x01\xff\xff" + bytes(300),
}


@pytest.mark.parametrize("sent", NOT_TLS.values(), ids=NOT_TLS)
def test_what_is_not_tls_is_called_so(authority, sent):
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    connection = authority.context(HOST).wrap_bio(incoming, outgoing, server_side=True)
    incoming.write(sent)
    with pytest.raises(HandshakeFailed) as failed:
        connection.do_handshake()
    assert failed.value.code is codes.INTERCEPTION_NOT_TLS
    assert failed.value.detail


# --- how long a context is kept ------------------------------------------------------------------


def test_a_context_is_replaced_before_its_certificate_ends(clock):
    settings = InterceptionSettings(leaf_lifetime=Duration(1000))
    authority = InterceptionAuthority.open(settings, instance="a", now=clock)
    first = authority.context(HOST)
    clock.now += 799
    assert authority.context(HOST) is first
    clock.now += 1
    assert authority.context(HOST) is not first


def test_contexts_are_bounded_and_the_least_used_goes_first(authority, monkeypatch):
    monkeypatch.setattr(module, "_CONTEXTS", 2)
    authority = InterceptionAuthority.open(InterceptionSettings(), instance="a")
    a, b = authority.context("a.example"), authority.context("b.example")
    assert authority.context("a.example") is a
    authority.context("c.example")
    assert authority.context("a.example") is a
    assert authority.context("b.example") is not b


def test_sessions_of_old_clients_do_not_pile_up(authority, monkeypatch):
    """TLS 1.2 without tickets: each session stays in the context's cache, so the context goes."""
    monkeypatch.setattr(module, "_SESSIONS", 3)
    client = client_context(authority.pem, maximum=ssl.TLSVersion.TLSv1_2)
    client.options |= ssl.OP_NO_TICKET
    first = authority.context(HOST)
    for _ in range(3):
        assert authority.context(HOST) is first
        assert shake(first, client, HOST, close=True).good
    assert authority.context(HOST) is not first


def test_no_certificate_without_a_file_descriptor(authority, monkeypatch):
    def none_left() -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(module.os, "pipe", none_left)
    with pytest.raises(CannotIssue, match="Too many open files"):
        authority.context(HOST)


def test_no_certificate_from_an_expired_ca(authority, clock):
    clock.now = authority.expires
    with pytest.raises(CannotIssue) as refused:
        authority.context(HOST)
    assert refused.value.code is codes.INTERCEPTION_NO_CERTIFICATE


def test_the_ca_is_renewed_in_time_and_clients_of_the_old_one_go_on(authority, client, clock):
    old, before = authority.certificate, authority.context(HOST)
    assert not authority.renew()
    clock.now += certificates.CA_LIFETIME / 2
    assert authority.renew()
    assert not authority.renew()
    assert authority.certificate != old
    assert authority.certificate.subject == old.subject
    assert authority.expires == int(clock.now + certificates.CA_LIFETIME)
    assert authority.context(HOST) is not before
    leaf = shake(authority.context(HOST), client, HOST)
    # The client's clock is the real one, for which this leaf is of the future.
    assert leaf.client_error.verify_code == 9  # X509_V_ERR_CERT_NOT_YET_VALID, not an unknown CA


# --- resumed sessions ----------------------------------------------------------------------------


def resumed(authority, contexts, hosts):
    """Whether the second host takes up the session of the first; in TLS 1.2."""
    client = client_context(authority.pem, maximum=ssl.TLSVersion.TLSv1_2)
    first = shake(contexts[0], client, hosts[0], close=True)
    assert first.good
    second = shake(contexts[1], client, hosts[1], session=first.client.session)
    assert second.good
    assert second.server.session_reused == second.client.session_reused
    return second.client.session_reused


def test_a_session_is_taken_up_by_its_own_host_alone(authority):
    mine, other = authority.context(HOST), authority.context("other.example")
    assert resumed(authority, (mine, mine), (HOST, HOST))
    assert not resumed(authority, (mine, other), (HOST, "other.example"))

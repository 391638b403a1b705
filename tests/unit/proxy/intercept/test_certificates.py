"""What a CA and its leaves say, field by field, and which given CAs are refused."""

from __future__ import annotations

import ipaddress
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st

from tests.support.authorities import Ca, canary, key_usage, make
from tests.support.handshake import client_context, shake
from valetkey.contracts.errors import ConfigError
from valetkey.proxy.intercept import certificates
from valetkey.proxy.intercept.authority import _loaded
from valetkey.proxy.intercept.certificates import (
    BACKDATED,
    CA_LIFETIME,
    CannotIssue,
    Issuer,
    key_pem,
    new_authority,
    new_key,
    read_authority,
    renewed,
)

NOW = float(int(time.time()))
KEY = new_key()
HOST = "api.example.com"


def issued(issuer: Issuer, host: str = HOST, *, now: float = NOW, lifetime: float = 3600):
    leaf = issuer.leaf(host, KEY.public_key(), now=now, until=now + lifetime)
    certificate = x509.load_pem_x509_certificates(leaf.pem)[0]
    assert certificate.not_valid_after_utc.timestamp() == leaf.expires
    certificate.verify_directly_issued_by(issuer.certificate)
    return certificate


def extension(certificate: x509.Certificate, kind: type):
    found = certificate.extensions.get_extension_for_class(kind)
    return found.value, found.critical


def read(ca: Ca) -> Issuer:
    return read_authority(ca.pem(), ca.key_pem(), now=time.time())


# --- the CA that is made -------------------------------------------------------------------------


def test_a_made_ca():
    issuer = new_authority("sidecar-1", now=NOW)
    ca = issuer.certificate
    assert issuer.anchor is ca
    assert ca.subject == ca.issuer
    assert ca.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "sidecar-1"
    assert ca.not_valid_before_utc.timestamp() == NOW - BACKDATED
    assert ca.not_valid_after_utc.timestamp() == issuer.expires == NOW + CA_LIFETIME
    assert ca.serial_number.bit_length() > 128
    assert extension(ca, x509.BasicConstraints) == (x509.BasicConstraints(True, 0), True)
    assert extension(ca, x509.KeyUsage) == (key_usage(key_cert_sign=True, crl_sign=True), True)
    identifier = x509.SubjectKeyIdentifier.from_public_key(issuer.key.public_key())
    assert extension(ca, x509.SubjectKeyIdentifier) == (identifier, False)
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    assert issuer.key.curve.name == "secp256r1"


def test_two_runs_of_one_instance_are_two_issuers():
    first, second = new_authority("a", now=NOW), new_authority("a", now=NOW)
    assert first.certificate.subject != second.certificate.subject


def test_the_longest_name_of_an_instance_fits():
    assert new_authority("a" * 63, now=NOW)


def test_a_renewed_ca_vouches_for_what_the_old_one_signed():
    old = new_authority("a", now=NOW)
    new = renewed(old, now=NOW + 1000)
    assert new.certificate.serial_number != old.certificate.serial_number
    assert new.expires == old.expires + 1000
    issued(old).verify_directly_issued_by(new.certificate)
    issued(new, now=NOW + 1000).verify_directly_issued_by(old.certificate)


def test_no_representation_shows_the_key():
    issuer = new_authority("a", now=NOW)
    canary(issuer.key)
    # Searched by the canaries, as all output is.
    print(issuer, repr(issuer), f"{issuer}")
    assert "PrivateKey" not in repr(issuer)


# --- leaves --------------------------------------------------------------------------------------


def test_a_leaf():
    issuer = new_authority("a", now=NOW)
    leaf = issued(issuer)
    assert leaf.issuer == issuer.certificate.subject
    assert [a.value for a in leaf.subject] == [HOST]
    assert leaf.not_valid_before_utc.timestamp() == NOW - BACKDATED
    assert leaf.not_valid_after_utc.timestamp() == NOW + 3600
    assert leaf.serial_number.bit_length() > 128
    assert extension(leaf, x509.BasicConstraints) == (x509.BasicConstraints(False, None), True)
    assert extension(leaf, x509.KeyUsage) == (key_usage(digital_signature=True), True)
    usage = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    assert extension(leaf, x509.ExtendedKeyUsage) == (usage, False)
    names = x509.SubjectAlternativeName([x509.DNSName(HOST)])
    assert extension(leaf, x509.SubjectAlternativeName) == (names, False)
    own = x509.SubjectKeyIdentifier.from_public_key(KEY.public_key())
    assert extension(leaf, x509.SubjectKeyIdentifier) == (own, False)
    above = x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.key.public_key())
    assert extension(leaf, x509.AuthorityKeyIdentifier) == (above, False)
    assert len(leaf.extensions) == 6


@pytest.mark.parametrize("host", ["192.0.2.7", "2001:db8::7"])
def test_a_leaf_for_an_address(host):
    leaf = issued(new_authority("a", now=NOW), host)
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(host))])
    assert extension(leaf, x509.SubjectAlternativeName) == (names, True)
    assert leaf.subject == x509.Name([])


@pytest.mark.parametrize(("length", "named"), [(64, True), (65, False), (253, False)])
def test_a_name_that_no_common_name_holds(length, named):
    host = ("a." * 130)[-length:].strip(".").rjust(length, "b")
    leaf = issued(new_authority("a", now=NOW), host)
    assert (leaf.subject != x509.Name([])) == named
    names = x509.SubjectAlternativeName([x509.DNSName(host)])
    # RFC 5280 §4.2.1.6: critical where the subject is empty.
    assert extension(leaf, x509.SubjectAlternativeName) == (names, not named)


def test_serial_numbers_differ():
    issuer = new_authority("a", now=NOW)
    assert len({issued(issuer).serial_number for _ in range(50)}) == 50


LIVES = [
    ("in the middle", 0, 3600, -BACKDATED, 3600),
    ("at the end of the CA", CA_LIFETIME - 60, 3600, CA_LIFETIME - 60 - BACKDATED, CA_LIFETIME),
    ("right after the CA was made", -BACKDATED, 3600, -BACKDATED, 3600 - BACKDATED),
]


@pytest.mark.parametrize(("_name", "now", "lifetime", "begins", "ends"), LIVES)
def test_a_leaf_lives_within_its_ca(_name, now, lifetime, begins, ends):
    leaf = issued(new_authority("a", now=NOW), now=NOW + now, lifetime=lifetime)
    assert leaf.not_valid_before_utc.timestamp() == NOW + begins
    assert leaf.not_valid_after_utc.timestamp() == NOW + ends


@pytest.mark.parametrize("now", [-BACKDATED - 1, CA_LIFETIME, CA_LIFETIME + 1])
def test_no_leaf_outside_the_life_of_the_ca(now):
    with pytest.raises(CannotIssue, match="expired or is not valid yet"):
        issued(new_authority("a", now=NOW), now=NOW + now)


# --- a CA that is given --------------------------------------------------------------------------

KEYS = {
    "P-256": lambda: ec.generate_private_key(ec.SECP256R1()),
    "P-384": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA": lambda: rsa.generate_private_key(65_537, 2048),
}


@pytest.mark.parametrize("make_key", KEYS.values(), ids=KEYS)
def test_a_given_ca_signs(make_key):
    ca = make(key=make_key())
    issuer = read(ca)
    leaf = issuer.leaf(HOST, KEY.public_key(), now=NOW, until=NOW + 3600)
    assert shake(_loaded(leaf.pem, key_pem(KEY)), client_context(ca.pem()), HOST).good


def test_an_intermediate_is_sent_along_and_the_root_is_what_clients_trust():
    root = make("Root", basic=x509.BasicConstraints(True, 1))
    issuer = read(make("Intermediate", issuer=root, ends=1800, begins=-3000))
    assert issuer.anchor == root.certificate
    leaf = issuer.leaf(HOST, KEY.public_key(), now=NOW, until=NOW + 3600)
    sent = x509.load_pem_x509_certificates(leaf.pem)
    assert sent[1:] == [issuer.certificate]
    assert leaf.expires == issuer.expires < NOW + 3600
    assert shake(_loaded(leaf.pem, key_pem(KEY)), client_context(root.pem()), HOST).good


def test_an_intermediate_alone_is_an_anchor():
    """Its root is not known here; whoever trusts it directly needs no more."""
    intermediate = make("Intermediate", issuer=make("Root"))
    issuer = read(Ca(intermediate.certificate, intermediate.key))
    assert issuer.anchor == intermediate.certificate
    leaf = issuer.leaf(HOST, KEY.public_key(), now=NOW, until=NOW + 3600)
    trusted = client_context(certificates.pem(issuer.anchor))
    assert shake(_loaded(leaf.pem, key_pem(KEY)), trusted, HOST).good


def with_above(ca: Ca, *above: Ca) -> Ca:
    return Ca(ca.certificate, ca.key, tuple(item.certificate for item in above))


OTHER = make("Other")
UNUSABLE = {
    "not a CA": (lambda: make(basic=x509.BasicConstraints(False, None)), "is no CA"),
    "no basicConstraints": (lambda: make(basic=None), "are needed"),
    "basicConstraints not critical": (lambda: make(critical=False), "is no CA"),
    "may not sign": (lambda: make(usage=key_usage(crl_sign=True)), "keyCertSign"),
    "no subjectKeyIdentifier": (lambda: make(identified=False), "are needed"),
    "for clients alone": (
        lambda: make(more=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]),)),
        "serverAuth",
    ),
    "expired": (lambda: make(ends=-1), "has expired"),
    "of the future": (lambda: make(begins=3600), "not valid yet"),
    "its root expired": (
        lambda: make("I", issuer=make("R", ends=-1)),
        "has expired",
    ),
    "another's root": (
        lambda: with_above(make("I", issuer=make("R")), OTHER),
        "CN=I: was not issued by the certificate behind it",
    ),
    "a root of the same name": (
        lambda: with_above(make("I", issuer=make("Other")), OTHER),
        "was not issued by",
    ),
    "a root whose path ends above": (
        lambda: make("I", issuer=make("R", basic=x509.BasicConstraints(True, 0))),
        "CN=R: its path length",
    ),
    "another key": (
        lambda: Ca(make().certificate, new_key()),
        "the key is not that of the first certificate",
    ),
    "an Ed25519 key": (
        lambda: Ca(make().certificate, ed25519.Ed25519PrivateKey.generate()),
        "neither P-256",
    ),
    "a short RSA key": (
        lambda: Ca(make().certificate, rsa.generate_private_key(65_537, 1024)),
        "neither P-256",
    ),
    "a P-521 key": (
        lambda: Ca(make().certificate, ec.generate_private_key(ec.SECP521R1())),
        "neither P-256",
    ),
}


@pytest.mark.parametrize(("given_ca", "message"), UNUSABLE.values(), ids=UNUSABLE)
def test_a_given_ca_that_clients_would_refuse(given_ca, message):
    with pytest.raises(ConfigError, match=message):
        read(given_ca())


@pytest.mark.parametrize("usage", ["SERVER_AUTH", "ANY_EXTENDED_KEY_USAGE"])
def test_a_given_ca_for_servers(usage):
    purpose = x509.ExtendedKeyUsage([getattr(ExtendedKeyUsageOID, usage)])
    assert issued(read(make(more=(purpose,))))


def test_texts_that_hold_no_ca():
    ca = make()
    with pytest.raises(ConfigError, match="no PEM certificate"):
        read_authority(b"nothing", ca.key_pem(), now=NOW)
    with pytest.raises(ConfigError, match="no PEM private key"):
        read_authority(ca.pem(), ca.pem(), now=NOW)
    with pytest.raises(ConfigError, match="is encrypted"):
        read_authority(ca.pem(), ca.key_pem(b"passphrase"), now=NOW)


def test_errors_about_a_key_do_not_hold_it():
    ca = make()
    canary(ca.key)
    spoilt = ca.key_pem().replace(b"PRIVATE KEY", b"PRIVATE KEX", 1)
    with pytest.raises(ConfigError) as failed:
        read_authority(ca.pem(), spoilt, now=NOW)
    print(failed.getrepr(chain=True))  # searched by the canaries
    assert failed.value.__cause__ is None
    assert failed.value.__suppress_context__


# --- name constraints (RFC 5280 §4.2.1.10) -------------------------------------------------------


def constrained(*, permitted=(), excluded=()) -> Ca:
    return make(
        more=(x509.NameConstraints(list(permitted) or None, list(excluded) or None),),
    )


def dns(*names):
    return [x509.DNSName(name) for name in names]


def net(*networks):
    return [x509.IPAddress(ipaddress.ip_network(network)) for network in networks]


CONSTRAINTS = [
    ("the name itself", {"permitted": dns("example.com")}, "example.com", True),
    ("below it", {"permitted": dns("example.com")}, "a.b.example.com", True),
    ("of another case", {"permitted": dns("Example.COM")}, "a.example.com", True),
    ("only alike", {"permitted": dns("example.com")}, "badexample.com", False),
    ("elsewhere", {"permitted": dns("example.com")}, "example.org", False),
    ("one of two", {"permitted": dns("example.com", "example.org")}, "a.example.org", True),
    ("below a leading dot", {"permitted": dns(".example.com")}, "a.example.com", True),
    ("not above it", {"permitted": dns(".example.com")}, "example.com", False),
    ("any name", {"permitted": dns("")}, "example.com", True),
    ("excluded", {"excluded": dns("example.com")}, "a.example.com", False),
    ("beside what is excluded", {"excluded": dns("example.com")}, "example.org", True),
    ("all excluded", {"excluded": dns("")}, "example.org", False),
    ("excluded within the permitted", {"permitted": dns("example.com"), "excluded": dns("x.example.com")}, "x.example.com", False),
    ("an address where names are constrained", {"permitted": dns("example.com")}, "192.0.2.1", True),
    ("an address within", {"permitted": net("192.0.2.0/24")}, "192.0.2.1", True),
    ("an address without", {"permitted": net("192.0.2.0/24")}, "198.51.100.1", False),
    ("an address of the other kind", {"permitted": net("192.0.2.0/24")}, "2001:db8::1", False),
    ("an address excluded", {"excluded": net("2001:db8::/32")}, "2001:db8::1", False),
    ("a name where addresses are constrained", {"permitted": net("192.0.2.0/24")}, "example.com", True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("_name", "constraints", "host", "allowed"), CONSTRAINTS, ids=[case[0] for case in CONSTRAINTS]
)
def test_name_constraints(_name, constraints, host, allowed):
    """A leaf is made where the constraints allow it; OpenSSL, asked as a client, agrees."""
    ca = constrained(**constraints)
    issuer = read(ca)
    if not allowed:
        with pytest.raises(CannotIssue, match="name constraints"):
            issued(issuer, host)
        assert (
            shake(_signed_regardless(issuer, host), client_context(ca.pem()), host).client_error
            is not None
        )
    else:
        leaf = issuer.leaf(host, KEY.public_key(), now=NOW, until=NOW + 3600)
        assert shake(_loaded(leaf.pem, key_pem(KEY)), client_context(ca.pem()), host).good


def _signed_regardless(issuer: Issuer, host: str):
    """A context with the leaf that the constrained issuer does not make."""
    name = issuer.certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value
    unbound = read(make(str(name), key=issuer.key))
    leaf = unbound.leaf(host, KEY.public_key(), now=NOW, until=NOW + 3600)
    return _loaded(leaf.pem, key_pem(KEY))


def test_constraints_of_a_root_hold_below_it():
    root = constrained(permitted=dns("example.com"))
    issuer = read(make("Intermediate", issuer=root))
    assert issued(issuer, "a.example.com")
    with pytest.raises(CannotIssue):
        issued(issuer, "a.example.org")


def test_no_subject_where_directory_names_are_constrained():
    """A common name would be a directory name outside of what is permitted."""
    name = x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Example")])
    ca = constrained(permitted=[x509.DirectoryName(name)])
    issuer = read(ca)
    assert issued(issuer).subject == x509.Name([])
    leaf = issuer.leaf(HOST, KEY.public_key(), now=NOW, until=NOW + 3600)
    assert shake(_loaded(leaf.pem, key_pem(KEY)), client_context(ca.pem()), HOST).good


LABEL = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,10}[a-z0-9])?", fullmatch=True)
NAMES = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@given(host=NAMES, base=NAMES)
def test_below_is_by_whole_labels(host, base):
    labels, under = host.split("."), base.split(".")
    expected = labels[-len(under) :] == under
    assert certificates._below(host, None, x509.DNSName(base)) == expected

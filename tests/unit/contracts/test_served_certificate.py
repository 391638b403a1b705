"""What a handshake gets, before, while and after a certificate is exchanged."""

from __future__ import annotations

import ssl
import time

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from tests.support.handshake import Shaken, client_context, shake
from tests.support.secret_volume import Pair
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.served_certificate import ServedCertificate

NAME = "broker.test.example"
CA = trustme.CA()
TRUSTED = CA.cert_pem.bytes()


def presented(served: ServedCertificate, name: str | None = NAME) -> int:
    """The serial number of the certificate in a handshake."""
    client = client_context(TRUSTED)
    client.check_hostname = name is not None
    done = shake(served.context, client, name)
    assert done.good, done
    der = done.client.getpeercert(binary_form=True)
    assert der is not None
    return x509.load_der_x509_certificate(der).serial_number


async def test_nothing_is_served_before_there_is_a_certificate() -> None:
    done = shake(ServedCertificate().context, client_context(TRUSTED), NAME)
    assert not done.good


@pytest.mark.parametrize("name", [NAME, None], ids=["by name", "without a name"])
async def test_each_handshake_has_the_newest(name: str | None) -> None:
    served, one, two = ServedCertificate(), Pair.of(CA, NAME), Pair.of(CA, NAME)
    for count, pair in enumerate((one, one, two, one), 1):
        await served.replace(pair.certificate, pair.key, now=time.time())
        assert presented(served, name) == pair.serial
        assert served.taken_up == (1, 1, 2, 3)[count - 1]
        assert served.expires == pair.leaf.not_valid_after_utc.timestamp()


def encrypted(pair: Pair) -> bytes:
    key = load_pem_private_key(pair.key, password=None)
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))


ONE, OTHER = Pair.of(CA, NAME), Pair.of(CA, NAME)
ENDED, LATER = Pair.of(CA, NAME, starts=-600, ends=-60), Pair.of(CA, NAME, starts=600)
UNUSABLE = {
    "the key of another": (ONE.certificate, OTHER.key, "key values mismatch"),
    "no certificate": (b"nothing", ONE.key, "can't be used together"),
    "an empty file": (b"", ONE.key, "can't be used together"),
    "half a certificate": (ONE.certificate[:300], ONE.key, "can't be used together"),
    "no key": (OTHER.certificate, b"nothing", "can't be used together"),
    "an encrypted key": (OTHER.certificate, encrypted(OTHER), "the key is encrypted"),
    "one that has ended": (ENDED.certificate, ENDED.key, "has expired"),
    "one that is not valid yet": (LATER.certificate, LATER.key, "not valid yet"),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_what_can_not_be_used_leaves_the_last_good_one(name: str) -> None:
    certificate, key, reason = UNUSABLE[name]
    served, good = ServedCertificate(), Pair.of(CA, NAME)
    await served.replace(good.certificate, good.key, now=time.time())
    with pytest.raises(ConfigError, match=reason):
        await served.replace(certificate, key, now=time.time())
    assert presented(served) == good.serial
    assert (served.taken_up, served.expires) == (1, good.leaf.not_valid_after_utc.timestamp())


async def test_where_nothing_good_is_served_one_that_has_ended_is_better_than_none() -> None:
    served = ServedCertificate()
    await served.replace(ENDED.certificate, ENDED.key, now=time.time())
    assert served.expires < time.time()
    await served.replace(LATER.certificate, LATER.key, now=time.time())
    assert served.begins > time.time()


# --- clients' certificates -------------------------------------------------------------------------


def coming(served: ssl.SSLContext, client: trustme.CA | None) -> Shaken:
    context = client_context(TRUSTED)
    if client is not None:
        client.issue_cert("client@test.example").configure_cert(context)
    return shake(served, context, NAME)


async def test_clients_are_asked_at_the_listener_that_asks_and_roots_outlive_an_exchange() -> None:
    served, old, new, stranger = ServedCertificate(), trustme.CA(), trustme.CA(), trustme.CA()
    asking = served.asking_clients()
    served.trust([der(old)])  # before there is any certificate
    for pair in (ONE, OTHER):
        await served.replace(pair.certificate, pair.key, now=time.time())
        assert coming(asking, old).good
        assert not coming(asking, None).good
        assert not coming(asking, stranger).good
        assert coming(served.context, None).good, "the other listener asks nobody"
    assert not coming(asking, new).good
    served.trust([der(new), der(old)])
    assert coming(asking, new).good
    await served.replace(ONE.certificate, ONE.key, now=time.time())
    for known in (old, new):
        done = coming(asking, known)
        assert done.good
        assert done.server.getpeercert(binary_form=True) is not None


def der(ca: trustme.CA) -> bytes:
    return x509.load_pem_x509_certificate(ca.cert_pem.bytes()).public_bytes(Encoding.DER)

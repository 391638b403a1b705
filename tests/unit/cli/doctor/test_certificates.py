from __future__ import annotations

import datetime as dt

import pytest
import trustme
from cryptography import x509
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    pkcs12,
)

from valetkey.cli.doctor.certificates import (
    NoAuthority,
    authority_in,
    certificates_in,
    is_old_java_store,
    java_store,
)

CA = trustme.CA(organization_name="doctor")
CERTIFICATE = x509.load_pem_x509_certificate(CA.cert_pem.bytes())
DER = CERTIFICATE.public_bytes(Encoding.DER)
LEAF = CA.issue_cert("leaf.example").cert_chain_pems[0].bytes()
OTHER = trustme.CA().cert_pem.bytes()


def test_an_authority_is_read() -> None:
    authority = authority_in(CA.cert_pem.bytes() + OTHER)
    assert authority.der == DER
    assert "doctor" in authority.subject
    assert authority.fingerprint.count(":") == 31
    assert (
        authority.fingerprint.replace(":", "").lower()
        == CERTIFICATE.fingerprint(
            CERTIFICATE.signature_hash_algorithm  # type: ignore[arg-type]
        ).hex()
    )


def test_its_time() -> None:
    authority = authority_in(CA.cert_pem.bytes())
    second = dt.timedelta(seconds=1)
    assert authority.holds_at(authority.begins)
    assert authority.holds_at(authority.ends)
    assert not authority.holds_at(authority.begins - second)
    assert not authority.holds_at(authority.ends + second)


NONE = [
    ("an empty file", b"", "no certificate in PEM"),
    ("DER", DER, "no certificate in PEM"),
    ("a key", CA.private_key_pem.bytes(), "no certificate in PEM"),
    ("a leaf", LEAF, "not a CA's certificate"),
    ("a leaf before its CA", LEAF + CA.cert_pem.bytes(), "not a CA's certificate"),
    ("nonsense in PEM", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "not a certificate"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "reason"), NONE, ids=[case[0] for case in NONE])
def test_what_is_no_authority(name: str, content: bytes, reason: str) -> None:
    with pytest.raises(NoAuthority, match=reason):
        authority_in(content)


def test_a_bundle_gives_all_that_is_readable() -> None:
    broken = b"-----BEGIN CERTIFICATE-----\n%%%%\n-----END CERTIFICATE-----\n"
    trusted = CA.cert_pem.bytes().replace(b" CERTIFICATE", b" TRUSTED CERTIFICATE")
    bundle = b"# roots\r\n" + OTHER.replace(b"\n", b"\r\n") + broken + b"text\n" + trusted
    assert [der == DER for der in certificates_in(bundle)] == [False, True]


def store(password: str) -> bytes:
    encryption = BestAvailableEncryption(password.encode()) if password else NoEncryption()
    entry = pkcs12.PKCS12Certificate(CERTIFICATE, b"valetkey")
    return pkcs12.serialize_java_truststore([entry], encryption)


OPENED = [("changeit", "changeit", [DER]), ("", None, [DER]), ("", "", [DER])]
SHUT = [("changeit", "other"), ("changeit", None), ("changeit", "")]


@pytest.mark.parametrize(("password", "given", "found"), OPENED)
def test_a_java_store_that_opens(password: str, given: str | None, found: list[bytes]) -> None:
    assert java_store(store(password), given) == found


@pytest.mark.parametrize(("password", "given"), SHUT)
def test_a_java_store_that_does_not(password: str, given: str | None) -> None:
    assert java_store(store(password), given) is None


def test_other_files_are_no_java_store() -> None:
    assert java_store(b"nonsense", "changeit") is None
    assert is_old_java_store(bytes.fromhex("feedfeed00000002"))
    assert not is_old_java_store(store("changeit"))

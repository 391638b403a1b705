"""The files of the CA: modes, whole replacement, what is refused and how it is said."""

from __future__ import annotations

import os
import ssl
import stat
import threading
import time

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import pkcs12

from tests.support.authorities import canary, make
from tests.support.canaries import CANARIES
from tests.support.handshake import client_context, shake
from valetkey.contracts.errors import ConfigError
from valetkey.proxy.intercept import authority_files as module
from valetkey.proxy.intercept import certificates
from valetkey.proxy.intercept.authority import InterceptionAuthority
from valetkey.proxy.settings import GivenAuthoritySettings, InterceptionSettings

HOST = "api.example.com"


def opened(now=time.time, **settings):
    return InterceptionAuthority.open(
        InterceptionSettings(**settings), instance="sidecar-1", now=now
    )


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def roots(tmp_path):
    """Two roots as systems have them: with comments between, and a block of another kind."""
    path = tmp_path / "roots.crt"
    one, two = make("Root One"), make("Root Two")
    trusted = one.pem().replace(b"CERTIFICATE", b"TRUSTED CERTIFICATE")
    path.write_bytes(b"# One\n" + one.pem() + b"\n# Two\n" + two.pem() + trusted)
    return path


@pytest.fixture
def key_file(tmp_path):
    path = tmp_path / "kept" / "ca.key"
    path.parent.mkdir()
    CANARIES.allow(path.parent)
    return path


# --- what clients read ---------------------------------------------------------------------------


def test_nothing_is_written_that_was_not_asked_for(tmp_path):
    opened().publish()
    assert list(tmp_path.iterdir()) == []


def test_the_certificate(tmp_path):
    authority = opened(certificate_file=tmp_path / "ca.pem")
    authority.publish()
    assert (tmp_path / "ca.pem").read_bytes() == authority.pem
    assert mode(tmp_path / "ca.pem") == 0o644


def test_the_bundle_has_the_roots_too(tmp_path, roots):
    authority = opened(bundle_file=tmp_path / "bundle.pem", system_roots=roots)
    authority.publish()
    found = x509.load_pem_x509_certificates((tmp_path / "bundle.pem").read_bytes())
    expected = x509.load_pem_x509_certificates(roots.read_bytes())
    assert found == [authority.certificate, *expected[:2]]
    assert mode(tmp_path / "bundle.pem") == 0o644
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(tmp_path / "bundle.pem")
    assert context.cert_store_stats()["x509_ca"] == 3
    assert shake(authority.context(HOST), context, HOST).good


def test_the_trust_store_has_them_too(tmp_path, roots):
    authority = opened(
        truststore_file=tmp_path / "trust.p12", truststore_password="open it", system_roots=roots
    )
    authority.publish()
    store = pkcs12.load_pkcs12((tmp_path / "trust.p12").read_bytes(), b"open it")
    assert store.key is None
    assert store.additional_certs[0].certificate == authority.certificate
    assert [item.friendly_name for item in store.additional_certs] == [
        b"valetkey",
        b"system-0",
        b"system-1",
    ]
    assert mode(tmp_path / "trust.p12") == 0o644


def test_a_root_that_cannot_be_read_does_not_spoil_the_trust_store(tmp_path, roots, caplog):
    spoilt = roots.read_bytes().replace(b"MII", b"MIX", 1)
    roots.write_bytes(spoilt)
    opened(truststore_file=tmp_path / "trust.p12", system_roots=roots).publish()
    store = pkcs12.load_pkcs12((tmp_path / "trust.p12").read_bytes(), b"changeit")
    assert len(store.additional_certs) == 2
    assert caplog.messages == ["roots_unreadable"]


@pytest.mark.parametrize("name", ["bundle_file", "truststore_file"])
def test_no_roots(tmp_path, monkeypatch, name):
    empty = tmp_path / "empty"
    empty.touch()
    authority = opened(system_roots=empty, **{name: tmp_path / "out"})
    with pytest.raises(
        ConfigError, match=rf"interception\.{name}: no system roots found in .*empty"
    ):
        authority.publish()
    monkeypatch.setattr(module, "_SYSTEM_ROOTS", ())
    monkeypatch.setattr(
        module.ssl,
        "get_default_verify_paths",
        lambda: ssl.DefaultVerifyPaths("", "", "", str(empty), "", ""),
    )
    with pytest.raises(ConfigError, match=r"the usual places: set interception\.system_roots"):
        opened(**{name: tmp_path / "out"}).publish()
    assert not (tmp_path / "out").exists()


def test_roots_come_from_where_systems_have_them(tmp_path, monkeypatch, roots):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "bundle.pem"))  # what clients are told
    monkeypatch.setattr(module, "_SYSTEM_ROOTS", (str(tmp_path / "none"), str(roots)))
    monkeypatch.setattr(
        module.ssl,
        "get_default_verify_paths",
        lambda: ssl.DefaultVerifyPaths("", "", "", str(tmp_path / "no"), "", ""),
    )
    authority = opened(bundle_file=tmp_path / "bundle.pem")
    authority.publish()
    authority.publish()
    assert len(x509.load_pem_x509_certificates((tmp_path / "bundle.pem").read_bytes())) == 3


def test_a_reader_finds_a_whole_file(tmp_path, roots):
    path = tmp_path / "bundle.pem"
    authority = opened(bundle_file=path, system_roots=roots)
    authority.publish()
    whole = path.read_bytes()
    stop = threading.Event()

    def write():
        while not stop.is_set():
            authority.publish()

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for _ in range(500):
            assert path.read_bytes() == whole
    finally:
        stop.set()
        writer.join()
    assert {item.name for item in tmp_path.iterdir()} == {"bundle.pem", "roots.crt"}


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path, key_file, umask):
    before = os.umask(umask)
    try:
        opened(certificate_file=tmp_path / "ca.pem", key_file=key_file).publish()
    finally:
        os.umask(before)
    assert mode(tmp_path / "ca.pem") == 0o644
    assert mode(key_file) == 0o600


@pytest.mark.parametrize("name", ["certificate_file", "bundle_file", "truststore_file"])
def test_where_nothing_can_be_written(tmp_path, roots, name):
    path = tmp_path / "missing" / "file"
    with pytest.raises(
        ConfigError, match=rf"interception\.{name}: .*missing/file: can't be written"
    ):
        opened(system_roots=roots, **{name: path}).publish()
    directory = tmp_path / "directory"
    directory.mkdir()
    with pytest.raises(ConfigError, match=rf"interception\.{name}"):
        opened(system_roots=roots, **{name: directory}).publish()
    assert {item.name for item in tmp_path.iterdir()} == {"directory", "roots.crt"}


# --- the key that is kept ------------------------------------------------------------------------


def test_a_kept_key_is_the_same_ca_at_the_next_start(key_file):
    first = opened(key_file=key_file)
    assert mode(key_file) == 0o600
    canary(first._issuer.key, allow=key_file)
    second = opened(key_file=key_file)
    assert second.pem == first.pem
    assert shake(second.context(HOST), client_context(first.pem), HOST).good


def test_a_kept_ca_is_renewed_at_half_its_life_and_written_back(key_file):
    first = opened(key_file=key_file)
    half = time.time() + certificates.CA_LIFETIME / 2
    second = opened(key_file=key_file, now=lambda: half)
    assert second.pem != first.pem
    assert second.certificate.subject == first.certificate.subject
    assert second.certificate.public_key() == first.certificate.public_key()
    assert opened(key_file=key_file, now=lambda: half).pem == second.pem
    assert mode(key_file) == 0o600


def test_renewal_while_running_is_written_back_too(key_file):
    moment = [time.time()]
    authority = opened(key_file=key_file, now=lambda: moment[0])
    moment[0] += certificates.CA_LIFETIME / 2
    assert authority.renew()
    assert opened(key_file=key_file, now=lambda: moment[0]).pem == authority.pem


def test_two_sidecars_that_start_at_once_share_one_ca(key_file, monkeypatch):
    made = certificates.new_authority

    def slower(instance, *, now):
        issuer = made(instance, now=now)
        if instance == "slow":
            opened(key_file=key_file)
        return issuer

    monkeypatch.setattr(module.certificates, "new_authority", slower)
    slow = InterceptionAuthority.open(InterceptionSettings(key_file=key_file), instance="slow")
    assert slow.pem == opened(key_file=key_file).pem
    assert [item.name for item in key_file.parent.iterdir()] == ["ca.key"]


@pytest.mark.parametrize("bits", [0o644, 0o640, 0o660, 0o602, 0o601, 0o610])
def test_a_key_open_to_others_is_refused(key_file, bits, monkeypatch):
    opened(key_file=key_file)
    key_file.chmod(bits)
    real = os.fstat

    def of_another_user(fd):
        status = list(real(fd))
        status[stat.ST_UID] = 1000
        return os.stat_result(status)

    monkeypatch.setattr(module.os, "fstat", of_another_user)
    with pytest.raises(ConfigError, match=r"interception\.key_file: .*open to others \(mode 06"):
        opened(key_file=key_file)


def test_a_platforms_root_may_let_in_the_services_group(key_file, monkeypatch):
    """As Kubernetes mounts a secret: root's, mode 0440 with an fsGroup."""
    opened(key_file=key_file)
    key_file.chmod(0o440)
    real = os.fstat

    def of_root(fd):
        status = list(real(fd))
        status[stat.ST_UID] = 0
        return os.stat_result(status)

    monkeypatch.setattr(module.os, "fstat", of_root)
    assert opened(key_file=key_file)
    key_file.chmod(0o444)
    with pytest.raises(ConfigError, match="open to others"):
        opened(key_file=key_file)


def test_a_kept_file_that_is_none(key_file):
    key_file.write_bytes(b"")
    key_file.chmod(0o600)
    with pytest.raises(ConfigError, match=r"interception\.key_file: .*ca\.key: no PEM certificate"):
        opened(key_file=key_file)
    assert key_file.read_bytes() == b""
    key_file.unlink()
    key_file.symlink_to(key_file.parent / "nowhere")
    with pytest.raises(ConfigError, match=r"interception\.key_file: .*can't be read"):
        opened(key_file=key_file)
    key_file.unlink()
    key_file.mkdir()
    with pytest.raises(ConfigError, match=r"interception\.key_file"):
        opened(key_file=key_file)


def test_where_no_key_can_be_kept(tmp_path):
    with pytest.raises(ConfigError, match=r"interception\.key_file: .*can't be written"):
        opened(key_file=tmp_path / "missing" / "ca.key")


# --- a CA that is given --------------------------------------------------------------------------


def given(certificate, key):
    return {"ca": GivenAuthoritySettings(certificate=certificate, key=key)}


def test_a_given_ca(tmp_path):
    ca = make("Example CA")
    authority = opened(certificate_file=tmp_path / "ca.pem", **given(*ca.write(tmp_path)))
    authority.publish()
    assert authority.certificate == ca.certificate
    assert (tmp_path / "ca.pem").read_bytes() == ca.pem()
    assert shake(authority.context(HOST), client_context(ca.pem()), HOST).good


def test_a_given_ca_that_is_replaced_is_taken_up(tmp_path):
    old, new = make("Old"), make("New")
    published = tmp_path / "ca.pem"
    authority = opened(certificate_file=published, **given(*old.write(tmp_path)))
    authority.publish()
    assert not authority.renew()
    assert shake(authority.context(HOST), client_context(old.pem()), HOST).good
    new.write(tmp_path)
    assert authority.renew()
    assert not authority.renew()
    assert published.read_bytes() == new.pem()
    assert shake(authority.context(HOST), client_context(new.pem()), HOST).good


def test_a_replacement_that_cannot_be_used_changes_nothing(tmp_path):
    old = make("Old")
    certificate, key = old.write(tmp_path)
    authority = opened(**given(certificate, key))
    certificate.write_bytes(make("Other").pem())
    for _ in range(2):  # and it is said again
        with pytest.raises(ConfigError, match=r"interception\.ca: .*the key is not that of"):
            authority.renew()
    assert authority.certificate == old.certificate
    assert shake(authority.context(HOST), client_context(old.pem()), HOST).good
    new = make("New")
    new.write(tmp_path)
    assert authority.renew()
    assert authority.certificate == new.certificate


def test_a_given_key_open_to_others_is_refused(tmp_path):
    certificate, key = make().write(tmp_path)
    key.chmod(0o604)
    with pytest.raises(ConfigError, match=r"interception\.ca\.key: .*open to others \(mode 0604\)"):
        opened(**given(certificate, key))


def test_given_files_that_are_not_there(tmp_path):
    certificate, key = make().write(tmp_path)
    with pytest.raises(ConfigError, match=r"interception\.ca\.certificate: .*No such file"):
        opened(**given(tmp_path / "none", key))
    with pytest.raises(ConfigError, match=r"interception\.ca\.key: .*No such file"):
        opened(**given(certificate, tmp_path / "none"))

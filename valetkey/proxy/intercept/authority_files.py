"""The files of the interception CA: the one that may hold its key, those that clients read.

Invariants:

- A file with a key is made closed (0600) and read only if it is closed to others.
- A file is replaced as a whole: a reader finds the old one or the new one.
- What cannot be read or written is a `ConfigError` with the key path.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import ssl
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, pkcs12
from cryptography.utils import CryptographyDeprecationWarning

from valetkey.contracts.closed_files import is_open_to_others
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.proxy.intercept import certificates
from valetkey.proxy.intercept.certificates import Issuer
from valetkey.proxy.settings import InterceptionSettings

# Where systems keep their roots in one file, as Go's crypto/x509 looks for them.
_SYSTEM_ROOTS: Final = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Arch
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # openSUSE
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",  # RHEL
    "/etc/ssl/cert.pem",  # Alpine, BSDs, macOS
)
_CERTIFICATE: Final = re.compile(
    rb"-----BEGIN CERTIFICATE-----\s[A-Za-z0-9+/=\s]+-----END CERTIFICATE-----"
)
_MAX_FILE: Final = 8 << 20


class AuthorityFiles:
    """Reads and writes what settings name."""

    def __init__(self, settings: InterceptionSettings, instance: str) -> None:
        self._settings = settings
        self._instance = instance
        self._stamps: list[object] = []
        self._log = Log("interception")

    def issuer(self, now: float) -> Issuer:
        """The given CA, the kept one, or a new one. Raises `ConfigError`."""
        given = self._settings.ca
        if given is not None:
            stamps = _stamps(given.certificate, given.key)
            chain = _read(given.certificate, "interception.ca.certificate")
            key = _read_closed(given.key, "interception.ca.key")
            with _at("interception.ca", given.certificate):
                issuer = certificates.read_authority(chain, key, now=now)
            self._stamps = stamps  # not before: files half replaced are looked at again
            return issuer
        kept = self._settings.key_file
        if kept is None:
            return certificates.new_authority(self._instance, now=now)
        return self._kept(kept, now)

    def _kept(self, path: Path, now: float) -> Issuer:
        where = "interception.key_file"
        if not os.path.lexists(path):
            made = certificates.new_authority(self._instance, now=now)
            if _create(path, _kept_form(made), where):
                return made
            # Another sidecar was quicker: its CA is the one of both.
        content = _read_closed(path, where)
        with _at(where, path):
            issuer = certificates.read_authority(content, content, now=now)
        return self._renewed(issuer, now) or issuer

    def changed(self, issuer: Issuer, now: float) -> Issuer | None:
        """The CA that takes over from ``issuer`` by now, if one does. Raises `ConfigError`.

        A given one when its files changed; a made one gets a new certificate at half its life.
        """
        given = self._settings.ca
        if given is None:
            return self._renewed(issuer, now)
        if _stamps(given.certificate, given.key) == self._stamps:
            return None
        return self.issuer(now)

    def _renewed(self, issuer: Issuer, now: float) -> Issuer | None:
        if now < issuer.expires - certificates.CA_LIFETIME / 2:
            return None
        new = certificates.renewed(issuer, now=now)
        if self._settings.key_file is not None:
            _replace(self._settings.key_file, _kept_form(new), 0o600, "interception.key_file")
        return new

    def publish(self, anchor: x509.Certificate) -> None:
        """Write what clients read. Raises `ConfigError`."""
        settings = self._settings
        own = certificates.pem(anchor)
        if settings.certificate_file is not None:
            _replace(settings.certificate_file, own, 0o644, "interception.certificate_file")
        if settings.bundle_file is not None:
            bundle = b"".join([own, *(root + b"\n" for root in self._roots("bundle_file"))])
            _replace(settings.bundle_file, bundle, 0o644, "interception.bundle_file")
        if settings.truststore_file is not None:
            store = self._truststore(anchor, self._roots("truststore_file"))
            _replace(settings.truststore_file, store, 0o644, "interception.truststore_file")

    def _roots(self, wanted_by: str) -> list[bytes]:
        """The system's roots, PEM each, without what stands between them."""
        given = self._settings.system_roots
        # Not SSL_CERT_FILE: it may well name the very bundle that is written here.
        compiled = ssl.get_default_verify_paths().openssl_cafile
        for path in [given] if given else [Path(name) for name in (compiled, *_SYSTEM_ROOTS)]:
            if given or path.is_file():
                roots = _CERTIFICATE.findall(_read(path, "interception.system_roots"))
                if roots:
                    return roots
        raise ConfigError(
            f"interception.{wanted_by}: no system roots found in "
            f"{given or 'the usual places'}: set interception.system_roots"
        )

    def _truststore(self, anchor: x509.Certificate, roots: list[bytes]) -> bytes:
        entries = [pkcs12.PKCS12Certificate(anchor, b"valetkey")]
        unreadable = 0
        for number, root in enumerate(roots):
            try:
                with warnings.catch_warnings():
                    # Old roots bend RFC 5280; whether to trust them is the system's decision.
                    warnings.simplefilter("ignore", CryptographyDeprecationWarning)
                    certificate = x509.load_pem_x509_certificate(root)
            except ValueError:
                unreadable += 1
                continue
            entries.append(pkcs12.PKCS12Certificate(certificate, b"system-%d" % number))
        if unreadable:
            self._log.warning("roots_unreadable", count=unreadable)
        password = self._settings.truststore_password.encode()
        return pkcs12.serialize_java_truststore(entries, BestAvailableEncryption(password))


def _kept_form(issuer: Issuer) -> bytes:
    return certificates.key_pem(issuer.key) + certificates.pem(issuer.certificate)


@contextlib.contextmanager
def _at(where: str, path: Path) -> Iterator[None]:
    """Complaints about a file's content, with its key path and name."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{where}: {path}: {error}") from error.__cause__


def _stamps(*paths: Path) -> list[object]:
    """What tells that a file was written or replaced; nothing for one that is not there."""
    found: list[object] = []
    for path in paths:
        try:
            status = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((status.st_mtime_ns, status.st_ino, status.st_size))
    return found


def _read(path: Path, where: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_MAX_FILE)
    except OSError as error:
        raise ConfigError(f"{where}: {path}: can't be read: {error.strerror}") from error


def _read_closed(path: Path, where: str) -> bytes:
    """A file with a key in it, refused if it is open to those who should not have it."""
    try:
        # Checked on the open file, so that nothing can be swapped in between.
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MAX_FILE)
    except OSError as error:
        raise ConfigError(f"{where}: {path}: can't be read: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise ConfigError(f"{where}: {path}: not a regular file")
    if is_open_to_others(status):
        raise ConfigError(
            f"{where}: {path}: open to others (mode {stat.S_IMODE(status.st_mode):04o}): chmod 0600"
        )
    return content


def _create(path: Path, content: bytes, where: str) -> bool:
    """Write a file that must not be there yet, 0600; false if it is by now."""
    try:
        part = _written(path, content, 0o600)
        try:
            os.link(part, path)
        except FileExistsError:
            return False
        finally:
            part.unlink()
    except OSError as error:
        raise ConfigError(f"{where}: {path}: can't be written: {error.strerror}") from error
    return True


def _replace(path: Path, content: bytes, mode: int, where: str) -> None:
    try:
        part = _written(path, content, mode)
        try:
            part.replace(path)
        except OSError:
            part.unlink()
            raise
    except OSError as error:
        raise ConfigError(f"{where}: {path}: can't be written: {error.strerror}") from error


def _written(path: Path, content: bytes, mode: int) -> Path:
    """A file beside ``path`` with this content, on the disk."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        try:
            os.fchmod(file.fileno(), mode)  # whatever the umask says
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        except OSError:
            part.unlink()
            raise
    return part

"""Private keys at rest: AES-256-GCM under a key that is derived from the master key file.

Replicas have that file in common; so has another key that is derived from it, that of their nonces.

Invariants:

- The master key file is closed to others (`is_open_to_others`) and holds at least 32 bytes.
- A sealed value opens only under the master key and for the ``kid`` it was sealed for (AAD):
  rows can't be swapped in the database.
- What goes into tokens, of which there may be billions under one master key, is sealed under a key
  of its own and without a nonce (AES-SIV, RFC 5297): the same value for the same ``kid`` looks the
  same each time, and that is all that can be told from it.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESSIV
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from valetkey.contracts.closed_files import is_open_to_others
from valetkey.contracts.errors import ConfigError

MIN_MASTER_KEY: Final = 32
_MAX_MASTER_KEY: Final = 4096
_NONCE: Final = 12  # NIST SP 800-38D §8.2.2: 96 random bits; a few keys a day are far from 2^32
_INFO: Final = b"valetkey broker signing keys v1"
_INFO_TOKENS: Final = b"valetkey broker tokens v1"
_INFO_NONCES: Final = b"valetkey broker dpop nonces v1"


class SealBroken(Exception):  # noqa: N818 - reads as what it is
    """The sealed value does not open: another master key, or it was changed."""


class Sealer:
    """Seals and opens private keys, and what tokens carry for the broker alone.

    ``nonce_key`` is what replicas make nonces with (`Nonces`); nothing is sealed with it.
    """

    __slots__ = ("_aead", "_siv", "nonce_key")

    def __init__(self, master_key: bytes) -> None:
        if len(master_key) < MIN_MASTER_KEY:
            raise ConfigError(f"the master key is shorter than {MIN_MASTER_KEY} bytes")
        self._aead = AESGCM(_derived(master_key, 32, _INFO))
        self._siv = AESSIV(_derived(master_key, 64, _INFO_TOKENS))
        self.nonce_key = _derived(master_key, 32, _INFO_NONCES)

    @classmethod
    def from_file(cls, path: Path) -> Sealer:
        """Raises `ConfigError` for a file that is missing, too short, or readable by others."""
        try:
            # Checked on the open file, so that nothing can be swapped in between.
            with path.open("rb") as file:
                status = os.fstat(file.fileno())
                master_key = file.read(_MAX_MASTER_KEY + 1)
        except OSError as error:
            raise ConfigError(f"{path}: master key can't be read: {error.strerror}") from error
        if not stat.S_ISREG(status.st_mode):
            raise ConfigError(f"{path}: master key is not a regular file")
        if is_open_to_others(status):
            raise ConfigError(
                f"{path}: master key is open to group or others (mode "
                f"{stat.S_IMODE(status.st_mode):04o}): chmod 0600"
            )
        if not MIN_MASTER_KEY <= len(master_key) <= _MAX_MASTER_KEY:
            raise ConfigError(
                f"{path}: a master key has between {MIN_MASTER_KEY} and {_MAX_MASTER_KEY} bytes"
            )
        return cls(master_key)

    def seal(self, private_key: bytes, *, kid: str) -> bytes:
        nonce = os.urandom(_NONCE)
        return nonce + self._aead.encrypt(nonce, private_key, kid.encode())

    def open(self, sealed: bytes, *, kid: str) -> bytes:
        """Raises `SealBroken`."""
        try:
            return self._aead.decrypt(sealed[:_NONCE], sealed[_NONCE:], kid.encode())
        except (InvalidTag, ValueError) as error:
            raise SealBroken(kid) from error

    def seal_for_token(self, value: bytes, *, kid: str) -> bytes:
        """``value`` is not empty."""
        return self._siv.encrypt(value, [kid.encode()])

    def open_from_token(self, sealed: bytes, *, kid: str) -> bytes:
        """Raises `SealBroken`."""
        try:
            return self._siv.decrypt(sealed, [kid.encode()])
        except (InvalidTag, ValueError) as error:
            raise SealBroken(kid) from error


def _derived(master_key: bytes, length: int, info: bytes) -> bytes:
    return HKDF(algorithm=hashes.SHA256(), length=length, salt=None, info=info).derive(master_key)

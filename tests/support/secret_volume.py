"""A Secret's volume as the kubelet makes it, and pairs to put into it.

Each file is a link to ``..data/FILE``, and ``..data`` one to a directory that is exchanged whole.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

import trustme
from cryptography import x509

from tests.support.canaries import CANARIES

CERTIFICATE = "tls.crt"
KEY = "tls.key"


@dataclass(frozen=True, slots=True)
class Pair:
    """A chain and its key, PEM."""

    certificate: bytes
    key: bytes

    @classmethod
    def of(cls, ca: trustme.CA, *names: str, starts: float = -60, ends: float = 86_400) -> Self:
        """``starts`` and ``ends`` are seconds from now."""
        now = datetime.now(UTC)
        issued = ca.issue_cert(
            *names,
            not_before=now + timedelta(seconds=starts),
            not_after=now + timedelta(seconds=ends),
        )
        chain = b"".join(one.bytes() for one in issued.cert_chain_pems)
        return cls(chain, issued.private_key_pem.bytes())

    @property
    def leaf(self) -> x509.Certificate:
        return x509.load_pem_x509_certificate(self.certificate)

    @property
    def serial(self) -> int:
        return self.leaf.serial_number


class SecretVolume:
    """One volume, empty until the first `put`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)

    def put(self, pair: Pair) -> None:
        """What the kubelet does when the Secret has another pair."""
        self.put_files({CERTIFICATE: pair.certificate, KEY: pair.key})

    def put_files(self, files: dict[str, bytes]) -> None:
        version = self.directory / f"..{time.monotonic_ns()}"
        version.mkdir()
        CANARIES.allow(version)
        for name, content in files.items():
            (version / name).write_bytes(content)
        data = self.directory / "..data"
        before = data.resolve() if data.exists() else None
        (self.directory / "..data_tmp").symlink_to(version.name)
        (self.directory / "..data_tmp").replace(data)
        for name in files:
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        if before is not None:
            for file in before.iterdir():
                file.unlink()
            before.rmdir()

    @property
    def settings(self) -> dict[str, str]:
        """``tls`` of a program's settings."""
        return {
            "cert_file": str(self.directory / CERTIFICATE),
            "key_file": str(self.directory / KEY),
        }

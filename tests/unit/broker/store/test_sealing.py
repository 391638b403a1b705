"""Sealed keys open for their kid under their master key, from a file that is its owner's alone."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from valetkey.broker.store.sealing import MIN_MASTER_KEY, SealBroken, Sealer
from valetkey.contracts.errors import ConfigError

KEY = b"m" * MIN_MASTER_KEY


def test_it_opens_again() -> None:
    sealed = Sealer(KEY).seal(b"private", kid="k")
    assert b"private" not in sealed
    assert Sealer(KEY).open(sealed, kid="k") == b"private"


def test_no_two_seals_are_alike() -> None:
    assert Sealer(KEY).seal(b"private", kid="k") != Sealer(KEY).seal(b"private", kid="k")


@pytest.mark.parametrize(
    ("name", "key", "kid", "spoil"),
    [
        ("another master key", b"n" * MIN_MASTER_KEY, "k", lambda sealed: sealed),
        ("another kid", KEY, "other", lambda sealed: sealed),
        ("a changed byte", KEY, "k", lambda sealed: sealed[:-1] + bytes([sealed[-1] ^ 1])),
        ("a changed nonce", KEY, "k", lambda sealed: bytes([sealed[0] ^ 1]) + sealed[1:]),
        ("cut", KEY, "k", lambda sealed: sealed[:-1]),
        ("empty", KEY, "k", lambda _sealed: b""),
    ],
)
def test_it_does_not_open(name: str, key: bytes, kid: str, spoil) -> None:
    sealed = spoil(Sealer(KEY).seal(b"private", kid="k"))
    with pytest.raises(SealBroken):
        Sealer(key).open(sealed, kid=kid)


def test_the_derived_key_is_not_the_master_key() -> None:
    """HKDF: who learns what seals keys does not learn the master key, nor the reverse use."""
    from cryptography.exceptions import InvalidTag
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    sealed = Sealer(KEY).seal(b"private", kid="k")
    with pytest.raises(InvalidTag):
        AESGCM(KEY).decrypt(sealed[:12], sealed[12:], b"k")


@pytest.mark.parametrize(
    ("name", "content", "mode", "message"),
    [
        ("short", b"x" * 31, 0o600, "between 32 and 4096 bytes"),
        ("empty", b"", 0o600, "between 32 and 4096 bytes"),
        ("endless", b"x" * 5000, 0o600, "between 32 and 4096 bytes"),
        ("world readable", KEY, 0o604, "open to group or others"),
        ("group writable", KEY, 0o620, "open to group or others"),
    ],
)
def test_files_that_are_refused(
    tmp_path: Path, name: str, content: bytes, mode: int, message: str
) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=message):
        Sealer.from_file(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="can't be read"):
        Sealer.from_file(tmp_path / "none")
    with pytest.raises(ConfigError, match="can't be read"):
        Sealer.from_file(tmp_path)


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_a_good_file(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "master.key"
    path.write_bytes(KEY)
    path.chmod(mode)
    assert Sealer.from_file(path).open(Sealer(KEY).seal(b"p", kid="k"), kid="k") == b"p"


@pytest.mark.parametrize(("owner", "taken"), [(0, True), (1000, False)])
def test_a_platforms_root_may_let_in_the_services_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: int, taken: bool
) -> None:
    """As Kubernetes mounts a secret: root's, mode 0440 with an fsGroup."""
    path = tmp_path / "master.key"
    path.write_bytes(KEY)
    path.chmod(0o440)
    real = os.fstat

    def of_owner(fd: int) -> os.stat_result:
        status = list(real(fd))
        status[stat.ST_UID] = owner
        return os.stat_result(status)

    monkeypatch.setattr(os, "fstat", of_owner)
    if taken:
        assert Sealer.from_file(path)
    else:
        with pytest.raises(ConfigError, match="open to group or others"):
            Sealer.from_file(path)

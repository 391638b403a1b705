"""The canary check finds what it must and passes what it may."""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

import pytest

from tests.support.canaries import Canaries
from tests.support.idp import Idp

MASTER_KEY = bytes(range(7, 39))


@pytest.fixture
def own() -> Canaries:
    registry = Canaries()
    registry.add("a-session-secret-of-a-test", name="text")
    registry.add(MASTER_KEY, name="master key")
    registry.add("eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0." + "s" * 86, name="token")
    return registry


@pytest.mark.parametrize(
    ("content", "names"),
    [
        (b"nothing of interest", []),
        (b"x=a-session-secret-of-a-test;", ["text"]),
        (b"\x01\x02" + MASTER_KEY + b"\x03", ["master key"]),
        (MASTER_KEY.hex().encode(), ["master key"]),
        (base64.b64encode(MASTER_KEY), ["master key"]),
        (base64.urlsafe_b64encode(MASTER_KEY), ["master key"]),
        (b'{"error":"eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJ4In0.' + b"s" * 86 + b'"}', ["token"]),
        (b"." + b"s" * 86 + b"\0" * 4096, ["token"]),
        (b"s" * 87, []),
    ],
)
def test_secrets_are_found_in_each_form(own: Canaries, content: bytes, names: list[str]) -> None:
    assert own.found_in(content) == names


def test_files_are_searched_but_their_own(own: Canaries, tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "master.key").write_bytes(MASTER_KEY)
    (tmp_path / "program.stderr").write_bytes(b"starting with " + MASTER_KEY.hex().encode())
    own.allow(tmp_path / "keys")
    own.check_tree(tmp_path)
    own.check_tree(tmp_path)
    assert [str(leak) for leak in own.leaks] == ["master key in program.stderr"]
    own.allow(tmp_path)  # this test's files are no leak of the session


def test_a_short_secret_is_refused() -> None:
    with pytest.raises(ValueError, match="too short"):
        Canaries().add("hunter2", name="password")


def test_each_minted_token_is_a_canary_and_lies_in_its_file(
    tmp_path: Path, canaries: Canaries
) -> None:
    idp = Idp(tmp_path)
    token = idp.token_file(tmp_path / "token", "spiffe://test.example/a", "aud")
    (name,) = canaries.found_in(token.encode())
    assert name == "token of spiffe://test.example/a by https://idp.test.example"
    assert (tmp_path / "token").stat().st_mode & 0o777 == 0o600


def test_found_wherever_it_begins_and_ends() -> None:
    canaries = Canaries()
    shortest = bytes(range(200, 216))
    canaries.add(shortest, name="key")
    for before in range(20):
        for after in (0, 1, 7, 8):
            assert canaries.found_in(b"x" * before + shortest + b"x" * after) == ["key"]
    assert canaries.found_in(b"x" * 5 + shortest[:-1]) == []
    assert canaries.found_in(shortest[1:]) == []


def test_a_whole_suite_of_files_is_looked_through_in_time(tmp_path: Path) -> None:
    """As many secrets and allowed files as the suite has: each file costs one pass, not one each."""
    canaries = Canaries()
    for number in range(3000):
        key = hashlib.sha384(b"%d" % number).digest()
        canaries.add(key, name=f"key {number}", allow=[tmp_path / f"{number}.key"])
    for number in range(40):
        (tmp_path / f"{number}.db").write_bytes(hashlib.shake_128(b"%d" % number).digest(200_000))
    leaking = hashlib.sha384(b"2999").digest()
    (tmp_path / "leak.db").write_bytes(b"\1" * 1001 + leaking + b"\2" * 1001)
    canaries.check_tree(tmp_path)
    assert [(leak.name, leak.place) for leak in canaries.leaks] == [("key 2999", "leak.db")]

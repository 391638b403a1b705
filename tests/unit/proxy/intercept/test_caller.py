"""The token of a listener: what counts as having it, and what happens to its file."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest

from valetkey.contracts.errors import ConfigError
from valetkey.proxy.intercept.caller import CallerToken

TOKEN = "a-token-of-a-file-0123456789"


def basic(text: str) -> bytes:
    return b"Basic " + base64.b64encode(text.encode())


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text(TOKEN + "\n")
    return path


def test_who_has_the_token_is_admitted(file: Path) -> None:
    token = CallerToken(file)
    for value in (f"Bearer {TOKEN}".encode(), basic(f":{TOKEN}"), basic(f"anyone:{TOKEN}")):
        assert token.admits([value])
        assert token.admits([b" " + value + b" "])


@pytest.mark.parametrize(
    "values",
    [
        [],
        [b""],
        [b"Bearer"],
        [TOKEN.encode()],
        [b"Bearer " + TOKEN.encode() + b"x"],
        [b"Digest " + TOKEN.encode()],
        [basic(TOKEN)],
        [basic(f"{TOKEN}:")],
        [b"Basic not base64!"],
        [b"Bearer " + TOKEN.encode()] * 2,
    ],
)
def test_who_has_it_not_or_not_clearly_is_not(values: list[bytes], file: Path) -> None:
    assert not CallerToken(file).admits(values)


def test_a_new_token_counts_after_a_refresh_and_a_bad_file_changes_nothing(file: Path) -> None:
    token = CallerToken(file)
    file.write_text("another-token-0123456789")
    token.refresh()
    assert token.admits([b"Bearer another-token-0123456789"])
    assert not token.admits([f"Bearer {TOKEN}".encode()])
    for bad in ("", "short"):
        file.write_text(bad)
        token.refresh()
        assert token.admits([b"Bearer another-token-0123456789"])
        assert not token.admits([f"Bearer {bad}".encode()])
    file.unlink()
    token.refresh()
    assert token.admits([b"Bearer another-token-0123456789"])


@pytest.mark.parametrize("content", [None, "", "too short"])
def test_a_listener_does_not_start_without_its_token(content: str | None, tmp_path: Path) -> None:
    path = tmp_path / "token"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match="token_file"):
        CallerToken(path)

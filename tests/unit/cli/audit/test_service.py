from __future__ import annotations

import pytest

USAGE = {
    "plain HTTP beyond loopback": ("http://collector.example:7090", "plain HTTP is for loopback"),
    "plain HTTP to a name": ("http://127.0.0.1.example", "plain HTTP is for loopback"),
    "no URL": ("collector", "is not the URL of a collector"),
    "another scheme": ("ftp://127.0.0.1", "is not the URL of a collector"),
    "nobody there": ("http://127.0.0.1:1", "can't be reached"),
    "no port": ("http://127.0.0.1:x", "is not the URL of a collector"),
}


@pytest.fixture
def token(tmp_path):
    file = tmp_path / "token"
    file.write_text("a-token\n")
    return file


@pytest.mark.parametrize(("url", "message"), USAGE.values(), ids=USAGE)
@pytest.mark.parametrize("command", ["tail", "verify"])
def test_a_collector_that_can_not_be_asked(audit, token, command, url, message):
    result = audit(command, "--collector", url, "--token-file", token)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("content", [b"", b"two tokens", b"\xff\xfe"])
def test_a_file_without_a_token(audit, token, content):
    token.write_bytes(content)
    result = audit("tail", "--collector", "http://127.0.0.1:1", "--token-file", token)
    assert result.exit_code == 2
    assert "token" in result.stderr


def test_a_ca_file_that_is_none(audit, token):
    result = audit(
        "tail", "--collector", "https://127.0.0.1:1", "--token-file", token, "--ca-file", token
    )
    assert result.exit_code == 2
    assert "can't be used as CA file" in result.stderr

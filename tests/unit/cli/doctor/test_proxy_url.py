from __future__ import annotations

import base64

import pytest

from valetkey.cli.doctor.proxy_url import (
    Endpoint,
    ProxyUrlError,
    Redaction,
    endpoint_of,
    parse,
    shown,
)

LOCAL = Endpoint("127.0.0.1", 7072)
READ = [
    ("http://127.0.0.1:7072", "http", LOCAL),
    ("http://localhost:7072/", "http", LOCAL),
    ("HTTP://LOCALHOST.:7072", "http", LOCAL),
    (" http://127.0.0.1:7072 ", "http", LOCAL),
    ("http://[::1]:7072", "http", Endpoint("::1", 7072)),
    ("http://0.0.0.0:7072", "http", LOCAL),
    ("http://proxy.example", "http", Endpoint("proxy.example", 80)),
    ("https://proxy.example", "https", Endpoint("proxy.example", 443)),
    ("socks5h://proxy.example", "socks5h", Endpoint("proxy.example", 1080)),
]
UNREADABLE = [
    ("127.0.0.1:7072", "no scheme"),
    ("localhost", "no scheme"),
    ("http://", "no host"),
    ("http://:7072", "no host"),
    ("http://host:port", "not a URL"),
    ("http://host:70720", "not a URL"),
    ("http://[::1", "not a URL"),
    ("ftp://proxy.example", "no port"),
]


@pytest.mark.parametrize(("value", "scheme", "endpoint"), READ)
def test_what_is_read(value: str, scheme: str, endpoint: Endpoint) -> None:
    url = parse(value)
    assert (url.scheme, url.endpoint, url.credentials) == (scheme, endpoint, None)


@pytest.mark.parametrize(("value", "reason"), UNREADABLE)
def test_what_is_not(value: str, reason: str) -> None:
    with pytest.raises(ProxyUrlError, match=reason):
        parse(value)


CREDENTIALS = [
    ("http://user:token@h:1", b"user:token"),
    ("http://user@h:1", b"user:"),
    ("http://:token@h:1", b":token"),
    ("http://u%40v:to%2Fk%3Aen@h:1", b"u@v:to/k:en"),
]


@pytest.mark.parametrize(("value", "plain"), CREDENTIALS)
def test_credentials_are_what_clients_send(value: str, plain: bytes) -> None:
    url = parse(value)
    assert url.credentials is not None
    assert base64.b64decode(url.credentials.reveal()) == plain
    assert "token" not in repr(url)


def test_an_endpoint_is_written_as_an_address() -> None:
    assert endpoint_of("::1", 1).url == "http://[::1]:1"
    assert endpoint_of("[::]", 1).url == "http://127.0.0.1:1"
    assert endpoint_of("A.example.", 1).url == "http://a.example:1"


SHOWN = [
    ("http://127.0.0.1:7072", "http://127.0.0.1:7072"),
    ("http://user:token@h:1", "http://…@h:1"),
    ("http://us/er:to@ken/@h:1/", "http://…@h:1/"),
    ("user:token@h:1", "…@h:1"),
    ("localhost,.example.com", "localhost,.example.com"),
]


@pytest.mark.parametrize(("value", "text"), SHOWN)
def test_a_value_is_shown_without_its_token(value: str, text: str) -> None:
    assert shown(value) == text


TOKEN = "s3cr3t/t0k%3Aen"
LEAKS = [
    f"Could not resolve proxy: http://user:{TOKEN}@h:1",
    f"proxy 'user:{TOKEN}' refused",
    f"password {TOKEN}",
    "password s3cr3t/t0k:en",
    f"Basic {base64.b64encode(b'user:s3cr3t/t0k:en').decode()}",
]


@pytest.mark.parametrize("text", LEAKS)
@pytest.mark.parametrize("value", [f"http://user:{TOKEN}@h:1", f"user:{TOKEN}@h:1"])
def test_what_others_say_loses_the_token(value: str, text: str) -> None:
    redacted = Redaction([value, "http://127.0.0.1:7072"])(text)
    assert "s3cr3t" not in redacted
    assert base64.b64encode(b"user:s3cr3t/t0k:en").decode() not in redacted
    assert "…" in redacted


def test_a_url_that_nobody_listed_loses_its_userinfo_too() -> None:
    assert Redaction()("see http://a:b@c/d and http://e/f") == "see http://…@c/d and http://e/f"

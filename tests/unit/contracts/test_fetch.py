"""Which URLs may be fetched at all, and when two are of one origin."""

from __future__ import annotations

import pytest

from valetkey.contracts.fetch import is_safe_url, origin

URLS = {
    "https://idp.example": True,
    "https://idp.example:8443/realms/a": True,
    "http://127.0.0.1:8080/x": True,
    "http://[::1]:8080/x": True,
    "http://localhost/x": True,
    "http://idp.example": False,
    "http://10.0.0.1/x": False,
    "http://169.254.169.254/latest": False,
    "file:///etc/passwd": False,
    "https://": False,
    "https://user@idp.example": False,
    "https://idp.example?x": False,
    "https://idp.example#x": False,
    "https://idp.example:port/": False,
    "https://[::1": False,
    "idp.example": False,
}


@pytest.mark.parametrize(("url", "good"), URLS.items(), ids=URLS)
def test_safe_urls(url: str, good: bool) -> None:
    assert is_safe_url(url) is good


def test_origins() -> None:
    assert origin("https://idp.example/a") == origin("https://IDP.example:443/b")
    assert origin("https://idp.example") != origin("https://idp.example:8443")
    assert origin("https://idp.example") != origin("https://idp.example.evil.example")

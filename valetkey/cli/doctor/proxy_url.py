"""A proxy variable's value, read once and strictly; whoever shows it shows no token."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote, urlsplit

from valetkey.contracts.secret import Secret

DEFAULT_PORTS: Final = {"http": 80, "https": 443, "socks4": 1080, "socks5": 1080, "socks5h": 1080}
# Up to the last @, whatever is in between: a token that nobody percent-encoded may hold a slash.
_USERINFO: Final = re.compile(r"(?<=//)[^\s\"'<>]*@")
_LEAST: Final = 4


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address to connect to. Loopback has one spelling, so that two names are one listener."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    @property
    def url(self) -> str:
        return f"http://{self}"


@dataclass(frozen=True, slots=True)
class ProxyUrl:
    """A parsed value. ``credentials`` are what clients send in ``Proxy-Authorization: Basic``."""

    scheme: str
    endpoint: Endpoint
    credentials: Secret | None = field(default=None, compare=False)


class ProxyUrlError(ValueError):
    """Not a proxy URL; the message says why, and repeats nothing of the value."""


def endpoint_of(host: str, port: int) -> Endpoint:
    """An `Endpoint` in its one spelling."""
    host = host.lower().strip("[]").removesuffix(".")
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return Endpoint("127.0.0.1" if host == "localhost" else host, port)
    # A listener on every address is one on loopback for whoever is on the same host.
    if address.is_unspecified:
        return Endpoint("127.0.0.1", port)
    return Endpoint(address.compressed, port)


def parse(value: str) -> ProxyUrl:
    """Read a value such as ``http://user:token@127.0.0.1:7072``. Raises `ProxyUrlError`."""
    text = value.strip()
    if "://" not in text:
        raise ProxyUrlError("no scheme (Node and others refuse it)")
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise ProxyUrlError("not a URL") from error
    scheme = parts.scheme.lower()
    if not parts.hostname:
        raise ProxyUrlError("no host")
    if not port:
        port = DEFAULT_PORTS.get(scheme)
    if not port:
        raise ProxyUrlError("no port")
    credentials = None
    if parts.username is not None:
        user, password = unquote(parts.username), unquote(parts.password or "")
        encoded = base64.b64encode(f"{user}:{password}".encode()).decode()
        credentials = Secret(encoded)
    return ProxyUrl(scheme, endpoint_of(parts.hostname, port), credentials)


class Redaction:
    """Takes tokens out of what others say: userinfo in any URL, and what these variables hold."""

    def __init__(self, values: Iterable[str] = ()) -> None:
        found = {form for value in values for form in _secrets(value)}
        self._secrets = sorted(found, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "…")
        return _USERINFO.sub("…@", text)


def shown(value: str) -> str:
    """A variable's value without what stands before its host, well-formed or not."""
    before, at, after = value.rpartition("@")
    if not at:
        return value
    scheme, mark, _ = before.partition("//")
    return f"{scheme if mark else ''}{mark}…@{after}"


def _secrets(value: str) -> list[str]:
    """The token in a variable, in every form in which a client may repeat it."""
    userinfo, at, _ = value.rpartition("@")
    if not at:
        return []
    userinfo = userinfo.rpartition("//")[2] if "//" in userinfo else userinfo
    password = userinfo.partition(":")[2]
    plain = unquote(userinfo)
    encoded = base64.b64encode(plain.encode()).decode()
    forms = (userinfo, plain, password, unquote(password), encoded)
    return [form for form in forms if len(form) >= _LEAST]

"""Documents that settings say where to fetch: keys, bundles, metadata of issuers.

The URL comes from settings, never from a token. Redirects are not followed and no proxy of the
environment is used: either would let the answer come from a place that nobody pinned.
"""

from __future__ import annotations

import asyncio
import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp

TIMEOUT: Final = 5.0
MAX_DOCUMENT: Final = 256 * 1024


class FetchFailed(Exception):  # noqa: N818 - reads as what it is
    """The document could not be had. The message holds nothing of its content."""


async def fetch(url: str, *, ca_file: Path | None) -> bytes:
    """The body of a 200 answer. ``ca_file`` stands for the system's roots. Raises `FetchFailed`."""
    status, body = await exchange("GET", url, ca_file=ca_file)
    if status != 200:
        raise FetchFailed(f"the endpoint answered {status}")
    return body


async def exchange(
    method: str,
    url: str,
    *,
    ca_file: Path | None,
    headers: Mapping[str, str] | None = None,
    body: Any = None,
    most: int = MAX_DOCUMENT,
) -> tuple[int, bytes]:
    """Status and body of the answer, whatever the status. Raises `FetchFailed`.

    ``most`` is how many bytes of it are taken.
    """
    try:
        tls = True if ca_file is None else await asyncio.to_thread(_context, ca_file)
        timeout = aiohttp.ClientTimeout(total=TIMEOUT)
        async with (
            aiohttp.ClientSession(
                timeout=timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            ) as session,
            session.request(
                method, url, ssl=tls, headers=headers, data=body, allow_redirects=False
            ) as response,
        ):
            read = bytearray()
            async for chunk in response.content.iter_any():
                read += chunk
                if len(read) > most:
                    raise FetchFailed("the document is too large")
            return response.status, bytes(read)
    except (OSError, ValueError, aiohttp.ClientError, TimeoutError) as error:
        raise FetchFailed(type(error).__name__) from error


def is_safe_url(url: str) -> bool:
    """An https URL of a host, or http on loopback, without user, query and fragment."""
    try:
        parts = urlsplit(url)
        host = parts.hostname
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError:
        return False
    if not host or parts.username is not None or "?" in url or "#" in url:
        return False
    return parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port of a URL that `is_safe_url` accepted."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    return parts.scheme, parts.hostname or "", port


def is_loopback(host: str) -> bool:
    """Whether what is sent to this host can't leave the machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))

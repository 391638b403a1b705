"""Notices to a URL, signed so that the receiver can tell who sent them (docs/adr/0016).

Standard Webhooks: ``webhook-id`` (the same in every attempt: the receiver drops repeats by it),
``webhook-timestamp``, and ``webhook-signature``: ``v1,`` and base64 of HMAC-SHA256 over
``id.timestamp.body``. The URL is the one in settings; nothing that comes back leads elsewhere.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import os
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from valetkey.broker.approval_settings import WebhookSettings
from valetkey.broker.notify.courier import Undelivered
from valetkey.broker.store.notices import Notice
from valetkey.contracts.closed_files import is_open_to_others
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.trusted_roots import TrustedRoots

_PREFIX: Final = b"whsec_"
_MAX_SECRET_FILE: Final = 4096


class Webhook:
    """One receiver. Raises `ConfigError` when its secret or CA can't be used."""

    def __init__(self, settings: WebhookSettings) -> None:
        self.name = settings.name
        self._url = settings.url
        self._key = _read_secret(settings.secret_file)
        self._timeout = aiohttp.ClientTimeout(total=settings.timeout)
        self._roots = TrustedRoots(f"notices {settings.name}: ca_file", settings.ca_file)

    async def deliver(self, notice: Notice, *, now: float) -> None:
        """One attempt. Raises `Undelivered`."""
        body = msgspec.json.encode(notice.body)
        timestamp = str(int(now))
        headers = {
            "Content-Type": "application/json",
            "webhook-id": notice.id,
            "webhook-timestamp": timestamp,
            "webhook-signature": sign(self._key, notice.id, timestamp, body),
        }
        context = await self._roots.current()
        try:
            async with (
                aiohttp.ClientSession(timeout=self._timeout, trust_env=False) as session,
                session.post(
                    self._url, data=body, headers=headers, ssl=context, allow_redirects=False
                ) as response,
            ):
                status = response.status
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Undelivered(type(error).__name__) from error
        if not 200 <= status < 300:
            raise Undelivered(f"status {status}")


def sign(key: bytes, id_: str, timestamp: str, body: bytes) -> str:
    """The ``webhook-signature`` of a message."""
    mac = hmac.digest(key, b"%b.%b.%b" % (id_.encode(), timestamp.encode(), body), hashlib.sha256)
    return "v1," + base64.b64encode(mac).decode()


def _read_secret(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            text = file.read(_MAX_SECRET_FILE).strip()
    except OSError as error:
        raise ConfigError(f"{path}: webhook secret can't be read: {error.strerror}") from error
    if is_open_to_others(status):
        raise ConfigError(f"{path}: webhook secret is open to group or others: chmod 0600")
    try:
        key = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error as error:
        raise ConfigError(f"{path}: a webhook secret is whsec_ and base64") from error
    if not text.startswith(_PREFIX) or not 24 <= len(key) <= 64:
        raise ConfigError(f"{path}: a webhook secret is whsec_ and base64 of 24 to 64 bytes")
    return key

"""Settings of approvals, and of who is told of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

import msgspec

from valetkey.broker.core.approvals import MAX_VALID
from valetkey.contracts.settings import Duration, Settings, duration

_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
# What mail software agrees on; RFC 5321 §4.1.2 allows stranger ones.
_ADDRESS: Final = re.compile(r"[A-Za-z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}@[A-Za-z0-9.-]{1,255}")
_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


class WebhookSettings(Settings, frozen=True, kw_only=True):
    """An address that notices are POSTed to, signed (Standard Webhooks, HMAC-SHA256).

    ``secret_file`` holds the secret that the receiver knows too: ``whsec_`` and base64 of 24 to 64
    bytes; nobody but the broker may read it. ``url`` is https; http on loopback only. Redirects are
    not followed.
    """

    name: str
    url: str
    secret_file: Path
    ca_file: Path | None = None
    timeout: Duration = duration(10)

    def __post_init__(self) -> None:
        _check_name(self.name)
        parts = urlsplit(self.url)
        if "@" in parts.netloc or parts.fragment or not parts.hostname:
            raise ValueError("url has a host, and neither userinfo nor a fragment")
        if parts.scheme != "https" and not (parts.scheme == "http" and parts.hostname in _LOOPBACK):
            raise ValueError("url is https (http on loopback only)")


class EmailSettings(Settings, frozen=True, kw_only=True):
    """A mail server that notices are handed to, and who gets them.

    ``security``: ``starttls`` (the default) or ``tls``; ``none`` on loopback only. With
    ``username``, ``password_file`` holds the password.
    """

    name: str
    host: str
    sender: str
    recipients: tuple[str, ...]
    port: int = 587
    security: Literal["starttls", "tls", "none"] = "starttls"
    username: str | None = None
    password_file: Path | None = None
    ca_file: Path | None = None
    timeout: Duration = duration(20)

    def __post_init__(self) -> None:
        _check_name(self.name)
        if not self.recipients:
            raise ValueError("recipients is empty")
        for address in (self.sender, *self.recipients):
            if not _ADDRESS.fullmatch(address):
                raise ValueError(f"{address!r} is no mail address")
        if self.security == "none" and self.host not in _LOOPBACK:
            raise ValueError("security: none is for loopback only")
        if (self.username is None) != (self.password_file is None):
            raise ValueError("username and password_file come together")
        if not 1 <= self.port <= 65_535:
            raise ValueError("port is between 1 and 65535")


class NoticeSettings(Settings, frozen=True, kw_only=True):
    """Who is told of approvals, and for how long it is tried.

    ``link`` is a URL that goes with each notice; ``{id}`` in it stands for the approval's id.
    """

    webhooks: tuple[WebhookSettings, ...] = ()
    email: tuple[EmailSettings, ...] = ()
    link: str | None = None
    give_up_after: Duration = duration(86_400)

    def __post_init__(self) -> None:
        names = [webhook.name for webhook in self.webhooks] + [mail.name for mail in self.email]
        if len(set(names)) != len(names):
            raise ValueError("two notices have the same name")
        if self.link is not None and not self.link.startswith(("https://", "http://")):
            raise ValueError("link is a URL")


class ApprovalsSettings(Settings, frozen=True, kw_only=True):
    """Approvals: what grants and policies do not say themselves.

    ``deferred`` lets clients wait for people by a deferral code
    (draft-ietf-oauth-deferred-token-response: not a standard yet, so it is off by default), asking
    every ``interval``. A request waits for ``expires``; what is approved may be used within
    ``valid``. ``open`` bounds what one workload can have open at once. What is over is kept for
    ``kept``.
    """

    deferred: bool = False
    interval: Duration = duration(5)
    expires: Duration = duration(900)
    valid: Duration = duration(3600)
    open: int = 100
    kept: Duration = duration(30 * 86_400)
    notices: NoticeSettings = msgspec.field(default_factory=NoticeSettings)

    def __post_init__(self) -> None:
        if not 1 <= self.interval <= 300:
            raise ValueError("interval is between 1s and 5m")
        if not all(1 <= time <= MAX_VALID for time in (self.expires, self.valid)):
            raise ValueError("expires and valid are between 1s and 7d")
        if not 1 <= self.open <= 100_000:
            raise ValueError("open is between 1 and 100000")
        if self.kept < 0:
            raise ValueError("kept is not negative")


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ValueError("name is lower-case letters, digits and '-'")

"""Settings of the feed: who receives what has ended, and how. Every default is the closed one."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from msgspec import Meta

from valetkey.contracts.settings import Duration, Settings, duration


class FeedReceiverSettings(Settings, frozen=True, kw_only=True):
    """A receiver beside the sidecars: a SIEM or another vendor's service.

    It authenticates with a token of ``issuer`` (one in ``issuers``) for ``subject``; ``bearer``
    lets it do so without a proof of possession, which most receivers can't make. ``audience`` is
    the ``aud`` of its events. ``push`` lists the exact URLs that it may have events pushed to:
    https, or http on loopback; ``ca_file`` (PEM) is trusted there instead of the system's roots.
    """

    issuer: str
    subject: str
    audience: str
    bearer: bool = False
    push: tuple[str, ...] = ()
    ca_file: Path | None = None

    def __post_init__(self) -> None:
        if not self.issuer or not self.subject or not self.audience:
            raise ValueError("issuer, subject and audience must not be empty")
        for url in self.push:
            _check_push(url)


class FeedSettings(Settings, frozen=True, kw_only=True):
    """The feed of what has ended (OpenID Shared Signals Framework 1.0).

    Every workload that the broker trusts may follow it. ``wait`` is how long a poll waits at most
    for something to tell; ``streams`` how many streams one identity may have (each sidecar has one
    of its own). ``connection_age`` is how long a connection that polls lives on average: sidecars
    stay at the replica that they are connected to, so one that was added or came back gets its
    share of them as connections end. ``receivers`` are those beside the sidecars.
    """

    wait: Duration = duration(30)
    connection_age: Duration = duration(300)
    streams: Annotated[int, Meta(ge=1, le=1_000_000)] = 10_000
    receivers: tuple[FeedReceiverSettings, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.wait <= 300:
            raise ValueError("wait is between 1s and 5m")
        if not 1 <= self.connection_age <= 86_400:
            raise ValueError("connection_age is between 1s and 1d")
        names = [(receiver.issuer, receiver.subject) for receiver in self.receivers]
        if len(set(names)) != len(names):
            raise ValueError("receivers: one is listed twice")


def _check_push(url: str) -> None:
    parts = urlsplit(url)
    if (
        parts.scheme not in {"https", "http"}
        or not parts.hostname
        or parts.fragment
        or parts.username is not None
        or (parts.scheme == "http" and not _is_loopback(parts.hostname))
    ):
        raise ValueError("push: https URLs (http on loopback only), without user and fragment")


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

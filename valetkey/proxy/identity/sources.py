"""Settings to a source of identity; what a source needs is loaded for it alone."""

from __future__ import annotations

from pathlib import Path

from valetkey.proxy.identity.file import FileIdentity
from valetkey.proxy.identity.source import Identity
from valetkey.proxy.settings import IdentitySettings


def open_identity(
    settings: IdentitySettings,
    *,
    audience: str,
    certificates: bool = False,
    ca_file: Path | None = None,
) -> Identity:
    """The source, not asked yet. Raises `ConfigError`.

    ``audience`` is whom tokens are for, if settings name nobody else; ``certificates`` asks for
    client certificates too, with which only servers that ``ca_file`` vouches for are met.
    """
    if settings.file is not None:
        return FileIdentity(settings.file)
    assert settings.spiffe is not None
    from valetkey.proxy.identity.spiffe import SpiffeIdentity

    return SpiffeIdentity.open(
        settings.spiffe.socket,
        settings.spiffe.audience or audience,
        identity=settings.spiffe.id,
        certificates=certificates,
        ca_file=ca_file,
    )

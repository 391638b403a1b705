"""Roots for the listener of client certificates: loaded at the start, and kept up to date."""

from __future__ import annotations

from valetkey.broker.part import Foundation, Part


class CertificatesPart(Part):
    """No endpoints of its own: those of OAuth are served on that listener too."""

    name = "certificates"

    def __init__(self, base: Foundation) -> None:
        self._certificates = base.certificates

    async def load(self) -> None:
        await self._certificates.load_roots()

    async def run(self) -> None:
        await self._certificates.keep_roots()

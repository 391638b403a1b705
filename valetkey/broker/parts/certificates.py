"""The broker's certificate, and the roots of its clients': both kept up to date."""

from __future__ import annotations

import asyncio

from valetkey.broker.part import Foundation, Part


class CertificatesPart(Part):
    """No endpoints of its own: those of OAuth are served on the listener for certificates too."""

    name = "certificates"

    def __init__(self, base: Foundation) -> None:
        self._certificates = base.certificates
        self._served = base.served

    async def load(self) -> None:
        await self._certificates.load_roots()

    async def run(self) -> None:
        work = [self._certificates.keep_roots()]
        if self._served is not None:
            work.append(self._served.run())
        await asyncio.gather(*work)

    def details(self) -> dict[str, str]:
        return {"certificate": self._served.state} if self._served is not None else {}

"""Directories: the SCIM endpoint, for clients that provision users and groups."""

from __future__ import annotations

import asyncio

from aiohttp import web

from valetkey.broker.part import Foundation, Part


class DirectoryPart(Part):
    """``/scim/v2``, where settings have a directory of that kind."""

    name = "directory"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    async def load(self) -> None:
        await self._base.directories.load()

    async def sweep(self) -> None:
        await self._base.directories.sweep()

    async def run(self) -> None:
        """Nothing but to leave the directories at the end."""
        try:
            await asyncio.Event().wait()
        finally:
            await self._base.directories.close()

    def add_routes(self, router: web.UrlDispatcher) -> None:
        if self._base.directories.scim is not None:
            # A broker without SCIM starts without what it takes: 30 MiB, half a second.
            from valetkey.broker.api.scim_routes import add_routes

            add_routes(
                router,
                self._base.directories.scim,
                self._base.admin,
                issuer=self._base.config.issuer,
                clock=self._base.clock,
            )

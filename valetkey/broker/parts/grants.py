"""Grants made by API, and deployment windows."""

from __future__ import annotations

import secrets

from aiohttp import web

from valetkey.broker.api.grants import GrantsApi
from valetkey.broker.api.windows import WindowsApi
from valetkey.broker.core.grants.live import WINDOW_PREFIX
from valetkey.broker.grants_record import GrantsRecord
from valetkey.broker.part import Foundation, Part
from valetkey.broker.store.file_grants import FileGrants
from valetkey.broker.store.grants import GrantStore
from valetkey.broker.store.live_grants import LiveGrantsMirror
from valetkey.broker.store.windows import WindowStore
from valetkey.broker.trust.deployments import Deployments
from valetkey.broker.trust.kinds import KINDS
from valetkey.broker.trust.tokens import TokenVerifier
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.issuer import TrustedIssuers


class GrantsPart(Part):
    """``/v1/grants`` and ``/v1/windows``."""

    name = "grants"

    def __init__(self, base: Foundation) -> None:
        self._base = base
        shared = (base.database, base.changes, base.actions, base.signals)
        self._windows = WindowStore(
            *shared, clock=base.clock, window_id=lambda: WINDOW_PREFIX + secrets.token_hex(16)
        )
        self._grants = GrantStore(*shared, base.revocations, self._windows, clock=base.clock)
        self._file = FileGrants(base.database, base.revocations, self._windows, clock=base.clock)
        self._record = GrantsRecord(
            base.policies, self._file, base.revocations, base.changes, clock=base.clock
        )
        self._mirror = LiveGrantsMirror(
            base.policies.live,
            base.policies.current.rules,
            base.changes,
            self._grants,
            base.uses,
            self._windows,
            clock=base.clock,
        )
        base.metrics.watch_grants(base.policies.live)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        base, guard = self._base, self._base.admin.guard
        grants = GrantsApi(self._grants, base.uses, base.policies, base.changes, clock=base.clock)
        windows = WindowsApi(
            self._windows,
            base.policies,
            base.changes,
            Deployments(self._deployers()),
            base.config.limits.admin.of_callers(base.config.limits.callers, base.timer),
            clock=base.clock,
        )
        router.add_post("/v1/grants", guard("operator", grants.create))
        router.add_get("/v1/grants", guard("viewer", grants.page))
        router.add_get("/v1/grants/{id}", guard("viewer", grants.show))
        router.add_post("/v1/grants/{id}/revoke", guard("operator", grants.revoke))
        router.add_post("/v1/windows", windows.guard(windows.open))
        router.add_post("/v1/windows/{id}/close", windows.guard(windows.close))
        router.add_get("/v1/windows", guard("viewer", windows.page))
        router.add_get("/v1/windows/{id}", guard("viewer", windows.show))
        router.add_post("/v1/windows/{id}/revoke", guard("operator", windows.revoke))

    async def load(self) -> None:
        await self._mirror.load()
        taken = [
            grant.id
            for grant in self._base.policies.live.made
            if not grant.ended and grant.id in self._base.policies.current.written
        ]
        if taken:
            raise ConfigError(
                f"{self._base.config.grants_file}: grant {taken[0]}: a grant made by API has this "
                "id: give the one of the file another id"
            )
        await self._record.begin()

    async def run(self) -> None:
        await self._record.run()

    async def close(self) -> None:
        await self._record.close()

    async def sweep(self) -> None:
        self._mirror.sweep()
        await self._windows.close_overdue()
        await self._windows.sweep()
        await self._grants.sweep()
        await self._file.sweep()

    def _deployers(self) -> TokenVerifier | None:
        config = self._base.config
        if config.deployments is None:
            return None
        return TokenVerifier(
            TrustedIssuers(config.deployments.issuers, kinds=KINDS),
            clock=self._base.clock,
            capacity=config.limits.verified_tokens,
        )

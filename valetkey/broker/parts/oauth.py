"""OAuth: the endpoints that workloads call, the keys and the metadata that go with them."""

from __future__ import annotations

from aiohttp import web

from valetkey.broker.api import introspect, jwks, metadata, revoke, status, token
from valetkey.broker.approval_gate import ApprovalGate
from valetkey.broker.core.exchange import rules_digest
from valetkey.broker.part import Foundation, Part
from valetkey.broker.store.statuses import Statuses
from valetkey.broker.watched import STALE


class OAuthPart(Part):
    """Exchange, introspection, revocation, JWK Set, metadata."""

    name = "oauth"

    def __init__(self, base: Foundation, gate: ApprovalGate) -> None:
        self._base = base
        self._gate = gate
        self._statuses = Statuses(base.database, clock=base.clock, timer=base.timer)

    def add_routes(self, router: web.UrlDispatcher) -> None:
        base, config = self._base, self._base.config
        exchange = token.TokenEndpoint(
            base.clients,
            base.parties,
            base.people,
            base.policies,
            base.cedar,
            base.uses,
            base.issuer,
            base.metrics,
            config.limits.exchanges.of_callers(config.limits.callers, base.timer),
            base.standings,
            self._statuses,
            self._gate,
            base.signals,
            url=config.issuer + token.PATH,
            clock=base.clock,
        )
        introspection = introspect.IntrospectEndpoint(
            base.clients,
            base.issuer,
            base.standings,
            config.resource_servers,
            base.signals,
            config.limits.introspections.of_callers(config.limits.callers, base.timer),
            config.limits.exchanges.of_callers(config.limits.callers, base.timer),
            url=config.issuer + introspect.PATH,
        )
        revocation = revoke.RevokeEndpoint(
            base.clients,
            base.issuer,
            base.revocations,
            base.metrics,
            base.response,
            config.limits.revocations.of_callers(config.limits.callers, base.timer),
            url=config.issuer + revoke.PATH,
            clock=base.clock,
        )
        lists = status.StatusEndpoint(
            self._statuses, base.standings, base.ring, issuer=config.issuer, clock=base.clock
        )
        router.add_get(status.PREFIX + "{list}", lists.handle)
        keys = jwks.JwksEndpoint(base.ring, publish_before=config.keys.publish_before)
        about = metadata.MetadataEndpoint(
            issuer=config.issuer,
            issuers=config.issuers,
            defers=config.approvals.deferred,
            mtls=config.mtls.url if config.mtls is not None else None,
        )
        router.add_post(token.PATH, exchange.handle)
        router.add_post(introspect.PATH, introspection.handle)
        router.add_post(revoke.PATH, revocation.handle)
        router.add_get(jwks.PATH, keys.handle)
        router.add_get(metadata.PATH, about.handle)

    async def sweep(self) -> None:
        await self._base.revocations.sweep()
        await self._base.standings.sweep()
        await self._base.assertions.sweep()
        await self._statuses.sweep()

    def details(self) -> dict[str, str]:
        grants, policies = self._base.policies, self._base.cedar
        return {
            "grants": STALE if grants.error else "ok",
            "policies": STALE if policies.error else "ok",
            "policy": rules_digest(grants.current.digest, policies.current.digest),
        }

"""AuthZEN: other systems ask the broker's policy."""

from __future__ import annotations

from aiohttp import web

from valetkey.broker.api import authzen
from valetkey.broker.api.authzen_wire import EnforcementPoints
from valetkey.broker.part import Foundation, Part


class AuthzenPart(Part):
    """The Authorization API, where settings name enforcement points."""

    name = "authzen"

    def __init__(self, base: Foundation) -> None:
        self._base = base

    def add_routes(self, router: web.UrlDispatcher) -> None:
        base, config = self._base, self._base.config
        if config.authzen is None:
            return
        points = EnforcementPoints(
            base.clients,
            base.admin.admins,
            config.authzen.enforcement_points,
            config.limits.exchanges.of_callers(config.limits.callers, base.timer),
            issuer=config.issuer,
        )
        endpoint = authzen.AuthzenEndpoint(
            base.policies,
            base.cedar,
            base.standings,
            base.people,
            base.directories.users,
            user_issuers=[one.issuer for one in config.issuers if one.use == "user"],
            clock=base.clock,
        )
        router.add_post(authzen.EVALUATION, points.guard(endpoint.evaluation))
        router.add_post(authzen.EVALUATIONS, points.guard(endpoint.evaluations))
        router.add_post(authzen.SEARCH_SUBJECT, points.guard(endpoint.search_subject))
        router.add_post(authzen.SEARCH_RESOURCE, points.guard(endpoint.search_resource))
        router.add_post(authzen.SEARCH_ACTION, points.guard(endpoint.search_action))
        router.add_get(authzen.METADATA, self._metadata)

    async def _metadata(self, _request: web.Request) -> web.Response:
        return web.json_response(
            authzen.metadata(self._base.config.issuer),
            headers={"Cache-Control": "public, max-age=3600"},
        )

"""Incidents: the API, who reports from outside, what sidecars acknowledged, what issuers rotate."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from typing import Final

from aiohttp import web

from valetkey.broker.api import github_alerts, ssf_push
from valetkey.broker.api.github_alerts import GithubAlertsEndpoint
from valetkey.broker.api.incidents import IncidentsApi
from valetkey.broker.api.ssf_push import PushEndpoint
from valetkey.broker.core.incidents import Incident
from valetkey.broker.incidents.exposed import IdentityTokens, OwnTokens, Recognises
from valetkey.broker.incidents.github import AlertDesk, PinnedKeys
from valetkey.broker.incidents.polling import Poller
from valetkey.broker.incidents.rotation import Rotates
from valetkey.broker.incidents.transmitters import Intake, Transmitter
from valetkey.broker.part import Foundation, Part
from valetkey.broker.settings import longest_ttl
from valetkey.broker.store.database import StoreError
from valetkey.broker.store.incidents import ASKED, DONE, Rotation
from valetkey.broker.store.signals import KEPT
from valetkey.contracts.errors import ValetkeyError
from valetkey.contracts.logs import Log

_TICK: Final = 1.0
# Incidents of the last minute are looked at each tick, older ones each tenth.
_YOUNG: Final = 60.0
_OLD: Final = 10
# How many incidents are watched for acknowledgements at a time, the newest first.
_WATCHED: Final = 100
# A rotation that failed is tried again after 2 s, 4 s, … at most 5 min.
_LONGEST_WAIT: Final = 300.0
# Below what holds a claim (`store.incidents.CLAIMED`): nobody else tries meanwhile.
_ROTATION_TIMEOUT: Final = 45.0


class IncidentsPart(Part):
    """``/v1/incidents``, and what goes on while they are open."""

    name = "incidents"

    def __init__(self, base: Foundation) -> None:
        self._base = base
        config = base.config
        targets = config.compiled_targets()
        self._rotators: dict[str, Rotates] = {one.name: one for one in base.rotators}
        recognisers: tuple[Recognises, ...] = (OwnTokens(base.issuer), IdentityTokens(base.tokens))
        self._api = IncidentsApi(
            base.admin,
            base.response,
            base.incidents,
            base.signals,
            recognisers,
            targets=targets,
            issuers=frozenset(issuer.issuer for issuer in config.issuers),
            knows_grant=lambda id_: base.policies.current.find(id_) is not None,
            longest_life=longest_ttl(targets),
        )
        intake = Intake(
            base.database,
            base.assertions,
            base.response,
            base.epochs,
            base.risks,
            base.changes,
            clock=base.clock,
        )
        transmitters = [
            Transmitter(name, settings, own_issuer=config.issuer)
            for name, settings in config.incidents.transmitters.items()
        ]
        self._push = PushEndpoint([one for one in transmitters if one.settings.push], intake)
        self._pollers = [Poller(one, intake) for one in transmitters if one.settings.poll]
        github = config.incidents.github
        self._github_keys = None if github is None else PinnedKeys(github.keys_file)
        self._desk = AlertDesk(base.response, base.epochs, recognisers, clock=base.clock)
        self._woken = asyncio.Event()
        base.incidents.on_change(self._wake)
        self._log = Log("broker.incidents")

    def add_routes(self, router: web.UrlDispatcher) -> None:
        self._api.add_routes(router)
        router.add_post(ssf_push.PATH, self._push.handle)
        if self._github_keys is not None:
            alerts = GithubAlertsEndpoint(self._github_keys, self._desk)
            router.add_post(github_alerts.PATH, alerts.handle)

    async def load(self) -> None:
        if self._github_keys is not None:
            await self._github_keys.load()

    async def sweep(self) -> None:
        await self._base.risks.sweep()
        if self._github_keys is not None:
            await self._github_keys.reload()

    async def run(self) -> None:
        async with asyncio.TaskGroup() as work:
            work.create_task(self._watch())
            for poller in self._pollers:
                work.create_task(poller.run())

    async def _watch(self) -> None:
        """Carry out rotations, and note when sidecars have acknowledged."""
        for tick in itertools.count():
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_TICK):
                    await self._woken.wait()
            self._woken.clear()
            try:
                while await self._rotate_one():
                    pass
                await self._note_contained(within=KEPT if tick % _OLD == 0 else _YOUNG)
            except StoreError as error:
                self._log.warning("incidents_unwatched", reason=error.reason)

    async def _wake(self, _incident: str) -> None:
        self._woken.set()

    async def _rotate_one(self) -> bool:
        claimed = await self._base.incidents.claim()
        if claimed is None:
            return False
        incident, rotation = claimed
        state, detail, again_in = await self._rotate(incident, rotation)
        await self._base.incidents.settle(rotation, state=state, detail=detail, again_in=again_in)
        return True

    async def _rotate(self, incident: Incident, rotation: Rotation) -> tuple[str, str, float]:
        """The state after a try, with what to say of it, and when to try again."""
        rotator = self._rotators.get(rotation.rotator)
        wait = min(2.0**rotation.attempts, _LONGEST_WAIT)
        if rotator is None:
            return ASKED, "this broker has no such issuer", _LONGEST_WAIT
        try:
            async with asyncio.timeout(_ROTATION_TIMEOUT):
                return DONE, await rotator.rotate(incident), 0.0
        except TimeoutError:
            detail = f"no answer within {_ROTATION_TIMEOUT:.0f} s"
        except ValetkeyError as error:
            detail = f"{error.code.name}: {error.reason}"
        self._log.error("rotation_failed", key=rotation.rotator, reason=detail)
        return ASKED, detail, wait

    async def _note_contained(self, *, within: float) -> None:
        base = self._base
        since = base.clock() - within
        for incident in await base.incidents.uncontained(since=since, limit=_WATCHED):
            complete, acknowledged_at = await base.signals.containment(incident.id)
            if not complete:
                continue
            # Where no sidecar follows the feed, there is nobody to wait for.
            at = max(incident.renewed_at, acknowledged_at or 0.0)
            if await base.incidents.note_contained(incident.id, at) and acknowledged_at:
                seconds = at - incident.renewed_at
                base.metrics.incident_contained.observe(seconds)
                self._log.info("incident_contained", instance=incident.id, seconds=seconds)

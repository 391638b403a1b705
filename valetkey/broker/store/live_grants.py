"""Keeps `LiveGrants` what the database says: at the start, with each change, as time goes by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

from valetkey.broker.core.grants import Grant, GrantRules, LiveGrants, OpenWindow, PolicyInvalid
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.grants import TOPIC, GrantStore, StoredGrant
from valetkey.broker.store.uses import GrantUses
from valetkey.broker.store.windows import TOPIC as WINDOWS_TOPIC
from valetkey.broker.store.windows import StoredWindow, WindowStore
from valetkey.contracts.logs import Log

# How long who asks is told that a grant has ended, and not that there is none. As long as a token
# can live at least: one that was minted by the last use of a grant must find it.
TOLD: Final = 3600.0


class LiveGrantsMirror:
    """``rules`` are those of the settings, ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        live: LiveGrants,
        rules: GrantRules,
        changes: Changes,
        grants: GrantStore,
        uses: GrantUses,
        windows: WindowStore,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._live = live
        self._rules = rules
        self._grants = grants
        self._uses = uses
        self._windows = windows
        self._clock = clock
        self._done_since: dict[str, float] = {}
        self._log = Log("broker.grants")
        changes.subscribe(TOPIC, self._grant_changed)
        changes.subscribe(WINDOWS_TOPIC, self._window_changed)

    async def load(self) -> None:
        """Read all that is in force. Called before the first request. Raises `StoreError`."""
        await self._uses.load()
        for stored in await self._grants.standing(since=self._clock() - TOLD):
            self._put(stored)
        for window in await self._windows.open_ones():
            self._note(window)

    def sweep(self) -> None:
        """Forget what ended more than `TOLD` seconds ago: no decision has to go over it."""
        now = self._clock()
        done = {grant.id for grant in self._live.made if self._is_done(grant, now)}
        self._done_since = {each: self._done_since.get(each, now) for each in done}
        for grant_id, since in list(self._done_since.items()):
            if since <= now - TOLD:
                self._live.forget(grant_id)
                del self._done_since[grant_id]
        self._live.sweep(now)

    def _is_done(self, grant: Grant, now: float) -> bool:
        used_up = grant.max_uses is not None and self._live.uses(grant.id) >= grant.max_uses
        return grant.ended or used_up or grant.not_after <= now

    async def _grant_changed(self, grant_id: str) -> None:
        stored = await self._grants.get(grant_id)
        if stored is None:
            self._live.forget(grant_id)
        else:
            self._put(stored)

    async def _window_changed(self, window_id: str) -> None:
        window = await self._windows.get(window_id)
        if window is None:
            self._live.close(window_id)
        else:
            self._note(window)

    def _put(self, stored: StoredGrant) -> None:
        grant_id = stored.written.id
        self._live.count(grant_id, stored.uses)
        try:
            grant = self._rules.compile(stored.written)
        except PolicyInvalid as error:
            # Settings no longer know its target or issuer: it gives nothing, and is still listed.
            self._live.made.discard(grant_id)
            self._log.warning("grant_unusable", grant=grant_id, reason=str(error))
            return
        self._live.made.put(replace(grant, ended=stored.ended is not None))

    def _note(self, window: StoredWindow) -> None:
        if window.is_open(self._clock()):
            self._live.open(OpenWindow(window.id, window.grant_id, window.deadline))
        else:
            self._live.close(window.id)

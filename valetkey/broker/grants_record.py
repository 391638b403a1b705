"""Keeps the record of the grants file what this replica's file says, and tells what ended in it.

Invariants:

- What ended in the file counts no more at this replica from the swap on, whatever the database
  does.
- It is owed to the others until it is written (`store.file_grants`): tried at once, and again every
  `RETRY` seconds. What a broker that was killed still owed, the next start finds: the record is
  compared with the file then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from valetkey.broker.core.grants import Policy
from valetkey.broker.core.grants.narrowing import End, ends_between
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import StoreError
from valetkey.broker.store.file_grants import FileGrants
from valetkey.broker.store.revocations import Revocations
from valetkey.contracts.logs import Log

RETRY: Final = 1.0
# How long a stop waits for the database, seconds.
_PATIENCE: Final = 10.0


class GrantsRecord:
    """One per replica. ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        policies: PolicyFile,
        store: FileGrants,
        revocations: Revocations,
        changes: Changes,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._policies = policies
        self._store = store
        self._revocations = revocations
        self._changes = changes
        self._clock = clock
        self._log = Log("broker.grants")
        self._writing = asyncio.Lock()
        self._owed: dict[str, End] = {}
        self._owing = asyncio.Event()
        self._swaps = 0
        self._since = 0.0
        policies.on_swapped(self._swapped)

    async def begin(self) -> None:
        """Tell what ended while no broker ran. Before the first request. Raises `StoreError`."""
        self._since = self._clock()
        await self._write()

    async def run(self) -> None:
        """Write what is owed until cancelled."""
        while True:
            await self._owing.wait()
            await self._try()
            if self._owing.is_set():
                await asyncio.sleep(RETRY)

    async def close(self) -> None:
        """Nothing is given here any more: what others have ended already has now ended here too."""
        try:
            async with asyncio.timeout(_PATIENCE):
                if self._owing.is_set():
                    await self._write()
                told = await self._store.leave(self._policies.current.written, at=self._clock())
        except (StoreError, TimeoutError) as error:
            # The tokens that were given meanwhile end when they expire.
            self._log.error("grants_untold", count=len(self._owed), error_type=type(error).__name__)
        else:
            self._log_told(told)

    async def _swapped(self, before: Policy, after: Policy) -> None:
        now = self._clock()
        ends = ends_between(before.written, after.written, at=now)
        for name, end in ends.items():
            self._revocations.anticipate("grant", name, at=end.at)
        if before.written == after.written:
            return
        self._owed |= ends
        self._since = now
        self._swaps += 1
        self._owing.set()
        await self._try()

    async def _try(self) -> None:
        try:
            async with self._writing:
                if self._owing.is_set():
                    await self._write()
            await self._changes.catch_up()
        except StoreError as error:
            self._log.error("grants_untold", count=len(self._owed), reason=error.reason)

    async def _write(self) -> None:
        owed, swaps = dict(self._owed), self._swaps
        written = self._policies.current.written
        told = await self._store.record(written, owed, at=self._since)
        self._owed = {name: end for name, end in self._owed.items() if owed.get(name) is not end}
        if swaps == self._swaps:
            self._owing.clear()
        self._log_told(told)

    def _log_told(self, told: list[str]) -> None:
        if told:
            self._log.info("grants_ended", count=len(told), grant=" ".join(told))

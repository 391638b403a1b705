"""What has ended is put into force: in the cache, in what is kept, and for calls under way."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from valetkey.proxy.core.eviction import Ended
    from valetkey.proxy.credentials.cache import CredentialCache
    from valetkey.proxy.credentials.held import HeldCalls
    from valetkey.proxy.http1.call import Call
    from valetkey.proxy.streams import Streams


class UnderWay(Protocol):
    """The calls that are under way; see `EnforcementPoint`."""

    streams: Streams

    def calls(self) -> Iterator[Call]: ...


class Revocation:
    """One per sidecar."""

    def __init__(self, cache: CredentialCache, held: HeldCalls, pep: UnderWay) -> None:
        self._cache = cache
        self._held = held
        self._pep = pep
        self.streams = pep.streams

    def revoke(self, ended: Ended) -> list[Call]:
        """Let nothing go out any more by credentials that have ended.

        They leave the cache, and calls that rest on one are decided on again at once. Gives those
        calls: until none of them is `unsettled`, the end is not in force for them.
        """
        self._cache.revoke(ended)
        self._held.revoke(ended)
        resting = []
        for call in self._pep.calls():
            permit, watch = call.permit, call.watch
            if permit is None:
                continue
            if ended(permit.credential):
                permit.credential.end(certain=ended.certain(permit.credential))
            if ended(permit.credential if watch is None else watch.credential):
                resting.append(call)
        self.streams.doubt(resting, ended)
        return resting

    def limit_lives(self, seconds: float) -> None:
        """Let no credential last longer than so many seconds after it came.

        Calls under way as well: at that time they are permitted again or cut.
        """
        self._cache.limit_lives(seconds)
        now = time.monotonic()
        for call in self._pep.calls():
            permit = call.permit
            if permit is not None:
                # Before its credential gets a shorter life: it was not born expired.
                self.streams.watch(call, permit, now)
                self._cache.cap(permit.credential)
                if call.watch is not None:
                    self._cache.cap(call.watch.credential)
        self.streams.changed()

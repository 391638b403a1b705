"""Streams are decided on again: what lasts must not outlive what permitted it.

A permit is for one moment, and an answer or a tunnel may last for hours. Each call that is under
way is therefore looked at again: when its credential has come to the point at which the cache
refreshes too, and at once when something else it rests on changes: the workload's identity or its
epoch, the settings, a credential that the broker revoked.

The question is the first one asked again: the same facts, the snapshot and the principal of now,
and a credential for them, from the cache or by exchange (one in flight per key). The outage
contract holds (design.md): without an answer from the broker, a stream lasts as long as the
credential in hand and not longer; where that credential is in doubt, it ends at once. Nothing of
this is ever sent to the target, which got its credential with the request.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.proxy.core.decision import (
    Deny,
    NeedsCredential,
    NeedsMessage,
    Permit,
    Principal,
    decide,
)
from valetkey.proxy.http1.call import Call
from valetkey.proxy.http1.phase import Phase

if TYPE_CHECKING:
    from valetkey.proxy.core.cache_policy import CacheKey
    from valetkey.proxy.core.credential import Credential
    from valetkey.proxy.core.eviction import Ended
    from valetkey.proxy.credentials.cache import CredentialCache, Fetch
    from valetkey.proxy.identity.source import Identity
    from valetkey.proxy.metrics import Metrics
    from valetkey.proxy.pep import EnforcementPoint

# Values of `Call.recheck_at` beside moments on the monotonic clock; a new call's is 0.
_NOW: Final = -1.0
_NEVER: Final = float("inf")
# A credential that is born expired serves the call that it was made for; what streams on is not
# asked about more often than this.
_LEAST: Final = 1.0
# How soon a refresh that was started, or a broker that was away, is looked for again.
_SOON: Final = 0.5
# Streams may all come into doubt in one moment; the broker is not asked about all in one.
_AT_ONCE: Final = 32


class Watch:
    """What one call under way rests on at present."""

    __slots__ = ("again", "asking", "checks", "credential", "doubted", "lived")

    def __init__(self, credential: Credential, since: float) -> None:
        self.take_up(credential, since)
        self.checks = 0
        """How often it was permitted again."""
        self.asking = False
        self.again = False
        """Whether something changed while the broker was being asked."""
        self.doubted = False
        """Whether the credential in hand counts for nothing until the broker says yes."""

    def take_up(self, credential: Credential, now: float) -> None:
        self.credential = credential
        self.lived = credential.expires_at > now
        """Whether the credential had any life left then; it may be given a shorter one since."""


class Streams:
    """The calls of one enforcement point that last."""

    def __init__(
        self,
        pep: EnforcementPoint,
        identity: Identity,
        cache: CredentialCache,
        metrics: Metrics,
    ) -> None:
        self._pep = pep
        self._identity = identity
        self._cache = cache
        self._counts = metrics.rechecks
        self._log = Log("streams")
        self._principal: Principal | None = identity.principal()
        self._changed = False
        self._turn = asyncio.Semaphore(_AT_ONCE)

    # --- what brings calls into question ------------------------------------------------------

    def changed(self) -> None:
        """Decide again on every call under way, at the next sweep.

        Without an answer of the broker, the credential in hand counts until it ends.
        """
        self._changed = True

    def doubt(self, calls: Iterable[Call], ended: Ended) -> None:
        """What these calls rest on has ended, or may have: only the broker's yes lets them go on.

        Where it is certain, that takes another credential; and a call whose credential was for
        this one call alone gets no other, so it is cut.
        """
        now = time.monotonic()
        for call in calls:
            if call.permit is None:
                continue
            watch = self.watch(call, call.permit, now)
            watch.doubted = True
            if watch.credential.single_use and ended.certain(watch.credential) and _is_out(call):
                self._cut(call, Deny(codes.SUBJECT_REVOKED, "the credential was revoked"))
                continue
            call.recheck_at = _NOW
            self.look(call, now)

    @staticmethod
    def unsettled(calls: Iterable[Call]) -> list[Call]:
        """Those of them that go on without having been permitted again."""
        return [
            call
            for call in calls
            if call.watch is not None and call.watch.doubted and _is_out(call)
        ]

    def cut(self, calls: Iterable[Call], reason: str) -> None:
        """Nobody said yes to them in time."""
        for call in calls:
            self._cut(call, Deny(codes.STREAM_EXPIRED, reason))

    def credentials(self) -> list[Credential]:
        """What calls rest on that have lasted or still wait to be sent.

        For `credentials.revalidation`: these were used before its last round, and are in use.
        """
        resting = []
        for call in self._pep.calls():
            if call.watch is not None:
                resting.append(call.watch.credential)
            elif call.permit is not None and not call.t_forward:
                resting.append(call.permit.credential)
        return resting

    # --- the sweep ----------------------------------------------------------------------------

    def begin_sweep(self) -> None:
        """Take note of what changed since the last sweep; then `look` at each call that is due."""
        principal = self._identity.principal()
        if principal is not None and principal is not self._principal:
            # An epoch is part of a principal, which is never changed but replaced.
            self._principal = principal
            self._changed = True
        if not self._changed:
            return
        self._changed = False
        for call in self._pep.calls():
            call.recheck_at = _NOW

    def look(self, call: Call, now: float) -> None:
        """Decide again on a call whose ``recheck_at`` has come, if it has become a matter of time.

        ``now`` is on the credentials' monotonic clock.
        """
        permit = call.permit
        if permit is None or not _is_out(call):
            return
        at_once = call.recheck_at == _NOW
        if call.watch is None and not at_once:
            self.watch(call, permit, now)
            call.recheck_at = permit.credential.refresh_at
            if now < call.recheck_at:
                return
        watch = self.watch(call, permit, now)
        if not watch.asking:
            self._check(call, watch, permit, now)
            return
        watch.again = watch.again or at_once
        if watch.lived and now >= watch.credential.expires_at:
            self._cut(call, Deny(codes.STREAM_EXPIRED, "the broker has not answered in time"))
        else:
            call.recheck_at = watch.credential.expires_at if watch.lived else _NEVER

    @staticmethod
    def watch(call: Call, permit: Permit, now: float) -> Watch:
        """What a call rests on, from now on if it was not looked at yet."""
        if call.watch is None:
            call.watch = Watch(permit.credential, now)
        return call.watch

    # --- deciding again -----------------------------------------------------------------------

    def _check(self, call: Call, watch: Watch, permit: Permit, now: float) -> None:
        needs = call.needs
        assert needs is not None  # where there is a permit, this was before it
        principal = self._identity.principal()
        if principal is None:
            self._unanswered(
                call, watch, Deny(codes.IDENTITY_UNAVAILABLE, self._identity.problem), now
            )
            return
        verdict = decide(needs.facts, self._pep.snapshot, principal)
        if isinstance(verdict, Deny):
            self._cut(call, verdict)
            return
        if isinstance(verdict, NeedsMessage) or not _same_place(verdict, permit):
            self._cut(call, Deny(codes.STREAM_REROUTED, "another url, path or way to reach it"))
            return
        held = watch.credential
        if held.single_use:
            self._check_single(call, watch, now)
            return
        watch.doubted = watch.doubted or not _same_but_for_digest(verdict.key, held.key)
        fetch = self._pep.supply.fetch(verdict)
        if not verdict.route.per_request:
            cached = self._cache.get(verdict.key, now)
            if cached is held:
                watch.doubted = False
                if now >= held.refresh_at:
                    self._cache.refresh(held, now, fetch)
                # While a refresh is under way, the next one is due in a second (`cache.refresh`).
                due = held.refresh_at if held.refresh_at > now + _LEAST else now + _SOON
                call.recheck_at = min(due, held.expires_at)
                return
            if cached is not None:
                self._settle(call, watch, verdict.admit(cached, now), now)
                return
        watch.asking = True
        call.recheck_at = held.expires_at if watch.lived else _NEVER
        self._pep.spawn(call, self._ask(call, watch, verdict, fetch))

    def _check_single(self, call: Call, watch: Watch, now: float) -> None:
        """A credential for one call: no other one is asked for, which would take another yes."""
        if watch.lived and now >= watch.credential.expires_at:
            self._cut(call, Deny(codes.STREAM_EXPIRED, "the approval was for this long"))
        elif watch.doubted:
            watch.asking = True
            call.recheck_at = watch.credential.expires_at if watch.lived else _NEVER
            self._pep.spawn(call, self._ask_active(call, watch))
        else:
            call.recheck_at = watch.credential.expires_at if watch.lived else _NEVER

    async def _ask_active(self, call: Call, watch: Watch) -> None:
        """Whether the broker stands by the credential in hand; without an answer it counts not."""
        deny: Deny | None = None
        try:
            async with self._turn:
                if not await self._pep.supply.is_active(watch.credential):
                    deny = Deny(
                        codes.SUBJECT_REVOKED, "the broker no longer stands by the credential"
                    )
        except ValetkeyError as error:
            deny = Deny(error.code, error.reason)
        watch.asking = False
        if call.phase == Phase.DONE:
            return
        if deny is not None:
            self._cut(call, deny)
        elif watch.again:
            # This yes may be older than what raised the doubt again: it settles nothing.
            watch.again = False
            call.recheck_at = _NOW
            self.look(call, time.monotonic())
        else:
            watch.doubted = False

    async def _ask(self, call: Call, watch: Watch, needs: NeedsCredential, fetch: Fetch) -> None:
        try:
            async with self._turn:
                if needs.route.per_request:
                    credential = await self._cache.fresh(fetch)
                else:
                    credential = await self._cache.obtain(needs.key, fetch)
        except ValetkeyError as error:
            verdict: Permit | Deny = Deny(error.code, error.reason)
            answered = not isinstance(error, BrokerError)
        else:
            verdict = needs.admit(credential, time.monotonic(), fresh=True)
            answered = True
        watch.asking = False
        if call.phase == Phase.DONE:
            return
        now = time.monotonic()
        if isinstance(verdict, Deny) and not answered:
            self._unanswered(call, watch, verdict, now)
        else:
            self._settle(call, watch, verdict, now)

    def _unanswered(self, call: Call, watch: Watch, deny: Deny, now: float) -> None:
        """Nobody said no, and nobody said yes."""
        held = watch.credential
        if watch.doubted or now >= held.expires_at:
            self._cut(call, deny)
            return
        self._count("postponed")
        call.recheck_at = _NOW if watch.again else min(now + _LEAST, held.expires_at)
        watch.again = False

    def _settle(self, call: Call, watch: Watch, verdict: Permit | Deny, now: float) -> None:
        if isinstance(verdict, Deny):
            self._cut(call, verdict)
            return
        self._count("permitted")
        credential = verdict.credential
        watch.take_up(credential, now)
        watch.checks += 1
        # Between its coming and now it may have ended as well.
        watch.doubted = credential.revoked
        again = watch.again or watch.doubted
        call.recheck_at = _NOW if again else max(credential.refresh_at, now + _LEAST)
        watch.again = False

    def _cut(self, call: Call, deny: Deny) -> None:
        permit = call.permit
        assert permit is not None
        self._count(deny.code.name)
        self._log.info("stream_cut", code=deny.code.name, reason=deny.reason, route=permit.route.id)
        call.fail(deny.code, deny.reason)

    def _count(self, result: str) -> None:
        self._counts[result] = self._counts.get(result, 0) + 1


def _is_out(call: Call) -> bool:
    """Whether the request is with its target: what is not out yet is looked at when it is sent."""
    return Phase.WAITING <= call.phase < Phase.DONE


def _same_place(needs: NeedsCredential, permit: Permit) -> bool:
    """Whether the call would still go where its connection leads."""
    now, then = needs.route.target.settings, permit.target.settings
    return (
        needs.request_target == permit.request_target
        and (now.url, now.ca_file, now.allow_networks)
        == (then.url, then.ca_file, then.allow_networks)
    )  # fmt: skip


def _same_but_for_digest(key: CacheKey, other: CacheKey) -> bool:
    """Whether only the digest of all settings differs, by something elsewhere in the file."""
    return key == other or key == other._replace(policy_digest=key.policy_digest)

"""Tunnels of one enforcement point: CONNECT decided on, and everything that became bytes.

Three kinds. One to a target is opened up and has no permit, since nothing leaves by it: the calls
inside are decided on one by one. One to a passthrough host is opaque, and its permit is looked at
again whenever the settings change. A call that switched protocols (RFC 9110 §7.8) is opaque from
its 101 on, and is looked at again as a stream (`valetkey.proxy.streams`).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import AuditError
from valetkey.contracts.logs import Log
from valetkey.proxy.core.decision import Deny, TunnelPermit, decide_tunnel
from valetkey.proxy.http1.outbound import TargetConnection
from valetkey.proxy.http1.relay import Relay

if TYPE_CHECKING:
    from valetkey.proxy.audit.recorder import Recorder
    from valetkey.proxy.audit.spool import Spool
    from valetkey.proxy.core.snapshot import Snapshot, Target
    from valetkey.proxy.http1.call import Call
    from valetkey.proxy.identity.source import Identity
    from valetkey.proxy.metrics import Metrics
    from valetkey.proxy.pep import EnforcementPoint


class Tunnels:
    """What is open, and who may open more."""

    def __init__(
        self,
        pep: EnforcementPoint,
        identity: Identity,
        spool: Spool,
        recorder: Recorder,
        metrics: Metrics,
    ) -> None:
        self._pep = pep
        self._identity = identity
        self._spool = spool
        self._recorder = recorder
        self._metrics = metrics
        self._log = Log("tunnels")
        self._opaque: dict[Relay, TunnelPermit] = {}
        self._switched: dict[Relay, Call] = {}
        self.handshakes = 0
        """Connections that belong to nobody but their TLS handshake at the moment."""

    @property
    def open(self) -> int:
        """Tunnels that carry bytes now."""
        return len(self._opaque) + len(self._switched)

    def calls(self) -> Iterable[Call]:
        """The calls that switched protocols and go on."""
        return self._switched.values()

    def decide(self, call: Call, *, intercepts: bool) -> Target | TunnelPermit | None:
        """Decide on a CONNECT. None: it was refused, and answered.

        ``intercepts``: whether there is a CA to open tunnels to targets with.
        """
        head = call.head
        block = head.block
        if block.length is not None or block.chunked:  # RFC 9110 §9.3.6: no content is defined
            refusal = Deny(codes.REQUEST_AMBIGUOUS_FRAMING, "CONNECT with a body")
        else:
            name, _, port = head.origin.rpartition(":")
            principal = self._identity.principal()
            verdict = decide_tunnel(name, int(port), self._pep.snapshot, tls=call.inbound.tls)
            if isinstance(verdict, Deny):
                refusal = verdict
            elif call.inbound.unread:
                # After the verdict: what a refusal says must not hang on how the bytes arrived.
                refusal = Deny(codes.TUNNEL_EARLY_DATA, "bytes behind CONNECT")
            elif principal is None:
                refusal = Deny(codes.IDENTITY_UNAVAILABLE, self._identity.problem)
            elif isinstance(verdict, TunnelPermit):
                return verdict if self._record(call, verdict, principal.subject) else None
            elif verdict.tls and not intercepts:
                refusal = Deny(
                    codes.TUNNEL_NOT_INTERCEPTED, "settings have no interception", verdict
                )
            else:
                return verdict
        call.inbound.close_after = True  # what follows was meant for a tunnel
        self._pep.deny(call, refusal)
        return None

    def _record(self, call: Call, permit: TunnelPermit, workload: str) -> bool:
        try:
            call.decision_seq = self._recorder.tunnel(call, permit, workload)
        except AuditError as error:
            self._recorder.unrecorded(went_on=False)
            self._log.error("audit_unavailable", reason=error.reason)
            call.answer_problem(codes.AUDIT_UNAVAILABLE, "denied")
            return False
        if not self._spool.keep():  # at once: what a tunnel carries passes by the outbox
            call.answer_problem(codes.AUDIT_UNAVAILABLE, "denied")
            return False
        return True

    # --- what they become ---------------------------------------------------------------------

    def opened(self, kind: str) -> None:
        """Count a tunnel: ``intercepted``, ``plain`` or ``opaque``."""
        counts = self._metrics.tunnels
        counts[kind] = counts.get(kind, 0) + 1

    def refused(self, call: Call, target: Target, code: Code, reason: str) -> None:
        """The tunnel was there, and what came through it is not what it is for."""
        self._pep.accounts.denied(call, Deny(code, reason, target))
        call.ended = time.monotonic()
        self._pep.accounts.outcome(call, "denied", code)

    def opaque(
        self,
        call: Call,
        permit: TunnelPermit,
        workload: asyncio.Transport,
        target: asyncio.Transport,
    ) -> Relay:
        """The relay of an opaque tunnel: takes the permit, and there is none but core's."""
        timeouts = self._pep.timeouts

        def ended(relay: Relay) -> None:
            del self._opaque[relay]
            call.ended = time.monotonic()
            call.sent, call.received = relay.sent, relay.received
            call.status = 200
            self._pep.accounts.outcome(call, relay.outcome, relay.code)
            self._metrics.requests.add(None, "allowed", call.status)
            self._pep.closed_one()

        relay = Relay(workload, target, idle=timeouts.stream, stall=timeouts.stall, ended=ended)
        self._opaque[relay] = permit
        self.opened("opaque")
        return relay

    def switched(self, call: Call, connection: TargetConnection, early: bytes) -> Relay:
        """The target has switched protocols: both connections are a tunnel, to their end.

        ``early`` is what came from the target behind its 101. What the workload sent before it
        knew of that was held back until now.
        """
        permit, inbound = call.permit, call.inbound
        assert permit is not None

        def ended(relay: Relay) -> None:
            del self._switched[relay]
            connection.open = False
            connection.pool.lost(connection)
            call.switched_ended(relay)
            self._pep.closed_one()

        relay = Relay(
            inbound.transport,
            connection.transport,
            idle=permit.route.stream,
            stall=permit.route.stall,
            ended=ended,
        )
        self._switched[relay] = call
        held, workload_ended = inbound.rest()
        inbound.take_over()
        relay.workload.full = inbound.write_paused
        relay.target.full = connection.congested
        connection.borrower = None
        relay.start(early, said=held, said_all=workload_ended)
        return relay

    # --- housekeeping -------------------------------------------------------------------------

    def apply(self, snapshot: Snapshot) -> None:
        """Cut the opaque ones that new settings would not permit."""
        for relay, permit in list(self._opaque.items()):
            decided = decide_tunnel(permit.host, permit.port, snapshot)
            if isinstance(decided, Deny):
                relay.cut("cut", decided.code)
            elif not isinstance(decided, TunnelPermit):
                relay.cut("cut", codes.TARGET_NO_MATCH)  # it has become a target with routes

    def sweep(self, now: float) -> None:
        """Cut those in which nothing moved for too long."""
        for relay in (*self._opaque, *self._switched):
            code = relay.overdue(now)
            if code is not None:
                relay.cut("cut", code)

    def cut(self, code: Code) -> None:
        """End all that is open."""
        for relay in (*self._opaque, *self._switched):
            relay.cut("cut", code)

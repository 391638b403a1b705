"""The enforcement point: what happens to a call between its head and its answer.

It asks `core` for the decision, fetches what that needs, records it, and only then hands the
permit on. The usual call (route known, credential cached, connection idle) passes through here in
one go, without a task or a future; everything that has to wait is a task of its own.

Order, for every call: decide → credential → decide again → record → (durable: wait) → upstream.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine, Iterator
from typing import TYPE_CHECKING, Any

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import (
    ApprovalError,
    CallerError,
    TargetError,
    ValetkeyError,
)
from valetkey.contracts.events import event_id
from valetkey.contracts.logs import Log, place_of
from valetkey.proxy.accounts import LIMITED, Accounts
from valetkey.proxy.core.authority import origin_of
from valetkey.proxy.core.decision import (
    Deny,
    NeedsCredential,
    NeedsMessage,
    Permit,
    RequestFacts,
    admit,
    decide,
)
from valetkey.proxy.core.json_rpc import (
    check_media_type,
    check_mirrors,
    check_size,
    read_message,
)
from valetkey.proxy.credentials.dpop import DpopInjector
from valetkey.proxy.credentials.supply import Supply
from valetkey.proxy.http1.call import Call
from valetkey.proxy.http1.dial import Dialler
from valetkey.proxy.http1.head import AUTHORITY_FORM
from valetkey.proxy.http1.head_reader import HeadReader
from valetkey.proxy.http1.outbound import TargetConnection
from valetkey.proxy.http1.outbox import Outbox
from valetkey.proxy.http1.phase import Phase
from valetkey.proxy.http1.pool import Pool
from valetkey.proxy.http1.upgrade import Upgrade
from valetkey.proxy.limits import Capacity
from valetkey.proxy.streams import Streams
from valetkey.proxy.tunnels import Tunnels
from valetkey.proxy.ways import Ways

if TYPE_CHECKING:
    from valetkey.proxy.audit.recorder import Recorder
    from valetkey.proxy.audit.spool import Spool
    from valetkey.proxy.core.bounds import Bounds
    from valetkey.proxy.core.snapshot import Snapshot
    from valetkey.proxy.credentials.cache import CredentialCache
    from valetkey.proxy.credentials.exchange import ExchangeClient
    from valetkey.proxy.credentials.held import HeldCalls
    from valetkey.proxy.http1.head import ResponseHead
    from valetkey.proxy.http1.inbound import WorkloadConnection
    from valetkey.proxy.identity.source import Identity
    from valetkey.proxy.metrics import Metrics


class EnforcementPoint:
    """One per sidecar, driven by connections and their calls.

    What is done for all that is open at once is `valetkey.proxy.upkeep`'s.
    """

    def __init__(
        self,
        snapshot: Snapshot,
        identity: Identity,
        cache: CredentialCache,
        exchange: ExchangeClient,
        held: HeldCalls,
        proof_key: ProofKey,
        spool: Spool,
        recorder: Recorder,
        metrics: Metrics,
        outbox: Outbox,
        dialler: Dialler,
        capacity: Capacity,
    ) -> None:
        self.outbox = outbox
        self.dialler = dialler
        self.capacity = capacity
        self.ways = Ways(proof_key, outbox, dialler, metrics)
        capacity.give_up_with(self.ways.close_idle)
        self.accounts = Accounts(recorder, identity, self.ways, metrics)
        self.supply = Supply(cache, exchange, held, self.ways, metrics)
        self._way = self.ways.by_target
        self._identity = identity
        self._cache = cache
        self._spool = spool
        self._recorder = recorder
        self._metrics = metrics
        self.limit_hit = metrics.limit_hits.hit
        self._log = Log("pep")
        self.inbound: set[WorkloadConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self.messages = 0
        """Bytes of messages in memory, of all calls."""
        self.draining = False
        self._all_closed: asyncio.Event | None = None
        self.streams = Streams(self, identity, cache, metrics)
        self.tunnels = Tunnels(self, identity, spool, recorder, metrics)
        self.apply(snapshot)

    def apply(self, snapshot: Snapshot) -> None:
        """Decide on this snapshot from now on; calls under way finish on theirs."""
        settings = snapshot.settings
        self.ways.apply(snapshot)
        self.snapshot = snapshot
        self.dialler.use_nat64(snapshot.nat64)
        self.timeouts = settings.timeouts
        self.pace = snapshot.pace
        self.capacity.use(settings.limits.connections)
        self.max_messages: int = settings.limits.messages
        self.heads = HeadReader(
            max_size=settings.limits.head_size,
            max_fields=settings.limits.headers,
            subject_header=settings.workload.subject_header,
        )
        self._recorder.forget_routes()
        self._identity.forget_keys()
        self.tunnels.apply(snapshot)
        self.streams.changed()

    # --- connections --------------------------------------------------------------------------

    def opened(self, connection: WorkloadConnection) -> None:
        self.inbound.add(connection)

    def closed(self, connection: WorkloadConnection) -> None:
        self.inbound.discard(connection)
        self.closed_one()

    def closed_one(self) -> None:
        if self._all_closed is not None and not self._open:
            self._all_closed.set()

    def when_closed(self) -> asyncio.Event:
        """Set once nothing is open any more."""
        self._all_closed = asyncio.Event()
        self.closed_one()
        return self._all_closed

    @property
    def _open(self) -> int:
        return len(self.inbound) + self.tunnels.open

    @property
    def connections(self) -> int:
        """Connections of the workload, also those that are (or become) tunnels."""
        return self._open + self.tunnels.handshakes

    def calls(self) -> Iterator[Call]:
        """The calls under way. Nothing may be awaited between two of them."""
        for connection in self.inbound:
            call = connection.call
            if call is not None:
                yield call
        yield from self.tunnels.calls()

    def head_timeout(self) -> CallerError:
        return CallerError(codes.REQUEST_TIMEOUT, "the head did not arrive in time")

    # --- the decision -------------------------------------------------------------------------

    def begin(self, call: Call) -> None:
        """Decide on a call whose head was read."""
        head = call.head
        block = head.block
        protocol = ""
        if block.upgrade is not None and head.version == 1:  # RFC 9110 §7.8: 1.0 knows no Upgrade
            call.upgrade = Upgrade(head)
            protocol = call.upgrade.protocol
        entry = call.inbound.entry
        origin = ""
        if not entry.plain or head.form == AUTHORITY_FORM:
            refusal = self._admit(call)
            if refusal is not None:
                call.inbound.close_after = call.inbound.close_after or head.form == AUTHORITY_FORM
                self.deny(call, refusal)
                return
            if head.form == AUTHORITY_FORM:
                if protocol:
                    call.inbound.close_after = True
                    self.deny(call, Deny(codes.REQUEST_UPGRADE, "CONNECT with an upgrade"))
                    return
                tunnels = call.inbound.tunnels
                assert tunnels is not None
                tunnels.open(call)
                return
            if entry.transparent:
                origin = origin_of("http", block.host_name, entry.port)
            else:
                origin = head.origin if entry.forward else entry.origin
        self._decide(
            call,
            RequestFacts(
                head.method,
                head.authority,
                head.path,
                head.query,
                block.subject,
                entry.target,
                origin,
                protocol,
            ),
        )

    def _decide(self, call: Call, facts: RequestFacts) -> None:
        principal = self._identity.principal()
        if principal is None:
            self.deny(call, Deny(codes.IDENTITY_UNAVAILABLE, self._identity.problem))
            return
        verdict = decide(facts, self.snapshot, principal)
        if not isinstance(verdict, NeedsCredential):
            if isinstance(verdict, NeedsMessage):
                self._ask_for_message(call, verdict)
            else:
                self.deny(call, verdict)
            return
        call.needs = verdict
        if verdict.route.bounds is not None and not self._within(call, verdict.route.bounds):
            return
        if not verdict.route.per_request:
            now = time.monotonic()
            credential = self._cache.get(verdict.key, now)
            if credential is not None:
                if now >= credential.refresh_at:
                    self._cache.refresh(credential, now, self.supply.fetch(verdict))
                self._decided(call, verdict.admit(credential, now))
                return
        self.spawn(call, self._obtain(call, verdict))

    def _within(self, call: Call, bounds: Bounds) -> bool:
        """Whether a call is within its route's bounds; one that is not is refused."""
        block, needs = call.head.block, call.needs
        assert needs is not None
        try:
            bounds.check(
                head_size=call.head.size,
                fields=len(block.fields),
                body_size=max(block.length or 0, call.sent),
            )
        except CallerError as error:
            self.limit_hit(f"routes[].limits.{LIMITED[error.code]}")
            self.deny(
                call,
                Deny(error.code, error.reason, needs.route.target, needs.route, needs.path),
            )
            return False
        call.body_limit = bounds.body_size
        return True

    def too_large(self, call: Call) -> None:
        """A body of unknown length turned out to be more than its route takes."""
        self.limit_hit("routes[].limits.body_size")
        call.fail(codes.REQUEST_BODY_TOO_LARGE, "more than the route's body_size")

    def _ask_for_message(self, call: Call, asked: NeedsMessage) -> None:
        """Have the body collected, if it can be a message that decides."""
        block = call.head.block
        try:
            check_media_type(block.value("content-type"), block.value("content-encoding"))
            check_size(block.length or 0, asked.endpoint.limit)
        except CallerError as error:
            self._deny_message(call, asked, error)
            return
        call.collect(asked)
        if not call.body_open:
            self.message_came(call)

    def message_came(self, call: Call) -> None:
        """Decide again, on a body that is here whole."""
        asked = call.asked
        assert asked is not None
        body = call.collected()
        block = call.head.block
        try:
            check_size(len(body), asked.endpoint.limit)
            if not call.holds(len(body)):
                return
            message = read_message(body)
            asked.facts.message = message
            check_mirrors(message, block.value("mcp-method"), block.value("mcp-name"))
        except CallerError as error:
            self._deny_message(call, asked, error)
            return
        self._decide(call, asked.facts)

    def _deny_message(self, call: Call, asked: NeedsMessage, error: CallerError) -> None:
        if error.code is codes.REQUEST_BODY_TOO_LARGE:
            self.limit_hit("limits.message")
        self.deny(call, Deny(error.code, error.reason, asked.target, path=asked.path))

    @staticmethod
    def _admit(call: Call) -> Deny | None:
        head, inbound = call.head, call.inbound
        if head.form == AUTHORITY_FORM and inbound.tunnels is None:
            return Deny(codes.REQUEST_CONNECT, "CONNECT where no tunnels begin")
        block = head.block
        return admit(
            inbound.entry,
            block.value("proxy-authorization"),
            head.origin,
            block.host_name,
            block.host_port,
        )

    async def _obtain(self, call: Call, needs: NeedsCredential) -> None:
        """Get a credential from the broker (or from who is getting it), then decide again."""
        try:
            credential = await self.supply.obtain(call, needs)
        except ValetkeyError as error:
            approval = error.approval if isinstance(error, ApprovalError) else ""
            verdict: Permit | Deny = Deny(
                error.code, error.reason, needs.route.target, needs.route, needs.path, approval
            )
        else:
            verdict = needs.admit(credential, time.monotonic(), fresh=True)
        if call.phase != Phase.DONE:
            self._decided(call, verdict)

    def _decided(self, call: Call, verdict: Permit | Deny) -> None:
        if isinstance(verdict, Deny):
            if call.permit is None:
                self.deny(call, verdict)
            else:  # another credential was needed: the decision is on record, this is its outcome
                call.fail(verdict.code, verdict.reason)
            return
        policy = verdict.route.headers
        endpoint = verdict.endpoint
        if endpoint is not None:
            policy = endpoint.headers if call.asked is not None else endpoint.stream_headers
        try:
            call.lines, dropped = call.head.block.forward(policy)
            if call.upgrade is not None:
                call.upgrade.prepare(call.head)
                if call.upgrade.dropped:
                    dropped = (*dropped, "sec-websocket-protocol")
        except CallerError as error:
            if call.upgrade is not None:
                call.inbound.close_after = True  # who knows what follows
            self.deny(
                call, Deny(error.code, error.reason, verdict.target, verdict.route, verdict.path)
            )
            return
        if dropped and call.inbound.entry.caller is not None:
            # It was meant for this listener, and is no credential that somebody tried to use.
            dropped = tuple(name for name in dropped if name != "proxy-authorization")
        again = call.permit is not None
        call.permitted(verdict)
        if verdict.dropped:
            dropped = (*dropped, *verdict.dropped)
        if not again and not self.accounts.permitted(call, verdict, dropped):
            call.permit = None
            call.answer_problem(codes.AUDIT_UNAVAILABLE, "denied")
            return
        if verdict.route.durable and self._spool.committed < call.decision_seq:
            self._spool.on_durable(
                call.decision_seq, lambda committed: self._recorded(call, committed)
            )
        else:
            self._go(call)

    def _recorded(self, call: Call, committed: bool) -> None:
        """A durable route's decision is on disk, or can't be brought there."""
        if committed:
            self._go(call)
        elif call.phase != Phase.DONE:
            call.permit = None
            call.answer_problem(codes.AUDIT_UNAVAILABLE, "denied")

    def deny(self, call: Call, deny: Deny) -> None:
        call.permit = None
        self.accounts.denied(call, deny)
        call.answer_problem(deny.code, "denied", deny.approval)

    # --- the way to the target ----------------------------------------------------------------

    def _go(self, call: Call) -> None:
        """Open the way upstream: takes the permit, and there is none but core's."""
        permit = call.permit
        if call.phase == Phase.DONE or permit is None:
            return
        pool = self._way[permit.target].pool
        connection = pool.take_idle()
        if connection is not None:
            self._send(call, permit, connection)
        else:
            self.spawn(call, self._connect(call, permit, pool))

    async def _connect(self, call: Call, permit: Permit, pool: Pool) -> None:
        call.phase = Phase.CONNECTING
        try:
            connection = await pool.connect()
        except TargetError as error:
            call.fail(error.code, error.reason)
            return
        if call.phase == Phase.CONNECTING:
            self._send(call, permit, connection)
        else:
            pool.give_back(connection)

    def _send(self, call: Call, permit: Permit, connection: TargetConnection) -> None:
        if call.decision_seq > self._spool.kept and self._spool.failed:
            self._way[permit.target].pool.give_back(connection)
            call.fail(codes.AUDIT_UNAVAILABLE, "the record was not kept")
            return
        if permit.credential.revoked:
            self._replace(call, permit)
            self._way[permit.target].pool.give_back(connection)
            return
        head = call.head
        block = head.block
        way = self._way[permit.target]
        if block.length is not None:
            framing = b"content-length: %d\r\n" % block.length
        else:
            framing = b"transfer-encoding: chunked\r\n" if block.chunked else b""
        if call.upgrade is not None:
            framing = call.upgrade.lines
        call.forward(
            connection,
            b"%b %b%b%b%b%b\r\n" % (
                head.method.encode(), permit.request_target.encode(), way.line_end,
                call.lines, framing,
                way.injector.lines(permit.credential, permit, head.method),
            ),
        )  # fmt: skip

    def _replace(self, call: Call, permit: Permit) -> None:
        """Between the decision and the sending, the credential ended, or may have."""
        credential = permit.credential
        call.phase = Phase.DECIDING
        if credential.approved and not credential.ended:
            self.spawn(call, self._confirm(call, permit))
        else:
            self.spawn(call, self._succeed(call, permit))

    async def _confirm(self, call: Call, permit: Permit) -> None:
        """People said yes to a credential that may have ended: whether it has, the broker says."""
        credential = permit.credential
        good = False
        try:
            good = await self.supply.still_good(credential)
        except ValetkeyError as error:
            call.fail(error.code, error.reason)
        if call.phase == Phase.DONE:
            if not call.attempts:
                self.supply.give_back(credential)
        elif good and time.monotonic() < credential.expires_at:
            call.watch, call.recheck_at = None, 0.0  # what put it into question is answered
            self._go(call)
        else:
            await self._succeed(call, permit)

    async def _succeed(self, call: Call, permit: Permit) -> None:
        """The credential has ended: another one, or a no."""
        needs = call.needs
        assert needs is not None  # where there is a permit, this was before it
        self._log.info("credential_ended", jti=permit.credential.jti, route=permit.route.id)
        call.succeed(refused=False)
        await self._obtain(call, needs)

    def send_again(self, call: Call) -> None:
        """The connection was stale; the same permit, on a new one."""
        permit = call.permit
        assert permit is not None
        self.spawn(call, self._connect(call, permit, self._way[permit.target].pool))

    def challenged(self, call: Call, head: ResponseHead) -> bool:
        """What a target says of its credential. True if the call is tried once more."""
        permit = call.permit
        assert permit is not None
        injector = self._way[permit.target].injector
        if isinstance(injector, DpopInjector) and head.block.nonce:
            injector.nonce = head.block.nonce
        if head.status != 401:
            return False
        wants_nonce = isinstance(injector, DpopInjector) and any(
            b"use_dpop_nonce" in value for value in head.block.value("www-authenticate")
        )
        if wants_nonce:
            # RFC 9449 §9: the credential is fine, the proof lacked the nonce.
            if call.retried_nonce or not call.replayable or not head.block.nonce:
                return False
            call.retried_nonce = True
            call.drop_target()
            self.send_again(call)
            return True
        if not permit.route.per_request:
            self._cache.evict(permit.credential)
        if permit.credential.single_use:
            return False  # another credential would take another yes
        refused = call.succession is not None and call.succession.refused
        if refused or not call.replayable or call.needs is None:
            return False
        call.succeed(refused=True)
        call.drop_target()
        call.phase = Phase.DECIDING
        self.spawn(call, self._obtain(call, call.needs))
        return True

    # --- ends ---------------------------------------------------------------------------------

    def refused(self, call: Call, code: Code, reason: str) -> None:
        """A call failed before an answer began."""
        if call.decision_seq == 0 and call.permit is None:
            asked, needs = call.asked, call.needs
            deny = Deny(code, reason)
            if needs is not None:
                deny = Deny(code, reason, needs.route.target, needs.route, needs.path)
            elif asked is not None:
                deny = Deny(code, reason, asked.target, path=asked.path)
            self.deny(call, deny)
            return
        self._log.info("call_failed", code=code.name, reason=reason)
        outcome = {"target": "target_failed", "request": "caller_failed"}.get(code.family, "denied")
        call.answer_problem(code, outcome)

    def ended(self, call: Call, outcome: str, code: Code | None) -> None:
        """A call is over: nothing waits for it, and it is on record."""
        if call.waits is not None:
            call.waits.leave()
        self.accounts.ended(call, outcome, code)

    def instance_of(self, call: Call) -> str:
        """What a problem answer names the occurrence by: its decision event."""
        seq = call.decision_seq
        return f"urn:valetkey:event:{event_id(self._spool.boot, seq)}" if seq else ""

    # --- tasks --------------------------------------------------------------------------------

    def spawn(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Run what a call has to wait for, as a task of its own."""
        task = asyncio.ensure_future(self._guarded(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def stop_tasks(self) -> None:
        """Whatever calls still wait for, they do no more."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _guarded(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it was, the call ends with an answer
            self.failed(call, error)

    def failed(self, call: Call, error: Exception) -> None:
        """A defect of ours: the call is refused, the log says where."""
        self._log.error("call_broke", error_type=type(error).__name__, line=place_of(error))
        call.fail(codes.PROXY_INTERNAL, type(error).__name__)

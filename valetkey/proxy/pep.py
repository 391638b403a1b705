"""The enforcement point: what happens to a call between its head and its answer.

It asks `core` for the decision, fetches what that needs, records it, and only then hands the
permit on. The usual call (route known, credential cached, connection idle) passes through here in
one go, without a task or a future; everything that has to wait is a task of its own.

Order, for every call: decide → credential → decide again → record → (durable: wait) → upstream.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import Awaitable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import (
    ApprovalError,
    AuditError,
    CallerError,
    TargetError,
    ValetkeyError,
)
from valetkey.contracts.events import event_id
from valetkey.contracts.logs import Log, place_of
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
from valetkey.proxy.core.headers import PURPOSE
from valetkey.proxy.core.json_rpc import (
    check_media_type,
    check_mirrors,
    check_size,
    read_message,
)
from valetkey.proxy.credentials.bearer import BearerInjector
from valetkey.proxy.credentials.dpop import DpopInjector
from valetkey.proxy.credentials.header import HeaderInjector
from valetkey.proxy.credentials.question import BrokerQuestion
from valetkey.proxy.credentials.txn_token import TxnTokenInjector
from valetkey.proxy.http1.call import Call
from valetkey.proxy.http1.dial import Dialler
from valetkey.proxy.http1.head import AUTHORITY_FORM, HeadReader
from valetkey.proxy.http1.outbound import TargetConnection
from valetkey.proxy.http1.outbox import Outbox
from valetkey.proxy.http1.phase import Phase
from valetkey.proxy.http1.pool import Pool, context_for
from valetkey.proxy.http1.upgrade import Upgrade
from valetkey.proxy.limits import Capacity
from valetkey.proxy.streams import Streams
from valetkey.proxy.tunnels import Tunnels

if TYPE_CHECKING:
    from valetkey.proxy.audit.recorder import Recorder
    from valetkey.proxy.audit.spool import Spool
    from valetkey.proxy.core.bounds import Bounds
    from valetkey.proxy.core.credential import Credential
    from valetkey.proxy.core.eviction import Ended
    from valetkey.proxy.core.snapshot import Snapshot, Target
    from valetkey.proxy.credentials.cache import CredentialCache, Fetch
    from valetkey.proxy.credentials.exchange import ExchangeClient
    from valetkey.proxy.credentials.held import HeldCalls
    from valetkey.proxy.credentials.injector import Injector
    from valetkey.proxy.http1.head import ResponseHead
    from valetkey.proxy.http1.inbound import WorkloadConnection
    from valetkey.proxy.identity.source import Identity
    from valetkey.proxy.metrics import Metrics, TargetTally

_SWEEP: Final = 0.25
_SWEEP_AT_ONCE: Final = 500
# What of a head or body a limit is on, by the code that says so.
_LIMITED: Final = {
    codes.REQUEST_HEAD_TOO_LARGE: "head_size",
    codes.REQUEST_TOO_MANY_HEADERS: "headers",
    codes.REQUEST_BODY_TOO_LARGE: "body_size",
}


class _Way:
    """What belongs to a target at run time: connections, injection, constant bytes."""

    __slots__ = ("injector", "line_end", "pool", "tally", "target")

    def __init__(self, target: Target, injector: Injector, pool: Pool, tally: TargetTally) -> None:
        self.target = target
        self.injector = injector
        self.pool = pool
        self.tally = tally
        # RFC 9110 §7.6.3: a gateway adds itself to Via.
        self.line_end = b" HTTP/1.1\r\nhost: %b\r\nvia: 1.1 valetkey\r\n" % (
            target.authority.encode()
        )


class Waiting:
    """A call that waits for a person: the task that does so."""

    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[Any] | None) -> None:
        self._task = task

    def leave(self) -> None:
        """Nobody is there to be answered: stop waiting, and leave what others wait for."""
        if self._task is not None:
            self._task.cancel()


class EnforcementPoint:
    """One per sidecar. Everything but `sweep` is driven by connections and their calls."""

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
        capacity.give_up_with(self._close_idle)
        self._identity = identity
        self._cache = cache
        self._exchange = exchange
        self._held = held
        self._proof_key = proof_key
        self._spool = spool
        self._recorder = recorder
        self._metrics = metrics
        self._requests = metrics.requests
        self.limit_hit = metrics.limit_hits.hit
        self._log = Log("pep")
        self._connections: set[WorkloadConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ways: dict[Target, _Way] = {}
        self._retired: list[Pool] = []
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
        contexts: dict[Path | None, ssl.SSLContext] = {}
        ways = {
            target: self._way(target, snapshot, contexts) for target in snapshot.targets.values()
        }
        for way in self._ways.values():
            way.pool.close()
            if way.pool not in self._retired:
                self._retired.append(way.pool)
        self._ways.update(ways)
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

    def revoke(self, ended: Ended) -> list[Call]:
        """Let nothing go out any more by credentials that have ended.

        They leave the cache, and calls that rest on one are decided on again at once. Gives those
        calls: until none of them is `unsettled`, the end is not in force for them.
        """
        self._cache.revoke(ended)
        self._held.revoke(ended)
        resting = []
        for call in self.calls():
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
        for call in self.calls():
            permit = call.permit
            if permit is not None:
                # Before its credential gets a shorter life: it was not born expired.
                self.streams.watch(call, permit, now)
                self._cache.cap(permit.credential)
                if call.watch is not None:
                    self._cache.cap(call.watch.credential)
        self.streams.changed()

    def _way(
        self, target: Target, snapshot: Snapshot, contexts: dict[Path | None, ssl.SSLContext]
    ) -> _Way:
        injector: Injector
        match target.settings.credential.kind:
            case "bearer":
                injector = BearerInjector()
            case "dpop":
                injector = DpopInjector(self._proof_key)
            case "header":
                assert target.inject is not None
                injector = HeaderInjector(target.inject)
            case "txn_token":
                injector = TxnTokenInjector()
        connect = snapshot.settings.timeouts.connect
        context = context_for(target, contexts)
        pool = Pool(target, self.outbox, self.dialler, context, connect_timeout=connect)
        return _Way(target, injector, pool, self._metrics.target(target.name))

    # --- connections --------------------------------------------------------------------------

    def opened(self, connection: WorkloadConnection) -> None:
        self._connections.add(connection)

    def closed(self, connection: WorkloadConnection) -> None:
        self._connections.discard(connection)
        self.closed_one()

    def closed_one(self) -> None:
        if self._all_closed is not None and not self._open:
            self._all_closed.set()

    @property
    def _open(self) -> int:
        return len(self._connections) + self.tunnels.open

    @property
    def connections(self) -> int:
        """Connections of the workload, also those that are (or become) tunnels."""
        return self._open + self.tunnels.handshakes

    def calls(self) -> Iterator[Call]:
        """The calls under way. Nothing may be awaited between two of them."""
        for connection in self._connections:
            call = connection.call
            if call is not None:
                yield call
        yield from self.tunnels.calls()

    def stream_opened(self, kind: str) -> None:
        """A call has become a stream of this kind; `ended` counts it off."""
        counts = self._metrics.streams
        counts[kind] = counts.get(kind, 0) + 1

    def refused_head(self, connection: WorkloadConnection, error: CallerError) -> None:
        """A head that is no request: nothing was asked, so there is no decision to record."""
        self._count_refused_head(error.code)
        if error.code is codes.REQUEST_TIMEOUT:
            self.limit_hit("timeouts.head")
        elif error.code in _LIMITED:
            self.limit_hit(f"limits.{_LIMITED[error.code]}")
        if connection.entry.origin or connection.entry.transparent:
            # In a tunnel that was opened up, and from who knows of no proxy, what is no HTTP is on
            # record nevertheless.
            self._record_unreadable(connection, error)
        self._log.info(
            "head_refused", code=error.code.name, reason=error.reason, address=connection.peer[0]
        )

    def _record_unreadable(self, connection: WorkloadConnection, error: CallerError) -> None:
        principal = self._identity.principal()
        try:
            self._recorder.unreadable(
                connection, error, principal.subject if principal is not None else ""
            )
        except AuditError as failure:
            self._log.error("denial_unrecorded", code=error.code.name, reason=failure.reason)
            self._recorder.unrecorded(went_on=False)

    def _count_refused_head(self, code: Code) -> None:
        counts = self._metrics.refused_heads
        counts[code.name] = counts.get(code.name, 0) + 1

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
                    self._cache.refresh(credential, now, self.fetch(verdict))
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
            self.limit_hit(f"routes[].limits.{_LIMITED[error.code]}")
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

    def fetch(self, needs: NeedsCredential) -> Fetch:
        """The exchange for a key, as something that can be started when it is needed."""
        way = self._ways[needs.route.target]
        subject = needs.facts.subject_token

        async def fetch() -> Credential:
            return await self._measured(self._exchange.exchange(needs.key, way.injector, subject))

        return fetch

    async def _measured(self, exchange: Awaitable[Credential]) -> Credential:
        begun = time.perf_counter()
        result = "ok"
        try:
            return await exchange
        except ValetkeyError as error:
            result = error.code.name
            raise
        finally:
            self._metrics.exchanges.observe(time.perf_counter() - begun)
            results = self._metrics.exchange_results
            results[result] = results.get(result, 0) + 1

    async def is_active(self, credential: Credential) -> bool:
        """Whether the broker still stands by a credential. Raises `ValetkeyError`."""
        return await self._exchange.is_active(credential)

    async def _obtain(self, call: Call, needs: NeedsCredential) -> None:
        """Get a credential from the broker (or from who is getting it), then decide again."""
        try:
            if needs.route.needs_approval:
                credential = await self._hold(call, needs)
            elif needs.route.per_request:
                credential = await self._cache.fresh(self.fetch(needs), self.is_active)
            else:
                credential = await self._cache.obtain(needs.key, self.fetch(needs), self.is_active)
        except ValetkeyError as error:
            approval = error.approval if isinstance(error, ApprovalError) else ""
            verdict: Permit | Deny = Deny(
                error.code, error.reason, needs.route.target, needs.route, needs.path, approval
            )
        else:
            verdict = needs.admit(credential, time.monotonic(), fresh=True)
        if call.phase != Phase.DONE:
            self._decided(call, verdict)

    async def _hold(self, call: Call, needs: NeedsCredential) -> Credential:
        """Wait for a person for as long as the route says, or until the caller leaves."""
        question = BrokerQuestion(
            self._exchange,
            self._cache,
            needs.key,
            self._ways[needs.route.target].injector,
            needs.facts.subject_token,
            b" ".join(call.head.block.value(PURPOSE)).decode("utf-8", "replace"),
            self._measured,
        )
        call.waits = Waiting(asyncio.current_task())
        now = time.monotonic()
        if not call.hold_until:  # once for the call, however often it has to ask
            call.hold_until = now + needs.route.hold
        try:
            return await self._held.obtain(
                needs.key, question, hold=max(0.0, call.hold_until - now)
            )
        finally:
            call.waits = None

    def _decided(self, call: Call, verdict: Permit | Deny) -> None:
        if isinstance(verdict, Deny):
            if call.permit is None:
                self.deny(call, verdict)
            else:  # tried again after a 401: its decision is on record, and this is its outcome
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
        if not again and not self._record(call, verdict, dropped):
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

    def _record(self, call: Call, permit: Permit, dropped: tuple[str, ...]) -> bool:
        """Put a permitted call on record before anything goes upstream."""
        try:
            call.decision_seq = self._recorder.permitted(call, permit.credential, dropped)
        except AuditError as error:
            if permit.route.record_gap and not permit.route.durable:
                self._recorder.unrecorded(went_on=True)
                return True
            self._recorder.unrecorded(went_on=False)
            call.permit = None
            self._log.error("audit_unavailable", reason=error.reason, route=permit.route.id)
            call.answer_problem(codes.AUDIT_UNAVAILABLE, "denied")
            return False
        return True

    def deny(self, call: Call, deny: Deny) -> None:
        call.permit = None
        self.record_denial(call, deny)
        call.answer_problem(deny.code, "denied", deny.approval)

    def record_denial(self, call: Call, deny: Deny) -> None:
        principal = self._identity.principal()
        counts = self._metrics.denials
        counts[deny.code.name] = counts.get(deny.code.name, 0) + 1
        try:
            call.decision_seq = self._recorder.denied(
                call, deny, principal.subject if principal is not None else ""
            )
        except AuditError as error:
            # A denial is not made an allow by a full disk; it only goes unrecorded.
            self._log.error("denial_unrecorded", code=deny.code.name, reason=error.reason)
            self._recorder.unrecorded(went_on=False)

    # --- the way to the target ----------------------------------------------------------------

    def _go(self, call: Call) -> None:
        """Open the way upstream: takes the permit, and there is none but core's."""
        permit = call.permit
        if call.phase == Phase.DONE or permit is None:
            return
        pool = self._ways[permit.target].pool
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
            self._ways[permit.target].pool.give_back(connection)
            call.fail(codes.AUDIT_UNAVAILABLE, "the record was not kept")
            return
        if permit.credential.revoked:
            self._replace(call, permit)
            self._ways[permit.target].pool.give_back(connection)
            return
        head = call.head
        block = head.block
        way = self._ways[permit.target]
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
            good = await self._cache.still_good(credential, self.is_active)
        except ValetkeyError as error:
            call.fail(error.code, error.reason)
        if call.phase == Phase.DONE:
            if not call.attempts:
                self._held.give_back(credential)
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
        self.spawn(call, self._connect(call, permit, self._ways[permit.target].pool))

    def challenged(self, call: Call, head: ResponseHead) -> bool:
        """What a target says of its credential. True if the call is tried once more."""
        permit = call.permit
        assert permit is not None
        injector = self._ways[permit.target].injector
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

    def echoed(self, call: Call) -> None:
        """A target sent back the credential that it got; it was overwritten."""
        permit = call.permit
        assert permit is not None
        self._ways[permit.target].tally.echoed += 1
        self._log.warning("credential_echoed", target=permit.target.name, route=permit.route.id)

    def session_dropped(self, call: Call) -> None:
        """A target set cookies in a session that is not the workload's."""
        permit = call.permit
        assert permit is not None
        self._ways[permit.target].tally.sessions += 1

    def _close_idle(self) -> bool:
        """Close the connection to a target that is idle for longest. False: there is none."""
        pools = [way.pool for way in self._ways.values() if way.pool.idle]
        if not pools:
            return False
        min(pools, key=lambda pool: pool.idle_since).close_oldest()
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
        """Record and count the end of a call."""
        permit = call.permit
        if call.waits is not None:
            call.waits.leave()
        added = (
            (call.t_forward - call.started) + (call.t_reply - call.t_answer)
            if outcome == "completed"
            else 0.0
        )
        if call.decision_seq:
            self.record_outcome(call, outcome, code, added)
        if call.kind:
            self._metrics.streams[call.kind] -= 1
        if permit is not None:
            tally = self._ways[permit.target].tally
            if outcome == "completed":
                tally.added.observe(added)
                tally.target.observe(call.t_answer - call.t_forward)
            self._requests.add(permit.route, "allowed", call.status)
        else:
            # A caller that left before there was a decision was neither allowed nor denied.
            route = call.needs.route if call.needs is not None else None
            self._requests.add(route, "denied" if call.status else "none", call.status)

    def hid_tools(self, count: int) -> None:
        """Count tools that were taken out of lists."""
        self._metrics.hidden_tools += count

    def record_outcome(self, call: Call, outcome: str, code: Code | None, added: float) -> None:
        try:
            self._recorder.outcome(call, outcome, code, added)
        except AuditError as error:
            self._log.error("outcome_unrecorded", reason=error.reason)
            self._recorder.lost += 1

    def instance_of(self, call: Call) -> str:
        """What a problem answer names the occurrence by: its decision event."""
        seq = call.decision_seq
        return f"urn:valetkey:event:{event_id(self._spool.boot, seq)}" if seq else ""

    # --- housekeeping -------------------------------------------------------------------------

    async def sweep(self) -> None:
        """Watch the deadlines of all connections until cancelled."""
        while True:
            await asyncio.sleep(_SWEEP)
            self.streams.begin_sweep()
            now = time.monotonic()
            for count, connection in enumerate(list(self._connections), 1):
                if connection not in self._connections:
                    continue  # lost while others had their turn
                call = connection.call
                if call is not None and now >= call.recheck_at:
                    self.streams.look(call, now)
                    call = connection.call  # it may be over
                deadline = call.deadline if call is not None else connection.deadline
                if deadline and now >= deadline:
                    connection.expired(now)
                if not count % _SWEEP_AT_ONCE:
                    await asyncio.sleep(0)  # others have their turn between
            self.tunnels.sweep(now)
            for count, call in enumerate(list(self.tunnels.calls()), 1):
                if now >= call.recheck_at:
                    self.streams.look(call, now)
                if not count % _SWEEP_AT_ONCE:
                    await asyncio.sleep(0)
            for way in self._ways.values():
                way.pool.sweep(now)
            self._forget_retired()

    def _forget_retired(self) -> None:
        """Let go of targets of older snapshots once their last call is over."""
        if not self._retired:
            return
        # A call may still wait for its credential, with no connection lent to it yet.
        needed = {call.needs.route.target for call in self.calls() if call.needs is not None}
        pools = {way.pool for target, way in self._ways.items() if target in needed}
        for pool in {pool for pool in self._retired if not pool.lent and pool not in pools}:
            pool.close()
            self._retired = [other for other in self._retired if other is not pool]
            self._ways = {target: way for target, way in self._ways.items() if way.pool is not pool}

    async def drain(self, seconds: float) -> None:
        """No new calls; those under way get ``seconds`` to finish."""
        self.draining = True
        for connection in list(self._connections):
            connection.drain()
        if self._open:
            self._all_closed = asyncio.Event()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), seconds)
        # What streams on, or waits, is over now, and on record as cut.
        for call in list(self.calls()):
            call.fail(codes.PROXY_DRAINING, "the time to drain is over")
        await asyncio.sleep(0)
        for connection in list(self._connections):
            connection.transport.abort()
        self.tunnels.cut(codes.PROXY_DRAINING)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for way in self._ways.values():
            way.pool.close()

    def spawn(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        """Run what a call has to wait for, as a task of its own."""
        task = asyncio.ensure_future(self._guarded(call, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _guarded(self, call: Call, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - whatever it was, the call ends with an answer
            self.failed(call, error)

    def failed(self, call: Call, error: Exception) -> None:
        """A defect of ours: the call is refused, the log says where."""
        self._log.error("call_broke", error_type=type(error).__name__, line=place_of(error))
        call.fail(codes.PROXY_INTERNAL, type(error).__name__)

"""What calls come to: each on record, counted, and in the log where something was amiss."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from valetkey.contracts import codes
from valetkey.contracts.errors import AuditError
from valetkey.contracts.logs import Log

if TYPE_CHECKING:
    from valetkey.contracts.codes import Code
    from valetkey.contracts.errors import CallerError
    from valetkey.proxy.audit.recorder import Recorder
    from valetkey.proxy.core.decision import Deny, Permit
    from valetkey.proxy.http1.call import Call
    from valetkey.proxy.http1.inbound import WorkloadConnection
    from valetkey.proxy.identity.source import Identity
    from valetkey.proxy.metrics import Metrics
    from valetkey.proxy.ways import Ways

# What of a head or body a limit is on, by the code that says so.
LIMITED: Final = {
    codes.REQUEST_HEAD_TOO_LARGE: "head_size",
    codes.REQUEST_TOO_MANY_HEADERS: "headers",
    codes.REQUEST_BODY_TOO_LARGE: "body_size",
}


class Accounts:
    """Those of one enforcement point."""

    def __init__(
        self, recorder: Recorder, identity: Identity, ways: Ways, metrics: Metrics
    ) -> None:
        self._recorder = recorder
        self._identity = identity
        self._ways = ways.by_target
        self._metrics = metrics
        self._requests = metrics.requests
        self._log = Log("pep")

    # --- decisions ----------------------------------------------------------------------------

    def permitted(self, call: Call, permit: Permit, dropped: tuple[str, ...]) -> bool:
        """Put a permitted call on record. False: it could not be, and so may not leave."""
        try:
            call.decision_seq = self._recorder.permitted(call, permit.credential, dropped)
        except AuditError as error:
            went_on = permit.route.record_gap and not permit.route.durable
            self._recorder.unrecorded(went_on=went_on)
            if not went_on:
                self._log.error("audit_unavailable", reason=error.reason, route=permit.route.id)
            return went_on
        return True

    def denied(self, call: Call, deny: Deny) -> None:
        """Put a denial on record. It stays one if that fails: a full disk allows nothing."""
        counts = self._metrics.denials
        counts[deny.code.name] = counts.get(deny.code.name, 0) + 1
        try:
            call.decision_seq = self._recorder.denied(call, deny, self._workload())
        except AuditError as error:
            self._unrecorded(deny.code, error)

    def refused_head(self, connection: WorkloadConnection, error: CallerError) -> None:
        """A head that is no request: nothing was asked, so there is no decision to record."""
        counts = self._metrics.refused_heads
        counts[error.code.name] = counts.get(error.code.name, 0) + 1
        if error.code is codes.REQUEST_TIMEOUT:
            self._metrics.limit_hits.hit("timeouts.head")
        elif error.code in LIMITED:
            self._metrics.limit_hits.hit(f"limits.{LIMITED[error.code]}")
        if connection.entry.origin or connection.entry.transparent:
            # In a tunnel that was opened up, and from who knows of no proxy, what is no HTTP is on
            # record nevertheless.
            try:
                self._recorder.unreadable(connection, error, self._workload())
            except AuditError as failure:
                self._unrecorded(error.code, failure)
        self._log.info(
            "head_refused", code=error.code.name, reason=error.reason, address=connection.peer[0]
        )

    def _workload(self) -> str:
        principal = self._identity.principal()
        return principal.subject if principal is not None else ""

    def _unrecorded(self, code: Code, error: AuditError) -> None:
        self._log.error("denial_unrecorded", code=code.name, reason=error.reason)
        self._recorder.unrecorded(went_on=False)

    # --- on the way ---------------------------------------------------------------------------

    def stream_opened(self, kind: str) -> None:
        """A call has become a stream of this kind; `ended` counts it off."""
        counts = self._metrics.streams
        counts[kind] = counts.get(kind, 0) + 1

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

    def hid_tools(self, count: int) -> None:
        """Count tools that were taken out of lists."""
        self._metrics.hidden_tools += count

    # --- ends ---------------------------------------------------------------------------------

    def ended(self, call: Call, outcome: str, code: Code | None) -> None:
        """Record and count the end of a call."""
        permit = call.permit
        added = (
            (call.t_forward - call.started) + (call.t_reply - call.t_answer)
            if outcome == "completed"
            else 0.0
        )
        if call.decision_seq:
            self.outcome(call, outcome, code, added)
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

    def outcome(self, call: Call, outcome: str, code: Code | None, added: float = 0.0) -> None:
        """Put an outcome on record; ``added`` is the sidecar's share of the time, in seconds."""
        try:
            self._recorder.outcome(call, outcome, code, added)
        except AuditError as error:
            self._log.error("outcome_unrecorded", reason=error.reason)
            self._recorder.lost += 1

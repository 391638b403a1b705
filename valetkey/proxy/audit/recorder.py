"""Writing the two events of a call: decision and outcome.

Each event is rendered at once, from a template, as the final CloudEvents text; nothing is left to
do later in a burst. Everything that is put into a template is either made here, checked by the
path's grammar (`core.path`: no quote, no backslash, no control), or encoded as JSON by `_text`.

Every byte costs: it is copied, hashed, paged in and brought to disk. So an event holds what OCSF
requires of its class and what nothing else tells: what belongs to the whole boot is in the boot's
event, what belongs to the call is in its decision.

Never in an event: tokens, query values, header values (Host is the exception), bodies.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final

import msgspec

from valetkey import __version__
from valetkey.contracts import events
from valetkey.contracts.codes import Code
from valetkey.proxy.audit.spool import Spool

if TYPE_CHECKING:
    from valetkey.contracts.errors import CallerError
    from valetkey.proxy.core.credential import Credential
    from valetkey.proxy.core.decision import Deny, NeedsMessage, TunnelPermit
    from valetkey.proxy.core.snapshot import Route
    from valetkey.proxy.http1.call import Call
    from valetkey.proxy.http1.head import RequestHead
    from valetkey.proxy.http1.inbound import WorkloadConnection

_MAX_TEXT: Final = 512
_MAX_PATH: Final = 1024
# In an outcome, whose size has a bound (`spool.OUTCOME_ROOM`), in bytes of JSON.
_MAX_NAME: Final = 128
_MAX_JTI: Final = 64  # the broker's own have 22
_MAX_SENT: Final = 900  # bytes that say which credentials went out
_MAX_GRANTS: Final = 8
_MAX_POLICIES: Final = 8  # of an id with at most 64 characters each
_KNOWN_METHODS: Final = 64

_METADATA: Final[dict[str, Any]] = {
    "version": events.OCSF_VERSION,
    "product": {"name": "valetkey"},
}
_encode: Final = msgspec.json.encode
_time_ns: Final = time.time_ns


class Recorder:
    """Events of one sidecar boot into its spool."""

    def __init__(self, spool: Spool, instance: str) -> None:
        self._spool = spool
        self._source = events.SOURCE_PREFIX + instance
        self._decisions: dict[Route, dict[str, bytes]] = {}
        """Templates by route and method."""
        self._outcomes: dict[str, bytes] = {}
        """Templates by method."""
        self._now = 0
        self._second = 0
        self._prefix = b""
        self._stamp = b""
        self._millis = b""
        self.written = 0
        self.lost = 0
        """Events that were not recorded, or can't be delivered any more, in all."""
        self._went_on = 0
        self._refused = 0

    def forget_routes(self) -> None:
        """Drop templates of an older snapshot."""
        self._decisions.clear()

    # --- decision -----------------------------------------------------------------------------

    def permitted(self, call: Call, credential: Credential, dropped: tuple[str, ...]) -> int:
        """Record that a call may leave. Returns the event's sequence. Raises `AuditError`."""
        permit = call.permit
        assert permit is not None
        if self._went_on or self._refused:
            self._record_gap()
        method = call.head.method
        templates = self._decisions.get(permit.route)
        template = templates.get(method) if templates is not None else None
        if template is None:
            template = self._decision_template(permit.route, method)
        spool = self._spool
        number = spool.seq + 1
        seq = b"%d" % number
        self._tick()
        trace = call.head.block.traceparent
        who, reference, call.actor = credential.rendered or _render(credential)
        extra = b',"dropped":%b' % _encode(dropped) if dropped else b""
        if call.asked is not None:
            extra += b',"mcp":' + _encode(_message(call.asked))
        if call.upgrade is not None:
            extra += b',"protocol":%b' % _encode(call.upgrade.protocol)
        spool.append(
            template % (
                seq, self._stamp, seq, spool.link,
                b',"traceparent":"%b"' % trace if trace else b"",
                self._millis, who, permit.path.encode()[:_MAX_PATH], call.inbound.endpoints,
                reference, extra,
            ),
            decision=True,
        )  # fmt: skip
        spool.open_calls += 1
        self.written += 1
        return number

    def denied(self, call: Call, deny: Deny, workload: str) -> int:
        """Record that a call may not leave. Raises `AuditError`."""
        head = call.head
        dropped: tuple[str, ...] = ()
        if deny.target is not None:
            dropped = head.block.dropped(deny.target.headers)
        call.actor = _actor(workload)
        unmapped: dict[str, Any] = {"code": deny.code.name, "reason": deny.reason[:_MAX_TEXT]}
        if deny.approval:
            unmapped["approval"] = deny.approval
        if deny.route is not None:
            unmapped["scopes"] = deny.route.scopes
        if dropped:
            unmapped["dropped"] = dropped
        if call.asked is not None and call.asked.facts.message is not None:
            unmapped["mcp"] = _message(call.asked)
        data = self._decision_data(head.method, allowed=False) | {
            "actor": {"app_uid": workload},
            "authorizations": [{"decision": "denied"}],
            "api": {
                "operation": head.method,
                "service": {"name": deny.target.name if deny.target else ""},
            },
            "http_request": {"url": _url(head, deny)},
            **_endpoints(call.inbound),
            "policy": {"uid": deny.route.id if deny.route else ""},
            "unmapped": unmapped,
        }
        seq = self._write(
            events.TYPE_DECISION, data, trace=head.block.traceparent.decode(), decision=True
        )
        self._spool.open_calls += 1
        return seq

    def tunnel(self, call: Call, permit: TunnelPermit, workload: str) -> int:
        """Record that opaque bytes may go to a passthrough host. Raises `AuditError`."""
        call.actor = _actor(workload)
        data = self._decision_data("CONNECT", allowed=True) | {
            "actor": {"app_uid": workload},
            "authorizations": [{"decision": "allowed"}],
            "api": {
                "operation": "CONNECT",
                "service": {"name": f"{permit.host}:{permit.port}"},
            },
            **_endpoints(call.inbound),
            "policy": {"uid": f"passthrough:{permit.passthrough.name}"},
            "unmapped": {"credential": "none"},
        }
        trace = call.head.block.traceparent.decode()
        seq = self._write(events.TYPE_DECISION, data, trace=trace, decision=True)
        self._spool.open_calls += 1
        return seq

    def unreadable(self, connection: WorkloadConnection, error: CallerError, workload: str) -> None:
        """Record what a target's tunnel carried in place of a request. Raises `AuditError`."""
        data = self._decision_data("CONNECT", allowed=False) | {
            "actor": {"app_uid": workload},
            "authorizations": [{"decision": "denied"}],
            "api": {"operation": "CONNECT", "service": {"name": connection.entry.origin}},
            **_endpoints(connection),
            "policy": {"uid": ""},
            "unmapped": {"code": error.code.name, "reason": error.reason[:_MAX_TEXT]},
        }
        seq = self._write(events.TYPE_DECISION, data, decision=True)
        outcome = self._data("CONNECT") | {
            "actor": msgspec.Raw(_actor(workload)),
            "api": {"operation": "CONNECT"},
            "src_endpoint": msgspec.Raw(connection.source.partition(b":")[2]),
            "http_response": {"code": error.code.status},
            "unmapped": {
                "decision": events.event_id(self._spool.boot, seq), "outcome": "denied",
                "code": error.code.name, "duration_us": 0, "added_us": 0, "sent": 0,
                "received": 0, "attempts": 0,
            },
        }  # fmt: skip
        self._write(events.TYPE_OUTCOME, outcome, decision=False)

    def _decision_template(self, route: Route, method: str) -> bytes:
        rest = (
            b',%%b,"api":{"operation":%b,"service":{"name":%b}},'
            b'"http_request":{"url":{"path":"%%b"}},%%b,'
            b'"policy":{"uid":%b},"unmapped":{"scopes":%b,"credential":%b%%b%%b}}}'
        ) % (
            _text(method), _text(route.target.name), _text(route.id),
            _encode(route.scopes).replace(b"%", b"%%"),
            _text(route.target.settings.credential.kind),
        )  # fmt: skip
        data = self._decision_data(method, allowed=True)
        template = self._envelope(events.TYPE_DECISION) + _open(data) + rest
        # Bounded: a route matches the methods that its settings name, and no others.
        self._decisions.setdefault(route, {})[method] = template
        return template

    # --- outcome ------------------------------------------------------------------------------

    def outcome(self, call: Call, outcome: str, code: Code | None, added: float) -> None:
        """Record how a call ended; its decision is named. Raises `AuditError`."""
        spool = self._spool
        spool.open_calls -= 1
        template = self._outcomes.get(call.head.method)
        if template is None:
            template = self._outcome_template(call.head.method)
        seq = b"%d" % (spool.seq + 1)
        self._tick()
        trace = call.head.block.traceparent
        spool.append(
            template % (
                seq, self._stamp, seq, spool.link,
                b',"traceparent":"%b"' % trace if trace else b"",
                self._millis, call.actor, call.inbound.source, call.status, call.decision_seq,
                outcome.encode(),
                _remarks(call, code)
                if code is not None or call.scrubbed or call.sessions or call.kind or call.watch
                or call.succession
                else b"",
                int((call.ended - call.started) * 1e6), int(added * 1e6),
                call.sent, call.received, call.attempts,
            ),
            decision=False,
        )  # fmt: skip
        self.written += 1

    def _outcome_template(self, method: str) -> bytes:
        rest = (
            b',"actor":%%b,"api":{"operation":%b},%%b,"http_response":{"code":%%d},'
            b'"unmapped":{"decision":"%b-%%d","outcome":"%%b"%%b,"duration_us":%%d,'
            b'"added_us":%%d,"sent":%%d,"received":%%d,"attempts":%%d}}}'
        ) % (_text(method), self._spool.boot.encode())
        template = self._envelope(events.TYPE_OUTCOME) + _open(self._data(method)) + rest
        if len(self._outcomes) < _KNOWN_METHODS:  # the method may be any that a caller thought up
            self._outcomes[method] = template
        return template

    # --- the sidecar's own events -------------------------------------------------------------

    def booted(self, policy_digest: str) -> None:
        """Record the start, and where the boot before ended, so that a cut tail shows."""
        unmapped: dict[str, Any] = {"policy_digest": policy_digest, "version": __version__}
        previous = self._spool.previous
        if previous is not None:
            unmapped |= {
                "previous_boot": previous.boot,
                "previous_seq": previous.seq,
                "previous_hash": previous.hash,
                "torn_tail": previous.torn,
            }
        self._write(events.TYPE_BOOT, {"unmapped": unmapped}, decision=True)

    def heartbeat(self) -> None:
        """Record that the sidecar is alive: the chain's end is never older than this."""
        if self._went_on or self._refused:
            self._record_gap()
        self._write(
            events.TYPE_HEARTBEAT,
            {"unmapped": {"open_calls": self._spool.open_calls, "lost": self.lost}},
            decision=True,
        )

    def settings(
        self,
        result: str,
        policy_digest: str,
        digests: Mapping[str, str],
        *,
        layer: str = "",
        code: str = "",
        withheld: int = 0,
    ) -> None:
        """Record that settings were ``applied`` or ``rejected``, and what is in force since.

        ``digests`` are of the files in force, by layer; ``layer`` and ``code`` say whose file was
        rejected and why, ``withheld`` how many routes of the owner are not in force. Nothing of
        what is in a file. Raises `AuditError`.
        """
        unmapped: dict[str, Any] = {
            "result": result, "policy_digest": policy_digest, "files": dict(digests),
            "withheld": withheld,
        }  # fmt: skip
        if code:
            unmapped |= {"layer": layer, "code": code}
        self._write(events.TYPE_SETTINGS, {"unmapped": unmapped}, decision=True)

    def declare_lost(self, boot: str, first: int, last: int, reason: str) -> None:
        """Record that events of a boot can't be delivered any more. Raises `AuditError`."""
        data = {
            "unmapped": {
                "boot": boot, "first": first, "last": last, "lost": last - first + 1,
                "reason": reason[:_MAX_TEXT],
            }
        }  # fmt: skip
        self._write(events.TYPE_GAP, data, decision=True)
        self.lost += last - first + 1

    def unrecorded(self, *, went_on: bool) -> None:
        """A decision could not be recorded; counted, and recorded as a gap later.

        ``went_on`` tells a call that left nevertheless (``spool_full: record_gap``) from a refusal.
        """
        if went_on:
            self._went_on += 1
        else:
            self._refused += 1
        self.lost += 2  # a decision and its outcome

    def _record_gap(self) -> None:
        went_on, refused = self._went_on, self._refused
        data = {
            "unmapped": {
                "boot": self._spool.boot, "first": 0, "last": 0, "lost": 2 * (went_on + refused),
                "calls_went_on": went_on, "calls_refused": refused,
                "reason": "the spool had no room: calls went on unrecorded only on routes with "
                "spool_full: record_gap",
            }
        }  # fmt: skip
        self._write(events.TYPE_GAP, data, decision=True)
        self._went_on = self._refused = 0

    # --- rendering ----------------------------------------------------------------------------

    def _write(self, kind: str, data: dict[str, Any], *, decision: bool, trace: str = "") -> int:
        self._tick()
        if data.get("time") == 0:
            data["time"] = self._now
        spool = self._spool
        number = spool.seq + 1
        seq = b"%d" % number
        raw = self._envelope(kind) % (
            seq, self._stamp, seq, spool.link,
            b',"traceparent":"%b"' % trace.encode() if trace else b"",
        ) + _encode(data) + b"}"  # fmt: skip
        spool.append(raw, decision=decision)
        self.written += 1
        return number

    def _envelope(self, kind: str) -> bytes:
        """CloudEvents 1.0.2 attributes up to ``data``: sequence, time, sequence, link, trace.

        Without ``datacontenttype``, data is JSON (CloudEvents JSON format §3.1).
        """
        boot = self._spool.boot.encode()
        return (
            b'{"specversion":"1.0","id":"%b-%%b","source":%b,"type":%b,"time":"%%b",'
            b'"boot":"%b","sequence":"%%b","prevhash":"%%b"%%b,"data":'
        ) % (boot, _text(self._source), _text(kind), boot)

    @staticmethod
    def _data(method: str) -> dict[str, Any]:
        """What OCSF requires of every event of the class; actor, api, src_endpoint come later."""
        activity = events.OCSF_ACTIVITY.get(method, events.OCSF_ACTIVITY_OTHER)
        return {
            "category_uid": 6,
            "class_uid": events.OCSF_CLASS_API_ACTIVITY,
            "activity_id": activity,
            "type_uid": events.OCSF_CLASS_API_ACTIVITY * 100 + activity,
            "time": 0,
            "severity_id": 1,
            "metadata": _METADATA,
        }

    def _decision_data(self, method: str, *, allowed: bool) -> dict[str, Any]:
        """The same with the security control profile, which says how it was decided."""
        return self._data(method) | {
            "metadata": _METADATA | {"profiles": ["security_control"]},
            "action_id": events.OCSF_ACTION_ALLOWED if allowed else events.OCSF_ACTION_DENIED,
            "disposition_id": (
                events.OCSF_DISPOSITION_ALLOWED if allowed else events.OCSF_DISPOSITION_BLOCKED
            ),
        }

    def _tick(self) -> None:
        """Bring `_stamp` (RFC 3339) and `_millis` (since the epoch) to the current millisecond.

        At tens of thousands of events a second, most of them find both as they are.
        """
        millis = _time_ns() // 1_000_000
        if millis != self._now:
            self._now = millis
            second, rest = divmod(millis, 1000)
            if second != self._second:
                self._second = second
                self._prefix = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)).encode()
            self._stamp = b"%b.%03dZ" % (self._prefix, rest)
            self._millis = b"%d" % millis


def _message(asked: NeedsMessage) -> dict[str, str]:
    """What a message of MCP asks for: never its arguments."""
    message = asked.facts.message
    assert message is not None
    if not message.tool:
        return {"method": message.method}
    return {"method": message.method, "tool": message.tool}


def _url(head: RequestHead, deny: Deny) -> dict[str, Any]:
    """The path, and the host as well where no target tells which one was meant."""
    url: dict[str, Any] = {"path": (deny.path or head.path)[:_MAX_PATH]}
    block = head.block
    if deny.target is None and block.host_name:
        url["hostname"] = block.host_name[:_MAX_TEXT]
        if block.host_port:
            url["port"] = block.host_port
    return url


def _endpoints(connection: WorkloadConnection) -> dict[str, Any]:
    """``src_endpoint``, and ``dst_endpoint`` of a redirected connection."""
    endpoints: dict[str, Any] = msgspec.json.decode(b"{%b}" % connection.endpoints)
    return endpoints


def _render(credential: Credential) -> tuple[bytes, bytes, bytes]:
    """What of events belongs to a credential, rendered once: who, its reference, and the actor."""
    app = _encode(credential.actor)
    user = b""
    if credential.subject != credential.actor:
        user = b'"user":{"uid":%b},' % _encode(credential.subject)
    version = _encode(credential.policy_digest)
    policies = b",".join(
        b'{"decision":"allowed","policy":{"uid":%b,"version":%b}}' % (_encode(name[:64]), version)
        for name in credential.policies[:_MAX_POLICIES]
    )
    who = b'"actor":{%b"app_uid":%b},"authorizations":[%b]' % (
        user,
        app,
        policies or b'{"decision":"allowed","policy":{"version":%b}}' % version,
    )
    reference = b',"jti":%b,"txn":%b' % (_encode(credential.jti), _encode(credential.txn))
    if credential.grants:
        grants = (_encode(name[:_MAX_NAME]) for name in credential.grants[:_MAX_GRANTS])
        reference += b',"grants":[%b]' % b",".join(grants)
    if credential.approval:
        reference += b',"approval":%b' % _encode(credential.approval)
    credential.rendered = (who, reference, _actor(credential.actor))
    return credential.rendered


def _actor(workload: str) -> bytes:
    """The actor of an outcome: the decision names it in full, and whom it acts for."""
    return b'{"app_uid":%b}' % _short(workload, _MAX_NAME)


def _open(data: dict[str, Any]) -> bytes:
    """Data up to its last member, as a template whose ``time`` is put in later."""
    head = _encode(data)[:-1].replace(b"%", b"%%")
    return head.replace(b'"time":0', b'"time":%b')


def _remarks(call: Call, code: Code | None) -> bytes:
    """What an outcome says besides numbers."""
    remarks: dict[str, Any] = {}
    if code is not None:
        remarks["code"] = code.name
    if call.scrubbed:
        remarks["scrubbed"] = call.scrubbed.split(",")
    if call.sessions:
        remarks["dropped"] = ["set-cookie"]
    watch = call.watch
    checks = watch.checks if watch is not None else 0
    if call.kind or checks:
        stream = remarks["stream"] = {"kind": call.kind, "rechecks": checks}
        if watch is not None and checks:  # by which credential it was permitted last
            stream["jti"] = msgspec.Raw(_short(watch.credential.jti, _MAX_JTI))
    said = b"," + _encode(remarks)[1:-1] if remarks else b""
    return said + _sent(call) if call.succession is not None else said


def _sent(call: Call) -> bytes:
    """The credentials that went to the target, where that was not the decision's alone."""
    succession, permit = call.succession, call.permit
    assert succession is not None
    if permit is not None:
        succession.note(permit.credential, call.attempts)
    sent = succession.sent
    if not sent or sent == [succession.decided]:
        return b""
    listed = b",".join(
        b"{%b}" % (credential.rendered or _render(credential))[1][1:] for credential in sent
    )
    if len(listed) > _MAX_SENT:
        listed = b",".join(b'{"jti":%b}' % _short(credential.jti, _MAX_JTI) for credential in sent)
    return b',"credentials":[%b]' % listed


def _short(name: str, size: int) -> bytes:
    """A JSON string of at most ``size`` bytes between its quotes: a character takes up to 6."""
    text = _encode(name[:size])
    return text if len(text) <= size + 2 else _encode(name[: size // 6])


def _text(value: str) -> bytes:
    """A JSON string that may stand in a template."""
    return _encode(value).replace(b"%", b"%%")

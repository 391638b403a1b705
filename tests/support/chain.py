"""Valid chains of events, as a sidecar writes them, for tests of the collector and the command."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import msgspec

from valetkey.contracts import events

WORKLOAD = "system:serviceaccount:tickets:agent"


def decision_data(**changes: Any) -> dict[str, Any]:
    data = {
        "category_uid": 6,
        "class_uid": 6003,
        "activity_id": 2,
        "type_uid": 600302,
        "time": 1_793_500_000_000,
        "severity_id": 1,
        "metadata": {
            "version": "1.6.0",
            "product": {"name": "valetkey"},
            "profiles": ["security_control"],
        },
        "action_id": 1,
        "disposition_id": 1,
        "actor": {"app_uid": WORKLOAD},
        "authorizations": [
            {"decision": "allowed", "policy": {"uid": "grants-decide", "version": "0" * 43}}
        ],
        "api": {"operation": "GET", "service": {"name": "tickets"}},
        "http_request": {"url": {"path": "/api/tickets/7"}},
        "src_endpoint": {"ip": "127.0.0.1", "port": 51234},
        "policy": {"uid": "tickets-read"},
        "unmapped": {
            "scopes": ["tickets:read"],
            "credential": "bearer",
            "jti": "tok-1",
            "txn": "txn-1",
        },
    }
    return data | changes


def outcome_data(decision_id: str, **changes: Any) -> dict[str, Any]:
    data = {
        "category_uid": 6,
        "class_uid": 6003,
        "activity_id": 2,
        "type_uid": 600302,
        "time": 1_793_500_000_009,
        "severity_id": 1,
        "metadata": {"version": "1.6.0", "product": {"name": "valetkey"}},
        "actor": {"app_uid": WORKLOAD},
        "api": {"operation": "GET"},
        "src_endpoint": {"ip": "127.0.0.1", "port": 51234},
        "http_response": {"code": 200},
        "unmapped": {
            "decision": decision_id,
            "outcome": "completed",
            "duration_us": 9000,
            "added_us": 180,
            "sent": 0,
            "received": 100,
            "attempts": 1,
        },
    }
    return data | changes


@dataclass
class Chain:
    """One boot: every method appends one event, linked to the one before, and returns its id."""

    instance: str = "agent-0"
    boot: str = "00000000000000a1"
    events: list[bytes] = field(default_factory=list)

    @property
    def source(self) -> str:
        return events.SOURCE_PREFIX + self.instance

    @property
    def head(self) -> str:
        return events.digest(self.events[-1]) if self.events else events.GENESIS

    def add(self, type_: str, data: Any, **members: Any) -> str:
        seq = len(self.events) + 1
        event = {
            "specversion": "1.0",
            "id": events.event_id(self.boot, seq),
            "source": self.source,
            "type": type_,
            "time": "2026-11-01T00:00:00.000Z",
            "boot": self.boot,
            "sequence": str(seq),
            "prevhash": self.head,
            "data": data,
        } | members
        self.events.append(msgspec.json.encode(event))
        return str(event["id"])

    def boot_event(self, previous: Chain | None = None) -> str:
        stated = {
            "previous_boot": previous.boot if previous else "",
            "previous_seq": len(previous.events) if previous else 0,
            "previous_hash": previous.head if previous else "",
        }
        return self.add(events.TYPE_BOOT, {"unmapped": stated})

    def decision(self, **changes: Any) -> str:
        return self.add(events.TYPE_DECISION, decision_data(**changes))

    def outcome(self, decision: str, **changes: Any) -> str:
        return self.add(events.TYPE_OUTCOME, outcome_data(decision, **changes))

    def call(self, **changes: Any) -> str:
        decision = self.decision(**changes)
        self.outcome(decision)
        return decision

    def calls(self, count: int) -> Chain:
        for _ in range(count):
            self.call()
        return self

    def gap(self, boot: str, first: int, last: int, *, lost: int | None = None) -> str:
        stated = {
            "boot": boot,
            "first": first,
            "last": last,
            "reason": "damaged spool record",
            "lost": last - first + 1 if lost is None else lost,
        }
        return self.add(events.TYPE_GAP, {"unmapped": stated})

    def heartbeat(self) -> str:
        return self.add(events.TYPE_HEARTBEAT, {"unmapped": {}})


def batch(raws: list[bytes]) -> bytes:
    """A CloudEvents batch whose members are exactly these bytes."""
    return b"[" + b",".join(raws) + b"]"

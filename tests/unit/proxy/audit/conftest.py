"""A spool without a sidecar around it, and events as a sidecar writes them."""

from __future__ import annotations

import json

import pytest

from valetkey.contracts import events
from valetkey.proxy.audit.spool import Spool

KIB = 1 << 10


def event_bytes(spool, *, size=0):
    """A whole event for the spool's next place; at least ``size`` bytes long."""
    event = {
        "specversion": "1.0",
        "id": events.event_id(spool.boot, spool.seq + 1),
        "source": events.SOURCE_PREFIX + "agent-0",
        "type": events.TYPE_HEARTBEAT,
        "time": "2026-11-01T00:00:00.000000Z",
        "boot": spool.boot,
        "sequence": str(spool.seq + 1),
        "prevhash": spool.link.decode(),
        "data": {},
    }
    raw = json.dumps(event, separators=(",", ":")).encode()
    event["data"] = {"pad": "x" * max(0, size - len(raw) - 8)}
    return json.dumps(event, separators=(",", ":")).encode() if size else raw


class Bench:
    """Makes spools in one directory and remembers what went into them."""

    def __init__(self, directory):
        self.directory = directory
        self.written: list[bytes] = []

    def spool(self, *, segment_size=64 * KIB, max_size=1024 * KIB, commit_every=0.001):
        return Spool(
            self.directory, segment_size=segment_size, max_size=max_size, commit_every=commit_every
        )

    def append(self, spool, *, size=0, decision=False, keep=True):
        raw = event_bytes(spool, size=size)
        seq = spool.append(raw, decision=decision)
        if keep:
            assert spool.keep()
        self.written.append(raw)
        return seq


@pytest.fixture
def bench(tmp_path):
    return Bench(tmp_path / "spool")

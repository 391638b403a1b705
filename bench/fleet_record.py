"""Events of simulated sidecars: texts of the real recorder, numbered and linked anew for each."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from tests.support.enforcement import SETTINGS, Stand
from valetkey.contracts.events import GENESIS
from valetkey.proxy.audit.segment import FRAME_SIZE

_ROUTE = {
    "id": "tickets-read",
    "target": "tickets",
    "match": {"methods": ["GET"], "path": "/api/tickets/{id}"},
    "scopes": ["tickets:read"],
}
_SUBJECT = "spiffe://demo.example/ns/n123/sa/bot"
_SEQ, _LINK, _BEFORE = b"@seq@", b"@link@", b"@before@"


@dataclass(frozen=True, slots=True)
class Texts:
    """A call's decision and outcome, and a heartbeat, as a sidecar records them."""

    decision: bytes
    outcome: bytes
    heartbeat: bytes

    @classmethod
    def recorded(cls, directory: Path) -> Self:
        """One call through the real enforcement point into a real spool in ``directory``."""
        stand = Stand(directory, settings={**SETTINGS, "routes": [_ROUTE]})
        try:
            stand.credential(
                subject=_SUBJECT, actor=_SUBJECT, jti=secrets.token_urlsafe(16),
                txn=secrets.token_urlsafe(16), policy_digest=secrets.token_urlsafe(32),
                grants=("fleet",),
            )  # fmt: skip
            connection, target = stand.open(), stand.target()
            connection.data_received(b"GET /api/tickets/7 HTTP/1.1\r\nHost: localhost\r\n\r\n")
            stand.turn.run()
            target.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            stand.turn.run()
            stand.recorder.heartbeat()
            decision, outcome, heartbeat = (
                _template(raw, seq, stand.spool.boot.encode())
                for seq, raw in enumerate(stand.events(), 1)
            )
        finally:
            stand.close()
        return cls(decision, outcome, heartbeat)

    @classmethod
    def of(cls, document: Mapping[str, str]) -> Self:
        return cls(**{name: text.encode() for name, text in document.items()})

    def spooled_per_call(self) -> float:
        """Bytes of a call in a spool, frames included."""
        record = Record(self, "fleet-1234")
        record.call()
        return float(record.spooled)

    def document(self) -> dict[str, str]:
        return {name: getattr(self, name).decode() for name in ("decision", "outcome", "heartbeat")}


def _template(raw: bytes, seq: int, boot: bytes) -> bytes:
    at = raw.index(b'"prevhash":"') + len(b'"prevhash":"')
    return (
        (raw[:at] + _LINK + raw[at + len(GENESIS) :])
        .replace(b'"%b-%d"' % (boot, seq), b'"@boot@-%b"' % _SEQ)
        .replace(b'"%b-%d"' % (boot, seq - 1), b'"@boot@-%b"' % _BEFORE)
        .replace(b'"sequence":"%d"' % seq, b'"sequence":"%b"' % _SEQ)
        .replace(boot, b"@boot@")
        .replace(b":agent-0", b":@name@")
    )


class Record:
    """One boot's chain. ``waiting`` is what no collector has acknowledged."""

    def __init__(self, texts: Texts, name: str) -> None:
        boot = secrets.token_hex(8).encode()
        self._texts = Texts(
            *(
                text.replace(b"@boot@", boot).replace(b"@name@", name.encode())
                for text in (texts.decision, texts.outcome, texts.heartbeat)
            )
        )
        self._seq = 0
        self._link = GENESIS.encode()
        self.waiting: list[bytes] = []
        self.spooled = 0
        """Bytes that a spool holds of it, frames included."""

    def call(self) -> None:
        self._add(self._texts.decision)
        self._add(self._texts.outcome)

    def heartbeat(self) -> None:
        self._add(self._texts.heartbeat)

    def _add(self, text: bytes) -> None:
        raw = text.replace(_BEFORE, b"%d" % self._seq)
        self._seq += 1
        raw = raw.replace(_SEQ, b"%d" % self._seq).replace(_LINK, self._link)
        self._link = hashlib.sha256(raw).hexdigest().encode()
        self.waiting.append(raw)
        self.spooled += len(raw) + FRAME_SIZE

"""The agent: plain HTTP to localhost, no credential in its hands. And what others can look at."""

from __future__ import annotations

import hashlib
import http.client
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_TIMEOUT: Final = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: Any

    @property
    def code(self) -> str:
        """The dotted code of a refusal."""
        return str(self.body.get("code", "")) if isinstance(self.body, dict) else ""


class Client:
    """Calls one address, a connection per call, and counts the answers."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._lock = threading.Lock()
        self.calls = 0

    def call(self, method: str, path: str, headers: dict[str, str] | None = None) -> Answer:
        """One call. Raises `OSError` or `http.client.HTTPException` when no answer comes."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        try:
            connection.request(method, path, headers=headers or {})
            response = connection.getresponse()
            raw = response.read()
        finally:
            connection.close()
        with self._lock:
            self.calls += 1
        is_json = "json" in response.getheader("Content-Type", "")
        return Answer(
            response.status,
            {name.lower(): value for name, value in response.getheaders()},
            json.loads(raw) if is_json else raw.decode(),
        )


class Arrivals:
    """What arrived at the ticketing API, from the record that it keeps for itself."""

    def __init__(self, record: Path) -> None:
        self._record = record

    def all(self) -> list[dict[str, Any]]:
        if not self._record.exists():
            return []
        lines = self._record.read_text(encoding="utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def since(self, count: int) -> list[dict[str, Any]]:
        return self.all()[count:]

    def count_of(self, secret: str) -> int:
        """In how many calls that secret arrived, as a header's value or a word of one."""
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return sum(digest in call["digests"] for call in self.all())


def counter(client: Client, name: str) -> float:
    """The value of an unlabelled metric of the sidecar's."""
    text = client.call("GET", "/metrics").body
    for line in text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.split()[1])
    raise LookupError(f"no metric {name}")

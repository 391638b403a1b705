"""People who manage the broker: its admin API, each with a token of their own."""

from __future__ import annotations

import http.client
import json
from typing import Any, Final

_TIMEOUT: Final = 10.0


class Administrator:
    """One person at the broker on ``port``. ``token`` is theirs."""

    def __init__(self, port: int, token: str) -> None:
        self._port = port
        self._token = token

    def ask(self, method: str, path: str, document: Any = None) -> tuple[int, Any]:
        """Status and document of one request."""
        headers = {"Authorization": f"Bearer {self._token}"}
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(document)
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=_TIMEOUT)
        try:
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            return response.status, json.loads(response.read())
        finally:
            connection.close()

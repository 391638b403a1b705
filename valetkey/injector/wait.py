"""``python -m valetkey.injector.wait``: what a plain sidecar's hooks run in its container.

``ready URL SECONDS`` ends once URL answers 200: until then the kubelet starts no container that
stands behind the sidecar's. ``stay SECONDS`` keeps a sidecar for the last calls of a workload that
is told to stop at the same moment. Native sidecars need neither.
"""

from __future__ import annotations

import http.client
import sys
import time
from typing import Final
from urllib.parse import urlsplit

_POLL: Final = 0.2


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 done, 1 not ready in time, 2 wrong usage."""
    given = sys.argv[1:] if arguments is None else arguments
    match given:
        case ["ready", url, seconds] if url.startswith("http://") and seconds.isdecimal():
            return 0 if _is_ready(url, int(seconds)) else 1
        case ["stay", seconds] if seconds.isdecimal():
            time.sleep(int(seconds))
            return 0
    print(f"usage: {__doc__}", file=sys.stderr)  # noqa: T201 - the kubelet shows it
    return 2


def _is_ready(url: str, seconds: int) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        if _status(url) == 200:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(_POLL)


def _status(url: str) -> int:
    """0 where nobody answers yet. No proxy of the environment is used: this is for the sidecar."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=2)
    try:
        connection.request("GET", parts.path)
        with connection.getresponse() as response:
            return response.status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(main())

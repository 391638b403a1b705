"""A call of each URL with each of this Python's clients; one line of JSON per call.

Run by the doctor with ``python -c``, in whatever Python is on PATH (3.7 or later), so it imports
nothing but the standard library and the clients themselves. Arguments: seconds per call, clients
(joined by commas), URLs.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import sys
from typing import Any

MOST = 4096


def call_urllib(url: str, timeout: float) -> dict[str, Any]:
    request = importlib.import_module("urllib.request")
    error = importlib.import_module("urllib.error")

    class Stay(request.HTTPRedirectHandler):  # type: ignore[name-defined, misc]
        def redirect_request(self, *_: Any) -> None:
            return None

    try:
        answer = request.build_opener(Stay).open(url, timeout=timeout)
    except error.HTTPError as refused:
        answer = refused
    with answer:
        return _answer(answer.status, answer.headers, answer.read(MOST))


def call_requests(url: str, timeout: float) -> dict[str, Any]:
    requests = importlib.import_module("requests")
    with requests.get(url, timeout=timeout, allow_redirects=False, stream=True) as answer:
        return _answer(answer.status_code, answer.headers, next(answer.iter_content(MOST), b""))


def call_httpx(url: str, timeout: float) -> dict[str, Any]:
    httpx = importlib.import_module("httpx")
    with httpx.stream("GET", url, timeout=timeout) as answer:
        return _answer(answer.status_code, answer.headers, next(answer.iter_bytes(MOST), b""))


def call_aiohttp(url: str, timeout: float) -> dict[str, Any]:
    aiohttp = importlib.import_module("aiohttp")

    async def call() -> dict[str, Any]:
        limit = aiohttp.ClientTimeout(total=timeout)
        # Nested: one statement for both needs Python 3.9.
        async with aiohttp.ClientSession(trust_env=True, timeout=limit) as session:  # noqa: SIM117
            async with session.get(url, allow_redirects=False) as answer:
                return _answer(answer.status, answer.headers, await answer.content.read(MOST))

    return asyncio.run(call())


CALLS = {
    "urllib": call_urllib,
    "requests": call_requests,
    "httpx": call_httpx,
    "aiohttp": call_aiohttp,
}


def _answer(status: int, headers: Any, body: bytes) -> dict[str, Any]:
    return {
        "status": status,
        "content_type": headers.get("Content-Type") or "",
        "via": headers.get("Via") or "",
        "body": body.decode("utf-8", "replace"),
    }


def main(arguments: list[str]) -> None:
    timeout, clients = float(arguments[0]), arguments[1].split(",")
    for client in clients:
        for url in arguments[2:]:
            try:
                seen = CALLS[client](url, timeout)
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the report
                seen = {"error": f"{type(error).__name__}: {error}"}
            print(json.dumps({"client": client, "url": url, **seen}), flush=True)


if __name__ == "__main__":
    # With -c the first entry is the current directory: a file there could shadow a library.
    sys.path[:] = [entry for entry in sys.path if entry]
    main(sys.argv[1:])

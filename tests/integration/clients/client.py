"""Makes calls with one of Python's clients: ``client.py CLIENT``, the calls as JSON on standard input.

Each call is made as a program would make it, with the client's own ways to send JSON, forms,
multipart and chunks, and with its own defaults; redirects are not followed. One line of JSON per
answer. See ``test_clients_matrix.py`` for what is in a call.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
from collections.abc import AsyncIterator, Iterator
from typing import Any

Call = dict[str, Any]
TIMEOUT = 30.0


def answer(call: Call, status: int, headers: Any, body: bytes) -> None:
    pairs = [[name, value] for name, value in headers]
    seen = {"status": status, "headers": pairs, "body": base64.b64encode(body).decode()}
    print(json.dumps({"name": call["name"], **seen}), flush=True)


def pieces(call: Call) -> Iterator[bytes]:
    for piece in call["chunks"]:
        yield piece.encode()


async def pieces_later(call: Call) -> AsyncIterator[bytes]:
    for piece in pieces(call):
        yield piece


def files(call: Call) -> list[tuple[str, tuple[str, bytes, str]]]:
    return [
        (part["name"], (part["filename"], part["content"].encode(), part["type"]))
        for part in call["multipart"]
    ]


def with_requests(given: dict[str, Any]) -> None:
    import requests

    with requests.Session() as session:
        for call in given["calls"]:
            more: dict[str, Any] = {}
            if "json" in call:
                more["json"] = call["json"]
            elif "form" in call:
                more["data"] = call["form"]
            elif "multipart" in call:
                more["files"] = files(call)
            elif "chunks" in call:
                more["data"] = pieces(call)
            elif "body" in call:
                more["data"] = call["body"].encode()
            got = session.request(
                call["method"], call["url"], headers=call.get("headers"), timeout=TIMEOUT,
                allow_redirects=False, **more,
            )  # fmt: skip
            if not given.get("cookies"):
                session.cookies.clear()
            answer(call, got.status_code, got.raw.headers.items(), got.content)


def with_httpx(given: dict[str, Any]) -> None:
    import httpx

    transport = httpx.HTTPTransport(uds=given["socket"]) if given.get("socket") else None
    with httpx.Client(timeout=TIMEOUT, transport=transport) as client:
        for call in given["calls"]:
            more: dict[str, Any] = {}
            if "json" in call:
                more["json"] = call["json"]
            elif "form" in call:
                more["data"] = call["form"]
            elif "multipart" in call:
                more["files"] = files(call)
            elif "chunks" in call:
                more["content"] = pieces(call)
            elif "body" in call:
                more["content"] = call["body"].encode()
            got = client.request(call["method"], call["url"], headers=call.get("headers"), **more)
            client.cookies.clear()
            answer(call, got.status_code, got.headers.multi_items(), got.content)


def with_aiohttp(given: dict[str, Any]) -> None:
    import aiohttp

    async def run() -> None:
        socket = given.get("socket")
        connector = aiohttp.UnixConnector(socket) if socket else None
        async with aiohttp.ClientSession(
            trust_env=True, connector=connector, cookie_jar=aiohttp.DummyCookieJar()
        ) as session:
            for call in given["calls"]:
                more: dict[str, Any] = {}
                if "json" in call:
                    more["json"] = call["json"]
                elif "form" in call:
                    more["data"] = call["form"]
                elif "multipart" in call:
                    form = aiohttp.FormData()
                    for name, (filename, content, kind) in files(call):
                        form.add_field(name, content, filename=filename, content_type=kind)
                    more["data"] = form
                elif "chunks" in call:
                    more["data"] = pieces_later(call)
                elif "body" in call:
                    more["data"] = call["body"].encode()
                # The path as it is: what is encoded already stays so.
                from yarl import URL

                async with session.request(
                    call["method"], URL(call["url"], encoded=True), headers=call.get("headers"),
                    allow_redirects=False, timeout=aiohttp.ClientTimeout(total=TIMEOUT), **more,
                ) as got:  # fmt: skip
                    answer(call, got.status, got.headers.items(), await got.read())

    asyncio.run(run())


def with_urllib3(given: dict[str, Any]) -> None:
    import urllib3

    # It reads no variables: what a program has to do by itself.
    proxy = os.environ.get("https_proxy", "")
    with urllib3.ProxyManager(proxy) if proxy else urllib3.PoolManager() as manager:
        for call in given["calls"]:
            # Behind a proxy it adds this one by itself.
            headers = {"Accept": "*/*", **(call.get("headers") or {})}
            more: dict[str, Any] = {}
            if "json" in call:
                more["json"] = call["json"]
            elif "form" in call:
                more.update(fields=call["form"], encode_multipart=False)
            elif "multipart" in call:
                more["fields"] = files(call)
            elif "chunks" in call:
                more.update(body=pieces(call), chunked=True)
            elif "body" in call:
                more["body"] = call["body"].encode()
            got = manager.request(
                call["method"], call["url"], headers=headers, redirect=False, retries=False,
                timeout=TIMEOUT, **more,
            )  # fmt: skip
            answer(call, got.status, got.headers.iteritems(), got.data)


if __name__ == "__main__":
    CLIENTS = {
        "requests": with_requests,
        "httpx": with_httpx,
        "aiohttp": with_aiohttp,
        "urllib3": with_urllib3,
    }
    CLIENTS[sys.argv[1]](json.load(sys.stdin))

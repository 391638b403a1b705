"""A stream's client: ``streams_client.py CLIENT``, what to do as JSON on standard input.

``url`` and ``socket`` say where, ``messages`` what to send. It prints, as JSON, everything that came.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from typing import Any

TIMEOUT = 30


def shown(message: str | bytes) -> Any:
    return message if isinstance(message, str) else {"binary": base64.b64encode(message).decode()}


def messages(given: dict[str, Any]) -> list[str | bytes]:
    return [
        each if isinstance(each, str) else base64.b64decode(each["binary"])
        for each in given["messages"]
    ]


async def with_websockets(given: dict[str, Any]) -> dict[str, Any]:
    from websockets.asyncio.client import connect, unix_connect
    from websockets.exceptions import ConnectionClosed

    options: dict[str, Any] = {
        "subprotocols": ["echo.v1", "other"],
        "additional_headers": {"Cookie": "mine=1"},
        "max_size": 8 << 20,
    }
    if given["socket"]:
        dial = unix_connect(given["socket"], given["url"], **options)
    else:
        dial = connect(given["url"], **options)
    got: list[Any] = []
    async with dial as socket:
        got.append(json.loads(await socket.recv()))
        for message in messages(given):
            await socket.send(message)
            try:
                got.append(shown(await socket.recv()))
            except ConnectionClosed:
                break
        await socket.wait_closed()
        return {"got": got, "closed": [socket.close_code, socket.close_reason]}


async def with_aiohttp(given: dict[str, Any]) -> dict[str, Any]:
    import aiohttp

    connector = aiohttp.UnixConnector(given["socket"]) if given["socket"] else None
    async with aiohttp.ClientSession(trust_env=True, connector=connector) as session:  # noqa: SIM117
        async with session.ws_connect(
            given["url"], protocols=("echo.v1", "other"), headers={"Cookie": "mine=1"},
            max_msg_size=8 << 20, compress=15,
        ) as socket:  # fmt: skip
            got: list[Any] = [await socket.receive_json()]
            for message in messages(given):
                if isinstance(message, str):
                    await socket.send_str(message)
                else:
                    await socket.send_bytes(message)
                answer = await socket.receive()
                if answer.type not in {aiohttp.WSMsgType.TEXT, aiohttp.WSMsgType.BINARY}:
                    return {"got": got, "closed": [socket.close_code, answer.extra]}
                got.append(shown(answer.data))
    raise AssertionError("the target did not close")


async def with_httpx_sse(given: dict[str, Any]) -> dict[str, Any]:
    import httpx
    from httpx_sse import aconnect_sse

    transport = httpx.AsyncHTTPTransport(uds=given["socket"]) if given["socket"] else None
    async with httpx.AsyncClient(timeout=TIMEOUT, transport=transport) as client:
        found: list[Any] = []
        for headers in ({}, {"Last-Event-ID": "7"}):
            async with aconnect_sse(client, "GET", given["url"], headers=headers) as source:
                found += [
                    [event.event, event.id, event.retry, event.data]
                    async for event in source.aiter_sse()
                ]
        return {"got": found}


CLIENTS = {"websockets": with_websockets, "aiohttp": with_aiohttp, "httpx-sse": with_httpx_sse}


async def main() -> None:
    run = CLIENTS[sys.argv[1]](json.load(sys.stdin))
    print(json.dumps(await asyncio.wait_for(run, TIMEOUT)))


if __name__ == "__main__":
    asyncio.run(main())

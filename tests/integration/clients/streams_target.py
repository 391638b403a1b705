"""A target of streams, on aiohttp: ``streams_target.py ADDRESS PORT [CERTIFICATE]``.

``/ws`` is a WebSocket that sends back what it gets; to ``close CODE REASON`` it closes. ``/events``
is an event stream that begins behind ``Last-Event-ID`` and ends with its tenth event.
"""

from __future__ import annotations

import ssl
import sys

from aiohttp import WSMsgType, web

EVENTS = [
    (
        f"id: {number}\n"
        f"event: {'odd' if number % 2 else 'even'}\n"
        + (": a comment\n" if number == 3 else "")
        + ("retry: 1500\n" if number == 4 else "")
        + f"data: line {number} ✓\ndata: {'x' * 1000 * number}\n\n"
    )
    for number in range(10)
]


async def socket(request: web.Request) -> web.WebSocketResponse:
    response = web.WebSocketResponse(protocols=("echo.v2", "echo.v1"), max_msg_size=8 << 20)
    await response.prepare(request)
    # What came with the handshake, so that both ends can be compared.
    await response.send_json(
        {
            "authorized": request.headers.get("Authorization", "").partition(" ")[0],
            "cookie": request.headers.get("Cookie", ""),
            "query": request.query_string,
            "protocol": response.ws_protocol,
        }
    )
    async for message in response:
        if message.type is WSMsgType.BINARY:
            await response.send_bytes(message.data)
        elif message.type is WSMsgType.TEXT and message.data.startswith("close "):
            _, code, reason = message.data.split(" ")
            await response.close(code=int(code), message=reason.encode())
        elif message.type is WSMsgType.TEXT:
            await response.send_str(message.data)
    return response


async def events(request: web.Request) -> web.StreamResponse:
    last = int(request.headers.get("Last-Event-ID", "-1"))
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    await response.prepare(request)
    for event in EVENTS[last + 1 :]:
        # In pieces that end anywhere, as events of a busy target do.
        encoded = event.encode()
        for at in range(0, len(encoded), 700):
            await response.write(encoded[at : at + 700])
    return response


def main(arguments: list[str]) -> None:
    context = None
    if len(arguments) > 2:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(arguments[2])
    app = web.Application()
    app.add_routes([web.get("/ws", socket), web.get("/events", events)])
    web.run_app(
        app, host=arguments[0], port=int(arguments[1]), ssl_context=context, print=None,
        shutdown_timeout=1,
    )  # fmt: skip


if __name__ == "__main__":
    main(sys.argv[1:])

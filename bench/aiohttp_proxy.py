"""A plain aiohttp reverse proxy with one static credential: no decision, no record.

Usage: ``aiohttp_proxy.py PORT UPSTREAM_PORT TOKEN_FILE``
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import uvloop
from aiohttp import web

CLIENT = web.AppKey("client", aiohttp.ClientSession)


async def make_app(upstream: str, authorization: str) -> web.Application:
    async def session(app: web.Application) -> AsyncIterator[None]:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, auto_decompress=False) as client:
            app[CLIENT] = client
            yield

    async def forward(request: web.Request) -> web.Response:
        headers = {**request.headers, "Authorization": authorization}
        url = upstream + request.raw_path
        async with request.app[CLIENT].request(
            request.method, url, headers=headers, data=await request.read(), allow_redirects=False
        ) as answer:
            return web.Response(
                status=answer.status, body=await answer.read(), content_type=answer.content_type
            )

    app = web.Application()
    app.cleanup_ctx.append(session)
    app.router.add_route("*", "/{path:.*}", forward)
    return app


if __name__ == "__main__":
    port, upstream_port, token_file = sys.argv[1:]
    bearer = f"Bearer {Path(token_file).read_text()}"
    web.run_app(
        make_app(f"http://127.0.0.1:{upstream_port}", bearer),
        host="127.0.0.1",
        port=int(port),
        access_log=None,
        print=None,
        loop=uvloop.new_event_loop(),
    )

"""Real MCP servers (the `mcp` package under uvicorn), in the test's own loop.

Each serves the same tools in one of the ways that the protocol knows: with sessions or without,
answering in JSON or in event streams.
"""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.streamable_http import EventStore
from pydantic import BaseModel


@dataclass
class Seen:
    """What arrived at a server: HTTP requests with their bodies, and calls of tools."""

    requests: list[tuple[str, dict[str, str], bytes]] = field(default_factory=list)
    tools: list[str] = field(default_factory=list)

    def methods(self) -> list[str]:
        """HTTP methods, and of POSTs the JSON-RPC method."""
        return [
            str(json.loads(body).get("method", "response")) if method == "POST" else method
            for method, _, body in self.requests
        ]


class Memory(EventStore):
    """Events to be sent again (`Last-Event-ID`)."""

    def __init__(self) -> None:
        self._events: list[tuple[str, Any]] = []

    async def store_event(self, stream_id: str, message: Any) -> str:
        self._events.append((stream_id, message))
        return str(len(self._events))

    async def replay_events_after(self, last_event_id: str, send_callback: Any) -> str | None:
        from mcp.server.streamable_http import EventMessage

        stream = self._events[int(last_event_id) - 1][0]
        for number, (of, message) in enumerate(self._events, 1):
            if number > int(last_event_id) and of == stream and message is not None:
                await send_callback(EventMessage(message, str(number)))
        return stream


class Answer(BaseModel):
    """What an elicitation asks for."""

    sure: bool


def make_server(seen: Seen) -> MCPServer:
    server: MCPServer = MCPServer("issues", log_level="ERROR")

    @server.tool()
    def get_issue(number: int, note: str = "") -> dict[str, Any]:
        """One issue."""
        seen.tools.append("get_issue")
        return {"number": number, "note": note, "tools": [{"name": "delete_issue"}]}

    @server.tool()
    async def get_slowly(ctx: Context) -> str:
        """Something that takes its time."""
        seen.tools.append("get_slowly")
        for step in (1, 2, 3):
            await ctx.report_progress(step, 3, f"step {step}")
        return "done"

    @server.tool()
    async def get_confirmed(ctx: Context) -> str:
        """Something that asks back."""
        seen.tools.append("get_confirmed")
        answer = await ctx.elicit("sure?", Answer)
        return f"{answer.action} {answer.data.sure}"  # type: ignore[union-attr]

    @server.tool()
    async def get_news(ctx: Context) -> str:
        """Something after which the list of tools is another."""
        seen.tools.append("get_news")
        await ctx.notify_tools_changed()  # who listens (2026-07-28)
        if ctx.protocol_version != "2026-07-28":
            await ctx.session.send_tool_list_changed()
        return "news"

    @server.tool()
    def create_issue(title: str) -> str:
        """A new issue."""
        seen.tools.append("create_issue")
        return title

    @server.tool()
    def create_label(name: str) -> str:
        """A new label."""
        seen.tools.append("create_label")
        return name

    @server.tool()
    def delete_issue(number: int) -> str:
        """No more issue."""
        seen.tools.append("delete_issue")
        return str(number)

    return server


@asynccontextmanager
async def serving(seen: Seen, **how: Any) -> AsyncIterator[int]:
    """The server's port. ``how``: `stateless_http`, `json_response`, `event_store`."""
    inner = make_server(seen).streamable_http_app(**how)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await inner(scope, receive, send)
            return
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        body = b""
        more = True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        seen.requests.append((scope["method"], headers, body))
        given = False

        async def again() -> Any:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        await inner(scope, again, send)

    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, log_level="error", access_log=False, timeout_graceful_shutdown=1, ws="none"
    )
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve([listener]))
    try:
        while not server.started:
            await asyncio.sleep(0.01)
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task

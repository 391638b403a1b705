"""The real `mcp` package, client and server, with the sidecar between them."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import pytest
import pytest_asyncio
from mcp import Client, MCPError
from mcp.client.streamable_http import streamable_http_client
from mcp_types import ElicitResult

from tests.support.canaries import CANARIES
from tests.support.fleet import TICKETS, WORKLOAD, Fleet
from tests.support.mcp_server import Memory, Seen, serving
from tests.support.ports import free_port

pytestmark = pytest.mark.asyncio(loop_scope="module")

SERVERS: dict[str, dict[str, Any]] = {
    "json": {"json_response": True},
    "events": {},
    "stateless-json": {"stateless_http": True, "json_response": True},
    "stateless-events": {"stateless_http": True},
    "resumable": {"event_store": None},
}
ALLOWED = ["get_issue", "get_slowly", "get_confirmed", "get_news", "create_issue", "create_label"]
BASE = [
    "server/discover", "initialize", "notifications/*", "response", "tools/list",
    "subscriptions/listen",
]  # fmt: skip
CANARY = "canary-in-the-arguments-4b1d"


class McpFleet(Fleet):
    """A fleet whose targets are MCP servers, and whose grants are per tool."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.forward_port = free_port()
        self.servers: dict[str, int] = {}
        self.seen = {name: Seen() for name in SERVERS}

    def _write_broker(self) -> Path:
        config = super()._write_broker()

        def grant(name: str, scope: str, *conditions: dict[str, Any]) -> dict[str, Any]:
            return {
                "id": name, "workload": WORKLOAD, "issuer": self.workloads.issuer,
                "target": "tickets", "scopes": [scope], "conditions": list(conditions),
            }  # fmt: skip

        def messages(*methods: str, tools: list[str] | None = None) -> dict[str, Any]:
            mcp = {"methods": list(methods)} | ({"tools": tools} if tools else {})
            return {"methods": ["POST"], "path": "/mcp", "mcp": mcp}

        grants = [
            grant(
                "connect", "t:connect",
                messages("server/*", "initialize", "notifications/*", "response", "tools/list",
                         "subscriptions/listen"),
                {"methods": ["GET", "DELETE"], "path": "/mcp"},
            ),
            grant("read", "t:read", messages("tools/call", tools=["get_*"])),
            grant("write", "t:write", messages("tools/call", tools=["create_issue"])),
        ]  # fmt: skip
        (self.directory / "grants.yaml").write_text(json.dumps({"grants": grants}))
        return config

    def arrange(self) -> None:
        """Targets and routes for the servers that are up."""
        self.routes = []
        targets = {}
        for name, port in self.servers.items():
            targets[name] = {
                "url": f"http://127.0.0.1:{port}",
                "audience": TICKETS,
                "prefix": f"/{name}",
                "allow_networks": ["127.0.0.0/8"],
                "credential": {"kind": "bearer"},
            }
            self.routes += [
                self._mcp(name, "base", ["t:connect"], BASE),
                self._mcp(name, "read", ["t:read"], ["tools/call"], ["get_*"]),
                self._mcp(
                    name, "write", ["t:write"], ["tools/call"], ["create_*"], per_request=True
                ),
                {
                    "id": f"{name}-stream",
                    "target": name,
                    "match": {"methods": ["GET", "DELETE"], "path": "/mcp"},
                    "scopes": ["t:connect"],
                },
            ]
        self.sidecar_changes = {
            "targets": targets,
            "listeners": [
                {"bind": f"127.0.0.1:{self.port}"},
                {"bind": f"127.0.0.1:{self.forward_port}", "mode": "forward"},
            ],
        }

    @staticmethod
    def _mcp(
        server: str, name: str, scopes: list[str], methods: list[str],
        tools: list[str] | None = None, **more: Any,
    ) -> dict[str, Any]:  # fmt: skip
        mcp = {"methods": methods} | ({"tools": tools} if tools else {})
        match = {"path": "/mcp", "mcp": mcp}
        return {
            "id": f"{server}-{name}", "target": server, "match": match, "scopes": scopes, **more,
        }  # fmt: skip

    @asynccontextmanager
    async def connect(self, server: str, way: str, **options: Any) -> AsyncIterator[Client]:
        """A client through the sidecar (``reverse`` or ``forward``), or ``direct``."""
        direct = f"http://127.0.0.1:{self.servers[server]}/mcp"
        url = {"reverse": f"{self.url}/{server}/mcp"}.get(way, direct)
        proxy = f"http://127.0.0.1:{self.forward_port}" if way == "forward" else None
        async with httpx2.AsyncClient(proxy=proxy, timeout=20, trust_env=False) as http:
            transport = streamable_http_client(url, http_client=http)
            async with Client(transport, read_timeout_seconds=15, **options) as client:
                yield client


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[McpFleet]:
    fleet = McpFleet(tmp_path_factory.mktemp("mcp"))
    CANARIES.add(CANARY, name="an argument of a tool")
    async with AsyncExitStack() as stack:
        for name, how in SERVERS.items():
            if "event_store" in how:
                up = serving(fleet.seen[name], event_store=Memory())
            else:
                up = serving(fleet.seen[name], **how)
            fleet.servers[name] = await stack.enter_async_context(up)
        fleet.arrange()
        await stack.enter_async_context(fleet.running())
        yield fleet


WAYS = [
    ("json", "reverse", "legacy"),
    ("json", "reverse", "auto"),
    ("events", "reverse", "legacy"),
    ("events", "reverse", "auto"),
    ("events", "forward", "legacy"),
    ("events", "forward", "auto"),
    ("stateless-json", "reverse", "legacy"),
    ("stateless-events", "reverse", "legacy"),
    ("stateless-events", "reverse", "auto"),
]


@pytest.mark.parametrize(("server", "way", "mode"), WAYS)
async def test_what_an_agent_may_do_and_what_not(
    fleet: McpFleet, server: str, way: str, mode: Any
) -> None:
    seen = fleet.seen[server]
    seen.requests.clear()
    seen.tools.clear()
    async with fleet.connect(server, "direct", mode=mode) as client:
        direct_list = await client.list_tools()
        direct_call = await client.call_tool("get_issue", {"number": 7, "note": "x"})
    assert [tool.name for tool in direct_list.tools] == [*ALLOWED, "delete_issue"]
    seen.requests.clear()
    seen.tools.clear()
    async with fleet.connect(server, way, mode=mode) as client:
        assert client.server_info.name == "issues"
        listed = await client.list_tools()
        assert listed.tools == direct_list.tools[:-1]
        called = await client.call_tool("get_issue", {"number": 7, "note": "x"})
        assert (called.content, called.structured_content) == (
            direct_call.content,
            direct_call.structured_content,
        )
        made = await client.call_tool("create_issue", {"title": CANARY})
        assert made.content[0].text == CANARY  # type: ignore[union-attr]
        for tool, arguments in (
            ("delete_issue", {"number": 7}),  # no route
            ("create_label", {"name": "x"}),  # a route, and no grant
        ):
            with pytest.raises(MCPError):
                await client.call_tool(tool, arguments)
        assert not (await client.call_tool("get_issue", {"number": 8})).is_error  # it goes on
    assert seen.tools == ["get_issue", "create_issue", "get_issue"]
    for _, headers, _ in seen.requests:
        assert headers["authorization"].startswith("Bearer ")
        assert headers["accept-encoding"] == "identity"
    modern = mode == "auto"
    assert seen.methods()[0] == ("server/discover" if modern else "initialize")
    assert ("DELETE" in seen.methods()) is (not modern and not server.startswith("stateless"))


def details_of(headers: dict[str, str]) -> dict[str, Any]:
    payload = headers["authorization"].split(".")[1]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    [details] = claims["authorization_details"]
    return dict(details["mcp"])


async def test_a_credential_is_for_the_route_or_for_the_one_tool(fleet: McpFleet) -> None:
    seen = fleet.seen["json"]
    seen.requests.clear()
    async with fleet.connect("json", "reverse", mode="legacy") as client:
        await client.list_tools()
        await client.call_tool("get_issue", {"number": 7})
        await client.call_tool("create_issue", {"title": "x"})
    found = {
        (json.loads(body)["method"], json.dumps(details_of(headers)))
        for method, headers, body in seen.requests
        if method == "POST"
    }
    base = json.dumps({"methods": sorted(BASE)})
    assert found == {
        ("initialize", base),
        ("notifications/initialized", base),
        ("tools/list", base),
        ("tools/call", json.dumps({"methods": ["tools/call"], "tools": ["get_*"]})),
        ("tools/call", json.dumps({"methods": ["tools/call"], "tools": ["create_issue"]})),
    }


@pytest.mark.parametrize(("server", "mode"), [("events", "legacy"), ("events", "auto")])
async def test_progress_arrives_as_it_is_made(fleet: McpFleet, server: str, mode: Any) -> None:
    steps: list[float] = []

    async def progress(done: float, _total: float | None, _message: str | None) -> None:
        steps.append(done)

    async with fleet.connect(server, "reverse", mode=mode) as client:
        result = await client.call_tool("get_slowly", {}, progress_callback=progress)
        assert result.content[0].text == "done"  # type: ignore[union-attr]
    assert steps == [1, 2, 3]


async def test_a_server_may_ask_back(fleet: McpFleet) -> None:
    """Its request comes on the call's stream; the answer is a POST without a method."""

    async def answer(_context: Any, _params: Any) -> ElicitResult:
        return ElicitResult(action="accept", content={"sure": True})

    seen = fleet.seen["events"]
    seen.requests.clear()
    async with fleet.connect(
        "events", "reverse", mode="legacy", elicitation_callback=answer
    ) as client:
        result = await client.call_tool("get_confirmed", {})
        assert result.content[0].text == "accept True"  # type: ignore[union-attr]
    assert "response" in seen.methods()


async def test_news_come_on_the_stream_of_a_get(fleet: McpFleet) -> None:
    news: asyncio.Queue[Any] = asyncio.Queue()

    async def handle(message: Any) -> None:
        await news.put(message)

    seen = fleet.seen["events"]
    async with fleet.connect("events", "reverse", mode="legacy", message_handler=handle) as client:
        await fleet.until(lambda: _true("GET" in seen.methods()), "the stream is open")
        await client.call_tool("get_news", {})
        async with asyncio.timeout(10):
            while getattr(await news.get(), "method", "") != "notifications/tools/list_changed":
                pass


async def test_news_come_on_the_stream_of_a_listener(fleet: McpFleet) -> None:
    async with (
        fleet.connect("events", "reverse") as client,
        client.listen(tools_list_changed=True) as subscription,
    ):
        await client.call_tool("get_news", {})
        async with asyncio.timeout(10):
            assert type(await anext(aiter(subscription))).__name__ == "ToolsListChanged"


async def _true(holds: bool) -> bool:
    return holds


async def test_a_list_that_is_sent_again_is_cut_down_too(fleet: McpFleet) -> None:
    """A resumed stream (`Last-Event-ID`) brings the list in answer to a GET."""
    url = f"{fleet.url}/resumable/mcp"
    version = "2025-11-25"
    headers = {"Accept": "application/json, text/event-stream", "MCP-Protocol-Version": version}
    async with httpx2.AsyncClient(timeout=20, trust_env=False, headers=headers) as http:

        async def send(method: str, **members: Any) -> httpx2.Response:
            message = {"jsonrpc": "2.0", "method": method, **members}
            response = await http.post(url, json=message)
            assert response.status_code in {200, 202}
            return response

        client = {"name": "c", "version": "1"}
        params = {"protocolVersion": version, "capabilities": {}, "clientInfo": client}
        opened = await send("initialize", id=1, params=params)
        http.headers["Mcp-Session-Id"] = opened.headers["mcp-session-id"]
        await send("notifications/initialized")
        listed = (await send("tools/list", id=2)).text
        assert "get_issue" in listed
        assert "delete_issue" not in listed
        first = next(line for line in listed.splitlines() if line.startswith("id: "))
        resume = {"Last-Event-ID": first.removeprefix("id: "), "Accept": "text/event-stream"}
        async with http.stream("GET", url, headers=resume) as stream:
            assert stream.status_code == 200
            async for line in stream.aiter_lines():
                if "get_issue" in line:
                    break
        again = json.loads(line.removeprefix("data: "))
        assert [tool["name"] for tool in again["result"]["tools"]] == ALLOWED
        assert (await http.delete(url)).status_code == 200


async def test_the_record_names_the_tools_and_no_arguments(fleet: McpFleet) -> None:
    async with fleet.connect("json", "reverse", mode="legacy") as client:
        await client.call_tool("create_issue", {"title": CANARY})
        with pytest.raises(MCPError):
            await client.call_tool("delete_issue", {"number": 4711})
        with pytest.raises(MCPError):
            await client.call_tool("create_label", {"name": CANARY})
    await fleet.delivered()
    events = [
        event["data"]
        for event in fleet.events("valetkey.call.decision.v1")
        if event["data"]["api"]["service"]["name"] == "json"
    ]
    found = [
        (data["policy"]["uid"], data["unmapped"].get("code", ""), data["unmapped"].get("mcp"))
        for data in events[-8:]
    ]
    call = {"method": "tools/call"}
    expected = [
        ("json-base", "", {"method": "initialize"}),
        ("json-base", "", {"method": "notifications/initialized"}),
        ("json-write", "", call | {"tool": "create_issue"}),
        ("", "mcp.no_match", call | {"tool": "delete_issue"}),
        ("json-write", "grant.condition", call | {"tool": "create_label"}),
        ("json-stream", "", None),
    ]
    for each in expected:
        assert each in found
    assert CANARY not in json.dumps(fleet.events())
    assert "4711" not in json.dumps([data["unmapped"] for data in events])
    assert await fleet.metric("valetkey_mcp_hidden_tools_total") > 0
    assert (await fleet.verify()).exit_code == 0

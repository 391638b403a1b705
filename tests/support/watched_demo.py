"""The demo with what its story has no use for: streams, tools, people that are told, a receiver.

The programs are the demo's own; settings have a target more, and who is told of approvals and of
what has ended. All of that is one server in the test's process.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import secrets
import ssl
import threading
import time
import urllib.parse
from collections.abc import Coroutine
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import trustme
import yaml
from aiohttp import WSMsgType, web
from websockets.sync.client import connect

from tests.support.pods import EXAMPLE
from tests.support.ports import free_port
from tests.support.secret_volume import Pair, SecretVolume
from tests.support.waiting import until_sync
from valetkey.cli.demo.agent import Client
from valetkey.cli.demo.identity import AGENT, USER, WORKLOADS, write_private
from valetkey.cli.demo.stage import Stage
from valetkey.contracts import oauth
from valetkey.contracts.dpop import ProofKey

TOOLS: Final = "https://tools.demo.example"
SIEM: Final = "spiffe://demo.example/ns/security/sa/siem"
_SCOPE: Final = "tools:use"
_ROUTES: Final[list[dict[str, Any]]] = [
    {"id": "tools-stream", "match": {"methods": ["GET"], "path": "/stream"}},
    {
        "id": "tools-echo",
        "match": {"methods": ["GET"], "path": "/echo"},
        "upgrade": ["websocket"],
    },
    {"id": "tools-closed", "match": {"methods": ["GET"], "path": "/closed"}},
    {"id": "tools-list", "match": {"path": "/mcp", "mcp": {"methods": ["tools/list"]}}},
    {
        "id": "tools-call",
        "match": {"path": "/mcp", "mcp": {"methods": ["tools/call"], "tools": ["get_*"]}},
    },
]


class WatchedStage(Stage):
    """`Stage`, with the additions of this module. ``beside`` runs for as long as it does."""

    def __init__(self, directory: Path) -> None:
        self.beside = Beside()
        self.forward_port = free_port()
        self.injector_port = free_port()
        self.injector_admin_port = free_port()
        super().__init__(directory)
        self._open = ExitStack()
        self._ca = trustme.CA()
        self.certificate = SecretVolume(directory / "injector-tls")
        self.certificate.put(self._pair())
        self._write("injector", self._injector_settings())
        self.injector = self._program("injector", f"http://127.0.0.1:{self.injector_admin_port}")
        self.programs = (*self.programs, self.injector)

    def __enter__(self) -> Self:
        self.beside.start()
        return super().__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._open.close()
        super().__exit__(kind, error, trace)
        self.beside.stop()

    def _write(self, name: str, settings: dict[str, Any]) -> None:
        getattr(self, f"_add_to_{name}", lambda _settings: None)(settings)
        super()._write(name, settings)

    def _add_to_grants(self, settings: dict[str, Any]) -> None:
        own = {"id": "agent-uses-tools", "workload": AGENT, "issuer": WORKLOADS, "target": "tools"}
        settings["grants"] = [*settings["grants"], {**own, "scopes": [_SCOPE]}]

    def _add_to_broker(self, settings: dict[str, Any]) -> None:
        secret = self.directory / "webhook.secret"
        write_private(secret, "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode())
        # So short that what lasts outlives its credential, and is decided on again.
        settings["targets"]["tools"] = {"audience": TOOLS, "credential": "bearer", "ttl": "3s"}
        settings["approvals"]["notices"] = {
            "webhooks": [
                {
                    "name": "people",
                    "url": f"{self.beside.url}/notices",
                    "secret_file": str(secret),
                }
            ]
        }
        settings["feed"] = {
            "receivers": [
                {
                    "issuer": WORKLOADS,
                    "subject": SIEM,
                    "audience": "https://siem.demo.example",
                    "bearer": True,
                    "push": [f"{self.beside.url}/events"],
                }
            ]
        }

    def _add_to_proxy(self, settings: dict[str, Any]) -> None:
        settings["targets"]["tools"] = {
            **settings["targets"]["tickets"],
            "url": self.beside.url,
            "audience": TOOLS,
            "prefix": "/tools",
        }
        own = {"target": "tools", "scopes": [_SCOPE]}
        settings["routes"] = [*settings["routes"], *({**route, **own} for route in _ROUTES)]
        # A listener for tunnels tells targets apart by their hosts.
        tickets = settings["targets"]["tickets"]
        tickets["url"] = tickets["url"].replace("127.0.0.1", "localhost")
        forward = {"bind": f"127.0.0.1:{self.forward_port}", "mode": "forward"}
        settings["listeners"] = [*settings["listeners"], forward]
        settings["interception"] = {}

    def _injector_settings(self) -> dict[str, Any]:
        """The example's, but for where it listens: no Kubernetes is needed for reviews."""
        settings: dict[str, Any] = yaml.safe_load(EXAMPLE.read_text())
        settings["pods"]["kubernetes"] = "1.31"
        settings["webhook"] = {
            "bind": f"127.0.0.1:{self.injector_port}",
            "admin": f"127.0.0.1:{self.injector_admin_port}",
            "tls": self.certificate.settings,
            "linger": "0s",
        }
        return settings

    def _pair(self) -> Pair:
        return Pair.of(self._ca, "localhost")

    # --- traffic ------------------------------------------------------------------------------

    def review(self, path: str, document: Any) -> bool | None:
        """Whether the injector lets a pod be, as it answers an API server; nothing for no review."""
        context = ssl.create_default_context(cadata=self._ca.cert_pem.bytes().decode())
        asked = {
            "uid": "7c8c1f7e-0000-4000-8000-000000000001",
            "kind": {"group": "", "version": "v1", "kind": "Pod"},
            "operation": "CREATE",
            "namespace": "agents",
            "object": document,
        }
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": asked}
        with closing(
            http.client.HTTPSConnection("localhost", self.injector_port, context=context)
        ) as api_server:
            body = json.dumps(review if document is not None else {})
            api_server.request("POST", path, body, {"Content-Type": "application/json"})
            answer = json.loads(api_server.getresponse().read())
        return answer["response"]["allowed"] if "response" in answer else None

    def exchange_the_injector_s_certificate(self) -> None:
        """By one that can't be used, which is noticed, and then by a good one."""
        good, before = self._pair(), self._injector_log("certificate_unusable")
        self.certificate.put(Pair(good.certificate, self._pair().key))
        until_sync(
            lambda: self._injector_log("certificate_unusable") > before, "the bad one is noticed"
        )
        before = self._injector_log("certificate_taken_up")
        self.certificate.put(good)
        until_sync(
            lambda: self._injector_log("certificate_taken_up") > before, "the good one is taken up"
        )

    def _injector_log(self, event: str) -> int:
        return self.injector.log.read_text().count(f'"{event}"')

    def have_events_pushed(self) -> None:
        """What a SIEM asks of the broker: events, to the place that settings name (RFC 8935)."""
        delivery = {"method": "urn:ietf:rfc:8935", "endpoint_url": f"{self.beside.url}/events"}
        token = self.workloads.token(SIEM, self.broker_url)
        status, body = _post(
            self.broker_port, "/ssf/streams", {"delivery": delivery}, f"Bearer {token}"
        )
        assert status == 201, body

    def open_streams(self) -> None:
        """One of events and one WebSocket, which stay open until the end."""
        events = self._open.enter_context(
            closing(http.client.HTTPConnection("127.0.0.1", self.proxy_port, timeout=60))
        )
        events.request("GET", "/tools/stream")
        answer = events.getresponse()
        assert answer.status == 200
        assert answer.readline() == b": still there\n"
        socket = self._open.enter_context(connect(f"ws://127.0.0.1:{self.proxy_port}/tools/echo"))
        socket.send("hello")
        assert socket.recv(60) == "hello"

    def change_settings(self) -> None:
        """Have the sidecar take up its file."""
        (self.directory / "config/proxy.yaml").touch()

    def revoke(self) -> None:
        """Give back the credential that the last list of tools was fetched with (RFC 7009)."""
        form = {
            "client_assertion_type": oauth.ASSERTION_JWT_BEARER,
            "client_assertion": self.workloads.token(AGENT, self.broker_url),
            "token": self.beside.token,
        }
        key, nonce = ProofKey(), ""
        for _ in range(2):  # RFC 9449 §8: the first proof learns the nonce
            proof = key.proof(
                method="POST",
                url=f"{self.broker_url}/revoke",
                jti=secrets.token_urlsafe(16),
                now=int(time.time()),
                nonce=nonce,
            )
            headers = {"Content-Type": "application/x-www-form-urlencoded", "DPoP": proof}
            with closing(http.client.HTTPConnection("127.0.0.1", self.broker_port)) as connection:
                connection.request("POST", "/revoke", urllib.parse.urlencode(form), headers)
                answer = connection.getresponse()
                nonce = answer.getheader("DPoP-Nonce", "")
        assert answer.status == 200

    def list_tools(self) -> list[str]:
        """The tools that the agent is shown, of two that the server has."""
        request = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
        status, body = _post(self.proxy_port, "/tools/mcp", request)
        assert status == 200, body
        return [tool["name"] for tool in json.loads(body)["result"]["tools"]]

    def ask_for_approval(self, ticket: int) -> threading.Thread:
        """A call that is held until it is over that nobody decides; the thread is its caller."""
        headers = {"X-Valetkey-Subject": self.people.token(USER, self.broker_url)}
        agent = Client(self.proxy_port)
        caller = threading.Thread(
            target=agent.call,
            args=("POST", f"/tickets/api/tickets/{ticket}/close", headers),
            daemon=True,
        )
        caller.start()
        return caller


def _post(port: int, path: str, document: Any, authorization: str = "") -> tuple[int, bytes]:
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=60)) as connection:
        headers = {"Content-Type": "application/json", "Accept": "application/json"}
        if authorization:
            headers["Authorization"] = authorization
        connection.request("POST", path, json.dumps(document), headers)
        answer = connection.getresponse()
        return answer.status, answer.read()


class Beside:
    """Server of tools and streams, and receiver of notices and events, in a thread of its own."""

    def __init__(self) -> None:
        self._port = free_port()
        self.url = f"http://127.0.0.1:{self._port}"
        self.told: dict[str, int] = {"notices": 0, "events": 0}
        self.token = ""
        """What the last list of tools was asked for with."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def start(self) -> None:
        app = web.Application()
        app.router.add_post("/notices", self._tell("notices", 204))
        app.router.add_post("/events", self._tell("events", 202))
        app.router.add_get("/stream", self._stream)
        app.router.add_get("/echo", self._echo)
        app.router.add_post("/mcp", self._mcp)
        app.router.add_get("/closed", self._closed)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        self._thread.start()
        self._run(self._serve())

    def stop(self) -> None:
        self._run(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(60)
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _serve(self) -> None:
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self._port).start()

    def _tell(self, what: str, status: int) -> Any:
        async def take(_request: web.Request) -> web.Response:
            self.told[what] += 1
            return web.Response(status=status)

        return take

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        while True:
            await response.write(b": still there\n\n")
            await asyncio.sleep(0.5)

    async def _echo(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type is WSMsgType.TEXT:
                await socket.send_str(message.data)
        return socket

    async def _closed(self, _request: web.Request) -> web.Response:
        return web.Response(status=401)

    async def _mcp(self, request: web.Request) -> web.Response:
        self.token = request.headers["Authorization"].removeprefix("Bearer ")
        asked = await request.json()
        tools = [
            {"name": name, "inputSchema": {"type": "object"}}
            for name in ("get_ticket", "delete_everything")
        ]
        return web.json_response({"jsonrpc": "2.0", "id": asked["id"], "result": {"tools": tools}})

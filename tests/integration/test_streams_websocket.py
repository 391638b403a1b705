"""WebSockets with a real library at both ends: plain, over TLS, and through an opened tunnel."""

from __future__ import annotations

import asyncio
import contextlib
import ssl

import pytest
import pytest_asyncio
import trustme
from websockets.asyncio.client import connect
from websockets.asyncio.server import serve
from websockets.exceptions import ConnectionClosed, ConnectionClosedError, InvalidStatus

from tests.support.fleet import Fleet
from tests.support.ports import free_port
from tests.support.streaming import outcome
from valetkey.contracts import events

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Echo:
    """A WebSocket server that sends back what it gets, or closes as it is told to."""

    def __init__(self):
        self.requests = []
        self.closed = {}

    async def __call__(self, socket):
        self.requests.append(socket.request)
        with contextlib.suppress(ConnectionClosed):
            async for message in socket:
                if message == "fragments":
                    await socket.send(["a", "b", "c"])
                elif isinstance(message, str) and message.startswith("close "):
                    _, code, reason = message.split()
                    await socket.close(int(code), reason)
                else:
                    await socket.send(message)
        self.closed[socket.request.path] = (socket.close_code, socket.close_reason)

    async def is_over(self, fleet, path):
        """Wait until the server has seen the end, too."""

        async def seen():
            return path in self.closed

        await fleet.until(seen, f"the end of {path}")

    def header(self, name):
        return self.requests[-1].headers.get_all(name)


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory, authority):
    """One fleet: reverse and forward listeners, a plain target and one over TLS."""
    directory = tmp_path_factory.mktemp("websocket")
    fleet = Fleet(directory)
    fleet.echo = Echo()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(directory / "target.pem"))
    plain, secure, fleet.forward = (free_port() for _ in range(3))
    fleet.secure = f"wss://localhost:{secure}"
    target = fleet.tree()["targets"]["tickets"]
    fleet.broker_changes = {"token_ttl": "60s"}
    fleet.sidecar_changes = {
        "listeners": [
            {"bind": f"127.0.0.1:{fleet.port}"},
            {"bind": f"127.0.0.1:{fleet.forward}", "mode": "forward"},
        ],
        "timeouts": {"drain": "3s"},
        "interception": {"certificate_file": str(directory / "sidecar.pem")},
        "targets": {
            "tickets": target | {"url": f"http://127.0.0.1:{plain}", "prefix": "/plain"},
            "secure": target
            | {
                "url": f"https://localhost:{secure}",
                "prefix": "/secure",
                "ca_file": str(directory / "target.pem"),
                "allow_networks": ["127.0.0.0/8", "::1/128"],
            },
        },
    }
    fleet.routes = [
        fleet.route(name, methods=["GET"], path="/{rest*}", target=name, upgrade=["websocket"])
        for name in ("tickets", "secure")
    ]
    async with (
        serve(fleet.echo, "127.0.0.1", plain, max_size=4 << 20),
        serve(fleet.echo, "localhost", secure, ssl=context, max_size=4 << 20),
        fleet.running(collector=False),
    ):
        yield fleet


def dial(fleet, way, path, **more):
    """A connection of the workload: through a listener in reverse mode, or a tunnel."""
    more = {"max_size": 4 << 20, "proxy": None} | more
    if way != "tunnel":
        return connect(f"ws://127.0.0.1:{fleet.port}/{way}{path}", **more)
    return connect(
        fleet.secure + path,
        **more
        | {
            "proxy": f"http://127.0.0.1:{fleet.forward}",
            "ssl": ssl.create_default_context(cafile=str(fleet.directory / "sidecar.pem")),
        },
    )


@pytest.mark.parametrize("way", ["plain", "secure", "tunnel"])
async def test_messages_of_every_kind(running, way):
    path = f"/messages-{way}"
    async with dial(running, way, path) as socket:
        messages = ["text", "", "ü" * 1000, b"", b"\x00\xff" * 5, b"x" * (1 << 20), "y" * (1 << 20)]
        for message in messages:
            await socket.send(message)
            assert await socket.recv() == message
        await socket.send(["in ", "three ", "fragments"])
        assert await socket.recv() == "in three fragments"
        await socket.send("fragments")
        assert [piece async for piece in socket.recv_streaming()] == ["a", "b", "c", ""]
        await asyncio.wait_for(await socket.ping(b"data"), 15)
        await socket.close(4321, "enough")
    [credential] = running.echo.header("Authorization")
    assert credential.startswith("Bearer ey")
    ended = await outcome(running, path)
    assert (ended["outcome"], ended["status"]) == ("completed", 101)
    assert ended["sent"] > 1 << 10  # compressed: RFC 7692 was negotiated through us
    assert ended["received"] > 1 << 10
    assert ended["stream"]["kind"] == "websocket"
    await running.echo.is_over(running, path)
    assert running.echo.closed[path] == (4321, "enough")


async def test_what_is_on_record_of_a_handshake(running):
    offered = ["v5.channel.k8s.io", "base64url.bearer.authorization.k8s.io.c2VjcmV0"]
    with contextlib.suppress(ConnectionClosed):
        async with dial(
            running, "plain", "/record", subprotocols=offered, additional_headers={"Cookie": "a=b"}
        ) as socket:
            await socket.send("x")
            await socket.recv()
    assert running.echo.header("Sec-WebSocket-Protocol") == ["v5.channel.k8s.io"]
    assert running.echo.header("Cookie") == []
    [decision] = [
        event["data"]
        for event in await running.spooled(events.TYPE_DECISION)
        if event["data"]["http_request"]["url"]["path"] == "/record"
    ]
    assert decision["unmapped"]["protocol"] == "websocket"
    assert decision["unmapped"]["dropped"] == ["cookie", "sec-websocket-protocol"]
    assert (await outcome(running, "/record"))["outcome"] == "completed"


@pytest.mark.parametrize("way", ["plain", "secure"])
@pytest.mark.parametrize("code", [1000, 1011, 3000, 4999])
async def test_the_target_s_close_arrives_as_it_was_sent(running, way, code):
    async with dial(running, way, "/closes") as socket:
        await socket.send(f"close {code} because")
        with pytest.raises(ConnectionClosed):
            await socket.recv()
        assert (socket.close_code, socket.close_reason) == (code, "because")


@pytest.mark.parametrize("way", ["plain", "tunnel"])
async def test_a_hundred_at_once(running, way):
    async def one(number):
        async with dial(running, way, f"/many/{number}", open_timeout=30) as socket:
            for round_ in range(5):
                message = f"{number}.{round_}" * 100
                await socket.send(message)
                assert await socket.recv() == message
            opened.add(number)
            while len(opened) < 100:
                await asyncio.sleep(0.01)

    opened = set()
    gathered = asyncio.gather(*map(one, range(100)))
    while len(opened) < 100 and not gathered.done():
        await asyncio.sleep(0.01)
    await gathered

    async def all_closed():
        return await running.metric("valetkey_streams", kind="websocket") == 0

    await running.until(all_closed, "no stream is left")


async def test_a_handshake_that_is_not_allowed(running):
    with pytest.raises(InvalidStatus) as refused:
        async with connect(f"ws://127.0.0.1:{running.port}/nowhere/", proxy=None):
            pass
    assert refused.value.response.status_code == 403
    assert b"target.no_match" in refused.value.response.body


async def test_who_is_granted_nothing_loses_the_tunnel(running):
    """The close is no clean one, over TLS neither, and in WebSocket's terms neither."""
    ways = ("plain", "secure", "tunnel")
    async with contextlib.AsyncExitStack() as opened:
        sockets = [
            await opened.enter_async_context(dial(running, way, f"/lost-{way}")) for way in ways
        ]
        for socket in sockets:
            await socket.send("x")
            assert await socket.recv() == "x"
        running.renew("system:serviceaccount:agents:other")  # who is granted nothing
        try:
            for socket in sockets:
                async with asyncio.timeout(15):
                    with pytest.raises(ConnectionClosedError):
                        await socket.recv()
                assert socket.close_code == 1006
        finally:
            running.renew()

            async def allowed():
                async with running.client.get(f"{running.url}/plain/") as response:
                    return response.status == 426  # by the server: it wants an upgrade

            await running.until(allowed, "the identity is back")
    for way in ways:
        ended = await outcome(running, f"/lost-{way}")
        assert (ended["outcome"], ended["code"]) == ("cut", "grant.missing")
        await running.echo.is_over(running, f"/lost-{way}")
        assert running.echo.closed[f"/lost-{way}"][0] == 1006


async def test_tunnels_get_the_time_to_drain_and_are_then_cut_and_recorded(running):
    try:
        async with dial(running, "plain", "/drained") as socket:
            running.sidecar.terminate()

            async def draining():
                return (await running.readyz())[1].get("reason") == "draining"

            await running.until(draining, "the sidecar takes its leave")
            await socket.send("x")
            assert await socket.recv() == "x"
            async with asyncio.timeout(15):
                with pytest.raises(ConnectionClosedError):
                    await socket.recv()
        assert await running.sidecar.ended() == 0
    finally:
        running.sidecar.kill()
        running.sidecar.start()  # for whoever comes next
        await running.up()
    ended = await outcome(running, "/drained")
    assert (ended["outcome"], ended["code"]) == ("cut", "proxy.draining")

"""A handshake on the event loop: the client gets its alert, the caller the reason."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl

import pytest
import uvloop

from tests.support.handshake import client_context
from valetkey.contracts import codes
from valetkey.proxy.intercept.authority import InterceptionAuthority
from valetkey.proxy.intercept.handshake import HandshakeFailed, serve
from valetkey.proxy.settings import InterceptionSettings

HOST = "api.example.com"
OPEN = b"the tunnel is open"


def on_both_loops(test):
    """The programs run on uvloop; what is promised holds on asyncio's own loop too."""

    @pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
    def both(run, authority):
        run(test(authority))

    both.__name__ = test.__name__
    return both


@pytest.fixture
def authority():
    return InterceptionAuthority.open(InterceptionSettings(), instance="sidecar-1")


class Echo(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport

    def data_received(self, data):
        self.transport.write(data)


class Listener(asyncio.Protocol):
    """Opens a tunnel for whoever says something, is TLS in it, and keeps what came of it."""

    def __init__(self, context, within=5.0):
        self._context = context
        self._within = within
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport):
        self._transport = transport

    def data_received(self, _data):
        self._transport.pause_reading()
        self._transport.write(OPEN)
        self._task = asyncio.ensure_future(self._serve(self._transport))

    async def _serve(self, transport):
        echo = Echo()
        try:
            tls = await serve(transport, echo, self._context, within=self._within)
        except OSError as error:
            self.ended.set_result(error)
            transport.abort()
        else:
            echo.transport = tls
            self.ended.set_result(None)


@contextlib.asynccontextmanager
async def listening(context, **options):
    listener = Listener(context, **options)
    server = await asyncio.get_running_loop().create_server(lambda: listener, "127.0.0.1", 0)
    try:
        yield listener, server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


async def tunnel(port):
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"open")
    assert await reader.readexactly(len(OPEN)) == OPEN
    return reader, writer


@on_both_loops
async def test_bytes_flow_both_ways(authority):
    async with listening(authority.context(HOST)) as (listener, port):
        reader, writer = await tunnel(port)
        await writer.start_tls(client_context(authority.pem), server_hostname=HOST)
        assert await listener.ended is None
        writer.write(b"x" * 100_000)
        assert await reader.readexactly(100_000) == b"x" * 100_000
        writer.transport.abort()


@on_both_loops
async def test_another_server_name(authority):
    async with listening(authority.context(HOST)) as (listener, port):
        _, writer = await tunnel(port)
        with pytest.raises(ssl.SSLError) as refused:
            await writer.start_tls(client_context(authority.pem), server_hostname="other.example")
        assert refused.value.reason == "TLSV1_UNRECOGNIZED_NAME"
        error = await listener.ended
    assert isinstance(error, HandshakeFailed)
    assert error.code is codes.INTERCEPTION_SERVER_NAME
    assert error.server_name == "other.example"


@on_both_loops
async def test_a_client_that_does_not_trust_the_ca(authority):
    stranger = InterceptionAuthority.open(InterceptionSettings(), instance="sidecar-1")

    def ask(port):
        # A blocking client sends the alert that an event loop would drop.
        context = client_context(stranger.pem)
        with socket.create_connection(("127.0.0.1", port)) as raw:
            raw.sendall(b"open")
            assert raw.recv(len(OPEN)) == OPEN
            with pytest.raises(ssl.SSLCertVerificationError):
                context.wrap_socket(raw, server_hostname=HOST)

    async with listening(authority.context(HOST)) as (listener, port):
        asking = asyncio.to_thread(ask, port)
        _, error = await asyncio.gather(asking, listener.ended)
    assert isinstance(error, HandshakeFailed)
    assert error.code is codes.INTERCEPTION_UNTRUSTED


@on_both_loops
async def test_plain_http_gets_no_answer_and_a_clear_reason(authority):
    async with listening(authority.context(HOST)) as (listener, port):
        reader, writer = await tunnel(port)
        writer.write(b"GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            assert await reader.read() == b""
        writer.close()
        error = await listener.ended
    assert isinstance(error, HandshakeFailed)
    assert (error.code, error.detail) == (codes.INTERCEPTION_NOT_TLS, "HTTP_REQUEST")


@on_both_loops
async def test_a_client_that_goes_away(authority):
    async with listening(authority.context(HOST)) as (listener, port):
        _, writer = await tunnel(port)
        writer.close()
        error = await listener.ended
    assert isinstance(error, OSError)
    assert not isinstance(error, HandshakeFailed)


@on_both_loops
async def test_a_client_that_says_nothing(authority):
    async with listening(authority.context(HOST), within=0.05) as (listener, port):
        _, writer = await tunnel(port)
        error = await listener.ended
        writer.close()
    assert isinstance(error, ConnectionAbortedError)

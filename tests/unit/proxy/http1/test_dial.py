"""Dialling: what was judged is what is dialled, families take turns, nothing stays open."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import trustme
import uvloop

from valetkey.contracts import codes
from valetkey.contracts.errors import TargetError
from valetkey.proxy.core.addresses import parse_nat64, parse_networks
from valetkey.proxy.http1 import dial
from valetkey.proxy.http1.dial import Dialler
from valetkey.proxy.http1.resolver import Resolver
from valetkey.proxy.limits import Capacity, LimitHits

LOOPBACK = parse_networks(["127.0.0.0/8", "::1/128"])
SOON = 15.0
Run = Callable[[Awaitable[None]], None]


def place(text: str) -> tuple[Any, ...]:
    family = socket.AF_INET6 if ":" in text else socket.AF_INET
    sockaddr = (text, 0, 0, 0) if ":" in text else (text, 0)
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", sockaddr


def capacity(descriptors: int = 1 << 20) -> Capacity:
    return Capacity(LimitHits(), descriptors=descriptors, in_use=0)


class Names:
    """What names resolve to: addresses, or an error. Names not listed do not exist."""

    def __init__(self, **answers: list[str] | Exception) -> None:
        self.answers = {name.replace("__", "-").replace("_", "."): a for name, a in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, _port: None, _family: int, _kind: int) -> list[tuple[Any, ...]]:
        self.asked.append(host)
        answer = self.answers.get(host, socket.gaierror(socket.EAI_NONAME, "no such name"))
        if isinstance(answer, Exception):
            raise answer
        return [place(text) for text in answer]


class Arrived(asyncio.Protocol):
    """The protocol of a connection that was dialled."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport
        self.said = b""
        self.heard = asyncio.get_running_loop().create_future()
        self.lost = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.said += data
        if not self.heard.done():
            self.heard.set_result(None)

    def connection_lost(self, _exc: Exception | None) -> None:
        self.lost.set_result(None)

    @property
    def peer(self) -> str:
        return str(self.transport.get_extra_info("peername")[0])

    async def close(self) -> None:
        self.transport.abort()
        await self.lost


@asynccontextmanager
async def server(
    address: str = "127.0.0.1",
    *,
    port: int = 0,
    context: ssl.SSLContext | None = None,
    served: list[Any] | None = None,
) -> AsyncIterator[int]:
    """Says hello to everybody on that address. Gives its port."""

    async def serve(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if served is not None:
            served.append(writer.get_extra_info("sockname")[0])
        writer.write(b"hello")
        await _reader.read()
        writer.close()

    listening = await asyncio.start_server(serve, address, port, ssl=context)
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        listening.close()


def descriptors() -> int:
    gc.collect()
    return len(list(Path("/proc/self/fd").iterdir()))


async def watched(main: Awaitable[None]) -> None:
    """Await ``main``: no descriptor may be left behind."""
    async with server():
        pass  # libuv takes a spare descriptor with its first stream
    before = descriptors()
    await main
    for _ in range(100):
        if descriptors() <= before:
            return
        await asyncio.sleep(0.01)
    raise AssertionError("a socket was left open")


@pytest.fixture
def run() -> Run:
    """Run on uvloop, as the sidecar does."""
    return lambda main: uvloop.run(watched(main))


async def reach(
    names: Names, host: str, port: int, *, seconds: float = SOON, nat64: Any = None, **more: Any
) -> Arrived:
    dialler = Dialler(Resolver(names), capacity())
    dialler.use_nat64(nat64)
    more.setdefault("allowed", LOOPBACK)
    arrived: Arrived = await dialler.dial(Arrived, host, port, seconds=seconds, **more)
    return arrived


async def refused(code: codes.Code, text: str, attempt: Awaitable[Arrived]) -> None:
    with pytest.raises(TargetError) as error:
        await attempt
    assert error.value.code is code
    assert text in error.value.reason


# --- what is dialled ------------------------------------------------------------------------------


def test_a_name_leads_to_its_address(run: Run) -> None:
    async def main() -> None:
        async with server() as port:
            arrived = await reach(Names(a_example=["127.0.0.1"]), "a.example", port)
            await arrived.heard
            assert (arrived.said, arrived.peer) == (b"hello", "127.0.0.1")
            sock = arrived.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await arrived.close()

    run(main())


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_an_address_is_dialled_as_it_is(host: str, run: Run) -> None:
    async def main() -> None:
        names = Names()
        async with server(host) as port:
            arrived = await reach(names, host, port)
            assert (arrived.peer, names.asked) == (host, [])
            await arrived.close()

    run(main())


def test_one_bad_address_spoils_the_answer(run: Run) -> None:
    """Nothing is dialled, not even the good ones (an answer that mixes them is an attack)."""

    async def main() -> None:
        served: list[Any] = []
        async with server(served=served) as port:
            names = Names(a_example=["127.0.0.1", "169.254.169.254"])
            await refused(
                codes.TARGET_ADDRESS_DENIED,
                "169.254.169.254: a metadata service",
                reach(names, "a.example", port),
            )
        assert served == []

    run(main())


def test_a_name_is_judged_anew_each_time_it_is_dialled(run: Run) -> None:
    """Rebinding: the answer changes between two connects; also the one that is kept is judged."""

    async def main() -> None:
        async with server() as port:
            names = Names(a_example=["127.0.0.1"])
            dialler = Dialler(Resolver(names), capacity())
            first = await dialler.dial(Arrived, "a.example", port, allowed=LOOPBACK, seconds=SOON)
            await first.close()
            await refused(
                codes.TARGET_ADDRESS_DENIED,
                "127.0.0.1: not public",
                dialler.dial(Arrived, "a.example", port, allowed=(), seconds=SOON),
            )
            assert names.asked == ["a.example"]

    run(main())


def test_the_address_that_was_judged_is_dialled_though_the_name_moves_on(run: Run) -> None:
    async def main() -> None:
        served: list[Any] = []
        async with server("127.0.0.1", served=served) as port, server("127.0.0.2", port=port):
            answers = iter([["127.0.0.1"], ["127.0.0.2"]])

            def lookup(_host: str, _port: None, _family: int, _kind: int) -> list[tuple[Any, ...]]:
                return [place(text) for text in next(answers)]

            dialler = Dialler(Resolver(lookup), capacity())
            arrived = await dialler.dial(
                Arrived, "a.example", port, allowed=parse_networks(["127.0.0.1/32"]), seconds=SOON
            )
            await arrived.heard
            assert (arrived.peer, served) == ("127.0.0.1", ["127.0.0.1"])
            await arrived.close()

    run(main())


# --- happy eyeballs -------------------------------------------------------------------------------


def test_the_next_address_is_tried_where_one_refuses(run: Run) -> None:
    async def main() -> None:
        async with server("127.0.0.3") as port:
            names = Names(a_example=["127.0.0.1", "127.0.0.2", "127.0.0.3"])
            arrived = await reach(names, "a.example", port)
            assert arrived.peer == "127.0.0.3"
            await arrived.close()

    run(main())


def test_no_address_answers(run: Run) -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))  # bound, not listening: it refuses
            names = Names(a_example=["127.0.0.1", "::1", "127.0.0.2"])
            await refused(
                codes.TARGET_UNREACHABLE,
                "no address accepts connections",
                reach(names, "a.example", taken.getsockname()[1]),
            )

    run(main())


@pytest.fixture
def connects(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, float]]:
    """The order and times of attempts. Addresses in 127.66.0.0/16 and `2001:db8` never answer."""
    seen: list[tuple[str, float]] = []
    real = uvloop.Loop.sock_connect

    async def sock_connect(self: Any, sock: socket.socket, address: Any) -> Any:
        seen.append((address[0], self.time()))
        if address[0].startswith(("127.66.", "2001:db8")):
            await asyncio.sleep(3600)
        return await real(self, sock, address)

    monkeypatch.setattr(_Loop, "sock_connect", sock_connect, raising=False)
    return seen


class _Loop(uvloop.Loop):
    """A loop whose attempts to connect can be looked at."""


def on_loop(main: Awaitable[None]) -> None:
    with asyncio.Runner(loop_factory=_Loop) as runner:
        runner.run(watched(main))


def test_families_take_turns_with_a_head_start_and_losers_are_closed(
    connects: list[tuple[str, float]],
) -> None:
    """RFC 8305 §4 and §5: interleaved, 250 ms apart."""

    async def main() -> None:
        async with server("127.0.0.1") as port:
            names = Names(a_example=["2001:db8::1", "2001:db8::2", "127.66.0.1", "127.0.0.1"])
            allowed = (*LOOPBACK, *parse_networks(["2001:db8::/32"]))
            arrived = await reach(names, "a.example", port, allowed=allowed)
            assert arrived.peer == "127.0.0.1"
            await arrived.close()

    on_loop(main())
    assert [address for address, _ in connects] == [
        "2001:db8::1", "127.66.0.1", "2001:db8::2", "127.0.0.1",
    ]  # fmt: skip
    gaps = [later - sooner for (_, sooner), (_, later) in pairwise(connects)]
    assert all(gap >= dial._ATTEMPT_DELAY - 0.01 for gap in gaps), gaps


@contextmanager
def deaf(address: str) -> Iterator[int]:
    """A port at which attempts to connect hang: its queue is full (listen(2), backlog)."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family) as listener:
        listener.bind((address, 0))
        listener.listen(0)
        waiting = [socket.socket(family) for _ in range(2)]
        for sock in waiting:
            sock.setblocking(False)
            sock.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]
        for sock in waiting:
            sock.close()


def test_an_attempt_that_hangs_is_given_up_when_another_wins(run: Run) -> None:
    async def main() -> None:
        with deaf("::1") as port:
            async with server("127.0.0.1", port=port):
                for _ in range(3):
                    names = Names(a_example=["::1", "127.0.0.1"])
                    arrived = await reach(names, "a.example", port)
                    await arrived.heard
                    assert (arrived.peer, arrived.said) == ("127.0.0.1", b"hello")
                    await arrived.close()

    run(main())


def test_the_time_limit_is_over_all_attempts(connects: list[tuple[str, float]]) -> None:
    async def main() -> None:
        names = Names(a_example=["127.66.0.1", "127.66.0.2", "127.66.0.3"])
        await refused(
            codes.TARGET_UNREACHABLE,
            "connecting took too long",
            reach(names, "a.example", 9, seconds=0.4),
        )

    on_loop(main())
    assert [address for address, _ in connects] == ["127.66.0.1", "127.66.0.2"]


def test_a_resolver_that_hangs_ends_with_the_time_limit(run: Run) -> None:
    release = threading.Event()

    def lookup(_host: str, _port: None, _family: int, _kind: int) -> list[tuple[Any, ...]]:
        release.wait(SOON)
        return [place("127.0.0.1")]

    async def main() -> None:
        try:
            dialler = Dialler(Resolver(lookup), capacity())
            await refused(
                codes.TARGET_UNREACHABLE,
                "resolving the name took too long",
                dialler.dial(Arrived, "a.example", 9, allowed=LOOPBACK, seconds=0.05),
            )
            assert dialler._capacity.hits.counts == {"timeouts.connect": 1}
        finally:
            release.set()

    run(main())


def test_a_name_that_does_not_exist(run: Run) -> None:
    async def main() -> None:
        await refused(
            codes.TARGET_UNREACHABLE, "does not resolve: no such", reach(Names(), "a.example", 9)
        )

    run(main())


# --- TLS: one name for all ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ca() -> trustme.CA:
    return trustme.CA()


def certified(ca: trustme.CA, *names: str, **more: Any) -> tuple[ssl.SSLContext, list[str | None]]:
    """A server's context for a certificate of these names, and the names that clients ask for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(*names, **more).configure_cert(context)
    asked: list[str | None] = []
    context.set_servername_callback(lambda _tls, name, _context: asked.append(name))
    return context, asked


def trusting(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.hostname_checks_common_name = False
    ca.configure_trust(context)
    return context


# Host dialled, names in the certificate, whether they agree.
CERTIFICATES: list[tuple[str, list[str], bool]] = [
    ("api.example", ["api.example"], True),
    ("api.example", ["other.example"], False),
    ("api.example", ["API.Example"], True),
    ("api.example", ["other.example", "api.example"], True),
    ("api.eu.example", ["*.eu.example"], True),
    ("api.example", ["*.example"], False),  # OpenSSL: not right under a top-level domain
    ("a.api.eu.example", ["*.eu.example"], False),
    ("eu.example", ["*.eu.example"], False),
    ("xn--bcher-kva.example", ["bücher.example"], True),
    ("xn--bcher-kva.example", ["xn--bcher-kva.example"], True),
    ("xn--bcher-kva.example", ["bucher.example"], False),
    ("xn--bcher-kva.eu.example", ["*.eu.example"], True),
    ("127.0.0.1", ["127.0.0.1"], True),
    ("127.0.0.1", ["127.0.0.2"], False),
    ("127.0.0.1", ["localhost"], False),
    ("::1", ["::1"], True),
    ("::1", ["127.0.0.1"], False),
]


@pytest.mark.parametrize(
    ("host", "names", "agree"), CERTIFICATES, ids=[f"{h} by {n}" for h, n, _ in CERTIFICATES]
)
def test_the_certificate_must_be_the_hosts(
    host: str, names: list[str], agree: bool, ca: trustme.CA, run: Run
) -> None:
    context, asked = certified(ca, *names)

    async def main() -> None:
        async with server(host if ":" in host else "127.0.0.1", context=context) as port:
            known = Names()
            known.answers[host] = ["127.0.0.1"]
            attempt = reach(known, host, port, context=trusting(ca))
            if not agree:
                await refused(codes.TARGET_TLS, "mismatch, certificate is not valid for", attempt)
                return
            arrived = await attempt
            await arrived.heard
            assert arrived.said == b"hello"
            await arrived.close()

    run(main())
    # RFC 6066 §3: the name, in ASCII; an address is no name.
    assert asked == [None if host in {"127.0.0.1", "::1"} else host]


def test_a_common_name_is_no_name(ca: trustme.CA, run: Run) -> None:
    """RFC 9525 §2."""
    context, _ = certified(ca, "127.0.0.9", common_name="api.example")

    async def main() -> None:
        async with server(context=context) as port:
            await refused(
                codes.TARGET_TLS,
                "mismatch, certificate is not valid for",
                reach(Names(api_example=["127.0.0.1"]), "api.example", port, context=trusting(ca)),
            )

    run(main())


def test_an_authority_that_is_not_trusted(ca: trustme.CA, run: Run) -> None:
    context, _ = certified(trustme.CA(), "api.example")

    async def main() -> None:
        async with server(context=context) as port:
            await refused(
                codes.TARGET_TLS,
                "unable to get local issuer certificate",
                reach(Names(api_example=["127.0.0.1"]), "api.example", port, context=trusting(ca)),
            )

    run(main())


def test_a_handshake_that_is_reset_leads_to_the_next_address(ca: trustme.CA, run: Run) -> None:
    context, _ = certified(ca, "api.example")

    def rudely(listener: socket.socket) -> None:
        sock, _ = listener.accept()
        sock.recv(1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        sock.close()

    async def main() -> None:
        async with server("127.0.0.2", context=context) as port:
            with socket.create_server(("127.0.0.1", port)) as listener:
                rude = threading.Thread(target=rudely, args=(listener,))
                rude.start()
                names = Names(api_example=["127.0.0.1", "127.0.0.2"])
                arrived = await reach(names, "api.example", port, context=trusting(ca))
                assert arrived.peer == "127.0.0.2"
                await arrived.close()
                await asyncio.to_thread(rude.join, SOON)

    run(main())


@pytest.mark.parametrize("seconds", [0.0, 0.001, 0.05])
def test_a_time_limit_in_the_handshake_leaves_no_socket(
    seconds: float, ca: trustme.CA, run: Run
) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            names = Names(api_example=["127.0.0.1"])
            await refused(
                codes.TARGET_UNREACHABLE,
                "took too long",
                reach(
                    names,
                    "api.example",
                    silent.getsockname()[1],
                    context=trusting(ca),
                    seconds=seconds,
                ),
            )

    run(main())


def test_giving_up_while_the_loop_takes_the_socket_closes_it_once(run: Run) -> None:
    """A descriptor closed twice could be somebody else's the second time."""

    async def main() -> None:
        async with server() as port:
            for turns in range(12):
                names = Names(a_example=["127.0.0.1"])
                dialler = Dialler(Resolver(names), capacity())
                await dialler._resolver.resolve("a.example")
                task = asyncio.ensure_future(
                    dialler.dial(Arrived, "a.example", port, allowed=LOOPBACK, seconds=SOON)
                )
                for _ in range(turns):
                    await asyncio.sleep(0)
                task.cancel()
                done = (await asyncio.gather(task, return_exceptions=True))[0]
                fresh = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
                if isinstance(done, Arrived):
                    await done.close()
                del task, done
                gc.collect()
                await asyncio.sleep(0.01)
                for fd in fresh:
                    os.close(fd)  # raises if somebody else did

    run(main())


# --- the network's own NAT64 ----------------------------------------------------------------------

# Under a prefix that the network translates: a public address, and a private one.
PUBLIC, PRIVATE = "2600:db8:64::5db8:d822", "2600:db8:64::a00:7"
IPV4ONLY = ["2600:db8:64::c000:aa", "2600:db8:64::c000:ab", "192.0.0.170", "192.0.0.171"]


def judged(answers: dict[str, Any], host: str, **more: Any) -> tuple[list[str], list[str]]:
    """Addresses that would be dialled, and names that were asked for."""
    names = Names()
    names.answers = answers
    dialler = Dialler(Resolver(names), capacity())
    dialler.use_nat64(more.get("nat64"))

    async def main() -> list[str]:
        return [place[0] for _, place in await dialler._judged(host, more.get("allowed", ()))]

    return uvloop.run(main()), names.asked


def test_a_translated_private_address_is_found_out() -> None:
    answers = {"a.example": [PRIVATE], "ipv4only.arpa": IPV4ONLY}
    with pytest.raises(TargetError, match="not public") as error:
        judged(answers, "a.example")
    assert error.value.code is codes.TARGET_ADDRESS_DENIED
    answers["a.example"] = [PUBLIC]
    assert judged(answers, "a.example") == ([PUBLIC], ["a.example", "ipv4only.arpa"])


def test_a_network_without_nat64() -> None:
    answers: dict[str, Any] = {"a.example": [PRIVATE]}  # and ipv4only.arpa does not exist
    assert judged(answers, "a.example")[0] == [PRIVATE]
    answers["ipv4only.arpa"] = ["192.0.0.170", "192.0.0.171"]
    assert judged(answers, "a.example")[0] == [PRIVATE]


def test_nobody_asks_where_it_does_not_matter() -> None:
    for addresses in (["93.184.216.34"], ["64:ff9b::5db8:d822"]):
        assert judged({"a.example": addresses}, "a.example") == (addresses, ["a.example"])
    stated = {"a.example": [PUBLIC]}
    assert judged(stated, "a.example", nat64=())[1] == ["a.example"]
    assert judged(stated, "a.example", nat64=parse_nat64(["2600:db8:64::/96"]))[1] == ["a.example"]
    vouched = parse_networks(["2600:db8::/32"])
    assert judged(stated, "a.example", allowed=vouched)[1] == ["a.example"]


def test_while_it_is_not_known_ipv4_is_dialled() -> None:
    unknown = socket.gaierror(socket.EAI_AGAIN, "try again")
    answers: dict[str, Any] = {"a.example": [PUBLIC, "93.184.216.34"], "ipv4only.arpa": unknown}
    assert judged(answers, "a.example")[0] == ["93.184.216.34"]
    answers["a.example"] = [PUBLIC]
    with pytest.raises(TargetError, match=r"network\.nat64") as error:
        judged(answers, "a.example")
    assert error.value.code is codes.TARGET_ADDRESS_DENIED


def test_what_was_found_is_kept_and_outlives_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("valetkey.proxy.http1.resolver._FRESH", 0.0)
    names = Names()
    names.answers = {"a.example": [PRIVATE], "ipv4only.arpa": IPV4ONLY}
    dialler = Dialler(Resolver(names), capacity())

    async def main() -> None:
        for _ in range(2):
            with pytest.raises(TargetError, match="not public"):
                await dialler._judged("a.example", ())
        assert names.asked.count("ipv4only.arpa") == 1
        dialler._translation_until = 0.0  # as if its time were over
        names.answers["ipv4only.arpa"] = socket.gaierror(socket.EAI_AGAIN, "try again")
        with pytest.raises(TargetError, match="not public"):
            await dialler._judged("a.example", ())
        assert names.asked.count("ipv4only.arpa") == 2

    uvloop.run(main())

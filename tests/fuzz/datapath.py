"""The sidecar's data path in this process: real connections, real decisions, real record.

What is not real: the event loop (`HandLoop` runs what is due, and nothing else ever happens), the
transports (lists of bytes) and the broker (every exchange succeeds at once). So one play takes well
under a millisecond, and the pieces in which bytes arrive are exactly those that were given.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import jwt
from cryptography.hazmat.primitives.asymmetric import ec

from tests.fuzz.readers import Read, RequestReader
from tests.support.sidecar import AUDIENCE, LOOPBACK, whole
from tests.support.wire_cases import MAX_FIELDS, MAX_HEAD, PASSED
from valetkey.contracts import events
from valetkey.contracts.secret import Secret
from valetkey.proxy.app import Sidecar
from valetkey.proxy.audit.reader import SegmentTail, segments
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.credentials.injector import Injector
from valetkey.proxy.http1.head_reader import HeadReader
from valetkey.proxy.http1.inbound import WorkloadConnection
from valetkey.proxy.http1.outbound import Place, TargetConnection
from valetkey.proxy.intercept.connect import ConnectTunnels
from valetkey.proxy.settings_file import SettingsFile

OK: Final = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PORT: Final = 65000
TOKEN: Final = "of-the-sidecar"
ENTRIES: Final = ("reverse", "shared", "forward", "plain", "tunnel")
_PLENTY: Final = 16
_EVENTS: Final = 50_000


class Stuck(AssertionError):  # noqa: N818
    """Everything that was due has happened, and the play is not over."""


class HandLoop(asyncio.AbstractEventLoop):
    """Runs callbacks in the order in which they became due. Time does not pass: no timer fires."""

    def __init__(self) -> None:
        self._due: deque[asyncio.Handle] = deque()
        self.failures: list[dict[str, Any]] = []

    def run(self) -> None:
        """Until nothing is due any more."""
        while self._due:
            handle = self._due.popleft()
            if not handle.cancelled():
                handle._run()
        assert not self.failures, self.failures

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        self._due.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_at(
        self, when: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return asyncio.TimerHandle(when, callback, args, self, context)

    def call_later(
        self, delay: float, callback: Any, *args: Any, context: Any = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def time(self) -> float:
        return time.monotonic()

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **more: Any) -> asyncio.Task[Any]:
        return asyncio.Task(coro, loop=self, **more)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.failures.append(context)


class HandTransport(asyncio.Transport):
    """What was written, and what became of it. ``on_write`` sees each write as it comes."""

    def __init__(self, loop: HandLoop, protocol: Any, on_write: Callable[[bytes], None]) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._on_write = on_write
        self.paused = False
        self.half_closed = False
        self.closed = False
        self.reset = False
        """Whether it was ended so that the other side sees it."""

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return ("127.0.0.1", 50000) if name == "peername" else default

    def is_closing(self) -> bool:
        return self.closed

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def get_protocol(self) -> Any:
        return self._protocol

    def write(self, data: bytes) -> None:
        assert not self.half_closed
        if not self.closed:
            self._on_write(data)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.half_closed = True

    def pause_reading(self) -> None:
        self.paused = True

    def resume_reading(self) -> None:
        self.paused = False

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.reset = self.reset or not self.closed
        self.close()


class Upstream:
    """The other end of one connection to the target: reads with h11, answers what it has read."""

    def __init__(self, path: DataPath, connection: TargetConnection) -> None:
        self._path = path
        self._connection = connection
        self._play: Play
        self._reader: RequestReader
        self.transport = HandTransport(path.loop, connection, self._written)
        self.raw = b""

    def _written(self, data: bytes) -> None:
        if not self.raw:
            self._reader = RequestReader()
            self._play = self._path.current
            self._play.upstreams.append(self)
        self.raw += data
        for read in self._reader.feed(data):
            self._play.begun(read)
            if read.complete:
                self._answer(read)
            else:
                self._reader.on_complete = self._answer

    def _answer(self, read: Read) -> None:
        for piece in self._play.answer(read):
            self._path.loop.call_soon(self._give, piece)

    def _give(self, piece: bytes | None) -> None:
        if self.transport.closed:
            return
        if piece is None:
            self._connection.eof_received()
            self.transport.close()
        else:
            self._connection.data_received(piece)


@dataclass
class Decision:
    """A decision as it is on record."""

    allowed: bool
    method: str
    path: str
    code: str


@dataclass
class Play:
    """One connection of the workload, and all that came of it."""

    answer: Callable[[Read], Iterable[bytes | None]]
    said: bytes = b""
    """What the workload got."""
    upstreams: list[Upstream] = field(default_factory=list)
    reads: list[Read] = field(default_factory=list)
    """The requests that the targets read, in the order in which they began."""
    decisions: list[Decision] = field(default_factory=list)
    left: bool = False
    """Whether the workload went away because nothing moved any more."""
    reset: bool = False
    """Whether the sidecar broke the connection off."""

    def begun(self, read: Read) -> None:
        self.reads.append(read)

    def heard(self, data: bytes) -> None:
        self.said += data


class Exchanges:
    """The broker: a credential for everybody. ``subject`` shows in it."""

    async def exchange(self, key: CacheKey, injector: Injector, subject: Secret | None) -> Any:
        return _credential(key, injector, "of-a-user" if subject is not None else TOKEN)


class Dials:
    """The network: every connection comes about at once."""

    def __init__(self, path: DataPath) -> None:
        self._path = path

    async def dial(self, factory: Callable[[], TargetConnection], *_where: Any, **_how: Any) -> Any:
        connection = factory()
        connection.connection_made(Upstream(self._path, connection).transport)
        return connection


class DataPath:
    """A sidecar without its sockets. A context manager: it has a directory of its own."""

    def __init__(self) -> None:
        self.loop = HandLoop()
        self._directory = Path(tempfile.mkdtemp(prefix="datapath-"))
        self.current: Play
        self._unread = False
        """Whether a play that failed has left something on record."""

    def __enter__(self) -> Self:
        root = logging.getLogger()  # a sidecar sets it up for its process, and we are none
        self._logging = root.level, root.handlers[:]
        with self._running():
            self._open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._close()
        root = logging.getLogger()
        root.setLevel(self._logging[0])
        root.handlers[:] = self._logging[1]
        shutil.rmtree(self._directory)

    @contextlib.contextmanager
    def _running(self) -> Iterator[None]:
        """Our loop is the one that runs, for as long as something is played and no longer."""
        asyncio._set_running_loop(self.loop)
        try:
            yield
        finally:
            asyncio._set_running_loop(None)

    def play(
        self,
        pieces: Iterable[bytes],
        entry: str = "reverse",
        *,
        answer: Callable[[Read], Iterable[bytes | None]] = lambda _read: (OK,),
        fresh: bool = True,
        patient: bool = True,
        hasty: bool = False,
    ) -> Play:
        """Let a workload send ``pieces``, then its end.

        ``answer`` gives the pieces of the target's answer to a request, None for its end. ``fresh``:
        no head was read before. A workload that is not ``patient`` leaves when nothing moves, one
        that is ``hasty`` has sent everything before anything else can happen.
        """
        with self._running():
            if self._sidecar.spool.seq > _EVENTS:  # the directory does not grow without end
                self._close()
                self._open()
            if fresh:
                self._forget_heads()
            return self._play(Play(answer), pieces, entry, patient=patient, hasty=hasty)

    def _play(
        self, play: Play, pieces: Iterable[bytes], entry: str, *, patient: bool, hasty: bool
    ) -> Play:
        self.current = play
        self._offer_connections()
        if self._unread:
            self._recorded()
        self._unread = True
        connection = WorkloadConnection(
            self._pep, self._entries[entry], self._tunnels if entry == "forward" else None
        )
        transport = HandTransport(self.loop, connection, play.heard)
        connection.connection_made(transport)
        for piece in pieces:
            self._deliver(transport, piece)
            if not hasty:
                self.loop.run()
        if not transport.closed and not transport.get_protocol().eof_received():
            transport.close()
        self.loop.run()
        if not transport.closed:
            if patient:
                raise Stuck("neither answered nor closed")
            play.left = True
            transport.close()
            self.loop.run()
        play.reset = transport.reset
        play.decisions = self._recorded()
        self._unread = False
        return play

    def _deliver(self, transport: HandTransport, piece: bytes) -> None:
        if transport.closed:
            return
        if transport.paused:
            self.loop.run()
        if transport.paused:
            raise Stuck("reading is held, and nothing is under way")
        transport.get_protocol().data_received(piece)

    # --- the sidecar --------------------------------------------------------------------------

    def _open(self) -> None:
        directory = Path(tempfile.mkdtemp(dir=self._directory))
        claims = {"iss": "https://idp.example", "sub": "bot", "exp": int(time.time()) + 86_400}
        (directory / "token").write_text(
            jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256")
        )
        origin = f"http://127.0.0.1:{PORT}"
        target = {
            "audience": AUDIENCE, "credential": {"kind": "bearer"}, "allow_networks": LOOPBACK,
            "pass_headers": PASSED,
        }  # fmt: skip
        settings = {
            "workload": {"identity": {"file": str(directory / "token")}},
            "broker": {"url": "http://127.0.0.1:1"},
            "spool": {
                "dir": str(directory / "spool"), "segment_size": "64KiB", "max_size": "1GiB",
            },
            "listeners": [
                {"bind": "127.0.0.1:0", "target": "up"},
                {"bind": "127.0.0.1:0", "mode": "forward"},
            ],
            "targets": {
                "up": {**target, "url": origin, "prefix": "/up", "hosts": ["up.example"]},
                "secure": {**target, "url": "https://secure.example"},
            },
            "routes": [
                whole("up"),
                whole("secure"),
                whole("up", id="strict", match={"methods": ["GET"], "path": "/strict/{x}"}),
            ],
            "limits": {"head_size": f"{MAX_HEAD}B", "headers": MAX_FIELDS},
            "log_level": "error",
        }  # fmt: skip
        (directory / "proxy.yaml").write_text(json.dumps(settings))
        self._sidecar = Sidecar(SettingsFile(directory / "proxy.yaml"), self.loop)
        pep = self._pep = self._sidecar.pep
        pep.supply._exchange = Exchanges()
        for way in pep.ways.by_target.values():
            way.pool._dialler = Dials(self)
        self._tunnels = ConnectTunnels(pep, None)
        tail = SegmentTail.open(self._sidecar.spool.current_path)
        assert tail is not None
        self._tail = tail
        self._entries = {
            "reverse": Entry(target="up"),
            "shared": Entry(),
            "forward": Entry(forward=True),
            "plain": Entry(origin=origin),
            "tunnel": Entry(origin="https://secure.example"),
        }
        principal = self._sidecar.identity.principal()
        assert principal is not None, self._sidecar.identity.problem
        for route in pep.snapshot.routes:
            key = principal.key(route, pep.snapshot.policy_digest)
            injector = pep.ways.by_target[route.target].injector
            self._sidecar.cache._entries[key] = _credential(key, injector, TOKEN)

    def _close(self) -> None:
        spool = self._sidecar.spool
        for segment in spool._retired:
            segment.close()
        spool._let_go()

    def _forget_heads(self) -> None:
        limits = self._sidecar.settings.limits
        self._pep.heads = HeadReader(
            max_size=limits.head_size,
            max_fields=limits.headers,
            subject_header=self._sidecar.settings.workload.subject_header,
        )

    def _offer_connections(self) -> None:
        """Idle connections to each target that carried no call yet: none has to be opened."""
        for way in self._pep.ways.by_target.values():
            pool = way.pool
            for used in [connection for connection in pool._idle if connection.used]:
                used.close()
            while len(pool._idle) < _PLENTY:
                connection = TargetConnection(pool)
                connection.connection_made(Upstream(self, connection).transport)
                connection.place = Place.IDLE
                pool._idle.append(connection)
        self.loop.run()

    # --- the record ---------------------------------------------------------------------------

    def _recorded(self) -> list[Decision]:
        """The decisions that were put on record since this was last asked."""
        spool = self._sidecar.spool
        found: list[Decision] = []
        assert spool.keep()
        while self._tail.next <= spool.seq:
            records = self._tail.read(10_000)
            if not records:
                paths = segments(spool.directory)
                tail = SegmentTail.open(paths[paths.index(self._tail.path) + 1])
                assert tail is not None
                self._tail = tail
                while spool._retired:  # no committer runs that would
                    spool._retired.popleft().close()
            for record in records:
                event = json.loads(record.raw)
                data = event["data"]
                if event["type"] == events.TYPE_DECISION and "http_request" in data:
                    found.append(
                        Decision(
                            data["action_id"] == events.OCSF_ACTION_ALLOWED,
                            data["api"]["operation"],
                            data["http_request"]["url"]["path"],
                            data["unmapped"].get("code", ""),
                        )
                    )
        return found


def _credential(key: CacheKey, injector: Injector, token: str) -> Credential:
    far = time.monotonic() + 1e6
    secret = Secret(token)
    return Credential(
        key, secret, injector.line(secret), expires_at=far, refresh_at=far, subject="bot",
        actor="", jti="j", txn="t", policy_digest="p",
    )  # fmt: skip


def cut(raw: bytes, places: Iterable[int]) -> list[bytes]:
    """The pieces between the places, none of them empty."""
    marks = [0, *sorted(place for place in set(places) if 0 < place < len(raw)), len(raw)]
    return [raw[begin:end] for begin, end in pairwise(marks) if begin < end]


def bytewise(raw: bytes) -> list[bytes]:
    return [raw[at : at + 1] for at in range(len(raw))]

"""Two network namespaces with a cable between them: a workload's machine, and the world.

They have no names and leave no files: each is held by one sleeping process and goes away with it,
and the machine's own tables, addresses and `/etc/hosts` are never touched. Sockets that the test
itself opens in a namespace stay there, so servers and probes can live in the test's process; only
what must be another user's is a process of its own.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tests.support.recording import TIMEOUT

T = TypeVar("T")

ROOT: Final = Path(__file__).parents[2]
WORKLOAD_UID: Final = 10001
SIDECAR_UID: Final = 10002
# TEST-NET-2 (RFC 5737) and the documentation prefix (RFC 3849): never routed outside.
POD: Final = {4: "198.51.100.2", 6: "2001:db8:77::2"}
WORLD: Final = {4: "198.51.100.1", 6: "2001:db8:77::1"}
# Everything in these leads to the world: targets, decoys, resolvers, whoever.
ANYWHERE: Final = {4: "203.0.113.0/24", 6: "2001:db8:99::/64"}
TARGET: Final = {4: "203.0.113.10", 6: "2001:db8:99::10"}
DECOY: Final = {4: "203.0.113.66", 6: "2001:db8:99::66"}
RESOLVER: Final = {4: "203.0.113.53", 6: "2001:db8:99::53"}

_CLONE_NEWNET: Final = 0x40000000
_TOOLS: Final = (
    "ip", "unshare", "nsenter", "setpriv", "nft", "iptables-nft", "iptables-legacy", "curl",
)  # fmt: skip


def lacking() -> str:
    """Why namespaces can't be made here, or empty."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [tool for tool in _TOOLS if shutil.which(tool, path=_env()["PATH"]) is None]
    if missing:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(
        ("unshare", "--net", "--mount", "true"), capture_output=True, text=True, check=False
    )
    return tried.stderr.strip()


def _env() -> dict[str, str]:
    return os.environ | {"PATH": f"{os.environ.get('PATH', '/usr/bin:/bin')}:/usr/sbin:/sbin"}


class Namespace:
    """A network namespace with mounts of its own. ``hosts`` are its ``/etc/hosts``."""

    def __init__(self, hosts: Path | None = None) -> None:
        mount = f"mount --bind {hosts} /etc/hosts && " if hosts else ""
        self._holder = subprocess.Popen(
            # The holder ends with this process, however that ends.
            ("setpriv", "--pdeathsig", "KILL", "unshare", "--net", "--mount", "sh", "-c",
             f"{mount}ip link set lo up && echo ready && exec sleep infinity"),
            stdout=subprocess.PIPE,
            env=_env(),
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"

    @property
    def pid(self) -> int:
        return self._holder.pid

    def argv(
        self, *command: str, uid: int = 0, capability: str = "dac_read_search"
    ) -> tuple[str, ...]:
        """The command line that runs ``command`` here as a user without privileges.

        ``uid`` 0 keeps them all. Another user keeps ``capability`` alone: the test's files may lie
        where nobody else can read or write, and that has nothing to do with networks.
        """
        inside = ("nsenter", "--target", str(self.pid), "--net", "--mount")
        if not uid:
            return (*inside, *command)
        kept = f"-all,+{capability}"
        return (
            *inside, "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups",
            f"--inh-caps={kept}", f"--ambient-caps={kept}", f"--bounding-set={kept}",
            "--no-new-privs", *command,
        )  # fmt: skip

    def run(
        self, *command: str, uid: int = 0, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.argv(*command, uid=uid),
            check=check,
            capture_output=True,
            text=True,
            timeout=30,
            env=_env(),
        )

    def inside(self, make: Callable[[], T]) -> T:
        """What ``make`` returns, run by a thread in this namespace: sockets stay in it."""

        def run() -> T:
            libc = ctypes.CDLL(None, use_errno=True)
            with Path(f"/proc/{self.pid}/ns/net").open() as namespace:
                entered = libc.setns(namespace.fileno(), _CLONE_NEWNET) == 0
            assert entered, os.strerror(ctypes.get_errno())
            return make()

        # A thread of its own: the namespace is the thread's, and ends with it.
        with ThreadPoolExecutor(1) as threads:
            return threads.submit(run).result()

    def connect(self, address: str, port: int) -> socket.socket:
        """A connection from here, by the test's own user."""
        return self.inside(lambda: socket.create_connection((address, port), timeout=TIMEOUT))

    def listen(self, address: str, port: int) -> socket.socket:
        """A listener here; ``::`` takes IPv4 as well."""
        return self.inside(
            lambda: socket.create_server(
                (address, port), family=_family(address), dualstack_ipv6=address == "::"
            )
        )

    def close(self) -> None:
        self._holder.kill()
        self._holder.wait(TIMEOUT)
        assert self._holder.stdout is not None
        self._holder.stdout.close()


@contextlib.contextmanager
def two_namespaces(hosts: Path | None = None) -> Iterator[tuple[Namespace, Namespace]]:
    """``(pod, world)``: the pod's only way out is the cable to the world, which is everywhere."""
    with contextlib.ExitStack() as stack:
        pod, world = Namespace(hosts), Namespace(hosts)
        stack.callback(world.close)
        stack.callback(pod.close)
        pod.run("ip", "link", "add", "eth0", "type", "veth", "peer", "name", "eth0",
                "netns", str(world.pid))  # fmt: skip
        for space, own in ((pod, POD), (world, WORLD)):
            space.run("ip", "link", "set", "eth0", "up")
            space.run("ip", "addr", "add", f"{own[4]}/24", "dev", "eth0")
            space.run("ip", "addr", "add", f"{own[6]}/64", "dev", "eth0", "nodad")
        # Servers of the world may take any address, also of those that no device has.
        world.run("sh", "-c", "echo 1 | tee /proc/sys/net/ipv[46]/ip_nonlocal_bind")
        for version in (4, 6):
            pod.run("ip", f"-{version}", "route", "add", "default", "via", WORLD[version])
            # The kernel answers for each address of these networks as for one of its own.
            world.run("ip", f"-{version}", "route", "add", "local", ANYWHERE[version], "dev", "lo")
        # Ways out that machines differ in: here all of them are open to everybody.
        pod.run("sh", "-c", "cd /proc/sys/net/ipv4 && echo 0 2147483647 > ping_group_range"
                " && echo 1 > tcp_fastopen")  # fmt: skip
        yield pod, world


# --- who answers in the world --------------------------------------------------------------------


@dataclass
class Outside:
    """Says ``outside`` to everybody at the given ports, and keeps who came: ``(kind, address)``."""

    world: Namespace
    tcp: tuple[int, ...] = ()
    udp: tuple[tuple[str, int], ...] = ()
    seen: list[tuple[str, str, int]] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._sockets: list[socket.socket] = []
        for port in self.tcp:
            self._serve(self.world.listen("::", port), self._accept)
        for name in self.udp:
            self._serve(self.world.inside(lambda name=name: _datagrams(name)), self._receive)
        return self

    def __exit__(self, *_exc: object) -> None:
        for sock in self._sockets:
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def _serve(self, sock: socket.socket, work: Callable[[socket.socket], None]) -> None:
        self._sockets.append(sock)
        threading.Thread(target=work, args=(sock,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                with sock:
                    self._saw("tcp", sock.getsockname())
                    sock.sendall(b"outside")

    def _receive(self, sock: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, peer = sock.recvfrom(2048)
                if not data:
                    return
                self._saw("udp", sock.getsockname())
                sock.sendto(b"outside", peer)

    def _saw(self, kind: str, name: tuple[Any, ...]) -> None:
        self.seen.append((kind, str(name[0]).removeprefix("::ffff:"), int(name[1])))


def _datagrams(name: tuple[str, int]) -> socket.socket:
    sock = socket.socket(_family(name[0]), socket.SOCK_DGRAM)
    sock.bind(name)
    return sock


def _family(address: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in address else socket.AF_INET


# --- what a user of the pod gets -----------------------------------------------------------------

# Standard library alone, run by whatever user is asked about. Arguments: JSON lists of attempts
# [kind, address, port]; the answers come as JSON: text that was read, or the error's name.
_PROBE: Final = """
import errno, json, socket, sys
def family(address):
    return socket.AF_INET6 if ":" in address else socket.AF_INET
def attempt(kind, address, port):
    protocol = {"mptcp": 262, "icmp": 1 if family(address) == socket.AF_INET else 58}.get(kind, 0)
    type_ = socket.SOCK_DGRAM if kind in ("udp", "icmp") else socket.SOCK_STREAM
    sock = socket.socket(family(address), type_, protocol)
    sock.settimeout(5)
    with sock:
        if kind == "fastopen":
            sock.settimeout(None)
            sock.sendto(b"early", 0x20000000, (address, port))
        else:
            sock.connect((address, port))
        if kind == "udp":
            sock.send(b"hello")
        elif kind == "icmp":
            sock.send((b"\\x08" if protocol == 1 else b"\\x80") + bytes(7))
            return "echo" if sock.recv(100) else ""
        return sock.recv(100).decode()
def result(entry):
    try:
        return attempt(*entry)
    except OSError as error:
        return errno.errorcode.get(error.errno, type(error).__name__)
print(json.dumps([result(entry) for entry in json.loads(sys.argv[1])]))
"""

Attempt = tuple[str, str, int]


def probe(pod: Namespace, uid: int, attempts: list[Attempt]) -> dict[Attempt, str]:
    """What each attempt of a user comes to: what was read, or the name of the error."""
    done = pod.run(sys.executable, "-I", "-S", "-c", _PROBE, json.dumps(attempts), uid=uid)
    return dict(zip(attempts, json.loads(done.stdout), strict=True))

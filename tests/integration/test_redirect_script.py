"""The redirect script, with each kind of rules, in namespaces of its own: who gets where.

A stand-in for the sidecar listens where the script leads; it says where a connection was going.
"""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from tests.support.namespaces import (
    DECOY,
    POD,
    RESOLVER,
    ROOT,
    SIDECAR_UID,
    TARGET,
    WORKLOAD_UID,
    Attempt,
    Namespace,
    Outside,
    lacking,
    probe,
    two_namespaces,
)
from valetkey.proxy.intercept.original_destination import original_destination

SCRIPT = str(ROOT / "config/redirect/redirect.sh")
PORT = 7073
SERVED = 8080
OTHER = 9090
DNS = tuple((address, 53) for address in (*RESOLVER.values(), *DECOY.values()))
try:
    socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262).close()
    MPTCP = ["mptcp"]
except OSError:
    MPTCP = []  # this kernel has no such way out
KINDS = ("nft", "iptables-nft", "iptables-legacy")
REFUSED = {"ECONNREFUSED", "EHOSTUNREACH", "EACCES", "EPERM", "ENETUNREACH"}


@pytest.fixture(scope="module")
def spaces() -> Iterator[tuple[Namespace, Namespace]]:
    if reason := lacking():
        pytest.skip(reason)
    with two_namespaces() as both:
        yield both


@pytest.fixture(scope="module")
def outside(spaces: tuple[Namespace, Namespace]) -> Iterator[Outside]:
    udp = (*DNS, *((address, 443) for address in TARGET.values()))
    with Outside(spaces[1], tcp=(53, 80, 443, SERVED), udp=udp) as outside:
        yield outside


@pytest.fixture(scope="module", autouse=True)
def servers_of_the_pod(spaces: tuple[Namespace, Namespace]) -> Iterator[None]:
    """The stand-in for the sidecar, and a service of the pod that others may call."""
    with contextlib.ExitStack() as stack:
        for address, port in (
            ("127.0.0.1", PORT),
            ("::1", PORT),
            ("127.0.0.1", OTHER),
            ("::1", OTHER),
        ):
            listener = spaces[0].listen(address, port)
            stack.callback(listener.close)
            stack.callback(lambda sock=listener: sock.shutdown(socket.SHUT_RDWR))
            threading.Thread(target=tell, args=(listener,), daemon=True).start()
        yield


def tell(listener: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while True:
            sock, _ = listener.accept()
            with sock:
                found = original_destination(sock)
                sock.sendall(
                    b"was for %s %d" % (found[0].encode(), found[1]) if found else b"direct"
                )


def redirect(pod: Namespace, *arguments: str, check: bool = True) -> str:
    done = pod.run("sh", SCRIPT, *arguments, "--uid", str(WORKLOAD_UID), check=check)
    return done.stdout


def rules(pod: Namespace) -> str:
    """All rules of the namespace, of both kinds, without counters."""
    texts = [pod.run("nft", "--stateless", "list", "ruleset").stdout]
    for tool in ("iptables-legacy-save", "ip6tables-legacy-save"):
        lines = pod.run(tool).stdout.splitlines()
        texts += [line.partition(" [")[0] for line in lines if not line.startswith("#")]
    return "\n".join(texts)


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, spaces: tuple[Namespace, Namespace]) -> Iterator[str]:
    if request.param == "iptables-legacy":
        tried = spaces[0].run("iptables-legacy", "-t", "nat", "-S", check=False)
        if tried.returncode:
            pytest.skip(tried.stderr.strip())  # newer kernels can be without it
    yield request.param
    redirect(spaces[0], "down")


def everywhere(version: int) -> list[Attempt]:
    """What a workload may try, without what is redirected."""
    return [
        ("tcp", TARGET[version], SERVED),
        *((each, TARGET[version], SERVED) for each in MPTCP),
        ("fastopen", TARGET[version], SERVED),
        ("udp", TARGET[version], 443),
        ("udp", RESOLVER[version], 53),
        ("tcp", RESOLVER[version], 53),
        ("icmp", TARGET[version], 0),
        ("tcp", {4: "127.0.0.1", 6: "::1"}[version], OTHER),
    ]


def test_a_workload_gets_to_the_listener_and_nowhere_else(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, _ = spaces
    redirect(pod, "up", "--backend", kind)
    outside.seen.clear()
    for version in (4, 6):
        target, own = TARGET[version], {4: "127.0.0.1", 6: "::1"}[version]
        led = [("tcp", target, 80), ("tcp", target, 443)]
        led += [(each, target, 443) for each in MPTCP]
        found = probe(pod, WORKLOAD_UID, [*led, ("tcp", own, PORT), *everywhere(version)])
        for attempt in led:
            assert found[attempt] == f"was for {target} {attempt[2]}"
        assert found[("tcp", own, PORT)] == "direct"
        for attempt in everywhere(version):
            assert found[attempt] in REFUSED, attempt
    assert outside.seen == []


def test_others_are_not_touched(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, _ = spaces
    redirect(pod, "up", "--backend", kind)
    for uid in (SIDECAR_UID, 0):
        for version in (4, 6):
            attempts = [("tcp", TARGET[version], 80), ("tcp", TARGET[version], 443)]
            attempts += everywhere(version)[:-1]
            found = probe(pod, uid, attempts)
            assert set(found.values()) <= {"outside", "echo"}, found
            own: Attempt = ("tcp", {4: "127.0.0.1", 6: "::1"}[version], OTHER)
            assert probe(pod, uid, [own]) == {own: "direct"}


def test_what_is_allowed_beside_the_listener(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, _ = spaces
    servers = ",".join(RESOLVER.values())
    redirect(pod, "up", "--backend", kind, "--dns", servers, "--loopback", f"{OTHER},9100-9200",
             "--ports", "53,80,8000-8100")  # fmt: skip
    for version in (4, 6):
        own = {4: "127.0.0.1", 6: "::1"}[version]
        found = probe(
            pod,
            WORKLOAD_UID,
            [
                ("udp", RESOLVER[version], 53),
                ("tcp", RESOLVER[version], 53),
                ("tcp", own, OTHER),
                ("udp", DECOY[version], 53),
                ("tcp", DECOY[version], 53),
                ("tcp", TARGET[version], SERVED),
                ("tcp", TARGET[version], 443),
            ],
        )
        assert list(found.values())[:3] == ["outside", "outside", "direct"]
        assert found[("udp", DECOY[version], 53)] in REFUSED
        assert found[("tcp", DECOY[version], 53)] == f"was for {DECOY[version]} 53"
        assert found[("tcp", TARGET[version], SERVED)] == f"was for {TARGET[version]} {SERVED}"
        assert found[("tcp", TARGET[version], 443)] in REFUSED


def test_those_who_call_the_workload_get_their_answers(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, world = spaces
    redirect(pod, "up", "--backend", kind)
    code = (
        "import socket,sys\nl=socket.create_server(('::',8000),family=socket.AF_INET6,"
        "dualstack_ipv6=True)\nprint('ready',flush=True)\n"
        "for _ in range(2):\n s,_=l.accept(); s.sendall(s.recv(9)); s.close()"
    )
    server = subprocess.Popen(
        pod.argv(sys.executable, "-I", "-S", "-c", code, uid=WORKLOAD_UID), stdout=subprocess.PIPE
    )
    with server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"ready\n"
        for version in (4, 6):
            with world.connect(POD[version], 8000) as caller:
                caller.sendall(b"question")
                assert caller.recv(100) == b"question"
    assert server.returncode == 0


def test_a_connection_from_before_is_cut(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, world = spaces
    code = (
        "import socket,sys\ns=socket.create_connection((sys.argv[1],8081))\n"
        "s.sendall(b'before'); print('ready',flush=True); sys.stdin.readline()\n"
        "s.sendall(b'after')\ns.settimeout(5)\nprint(s.recv(9))"
    )
    with world.listen("::", 8081) as listener:
        client = subprocess.Popen(
            pod.argv(sys.executable, "-I", "-S", "-c", code, TARGET[4], uid=WORKLOAD_UID),
            stdout=subprocess.PIPE,
            stdin=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        accepted, _ = listener.accept()
        with accepted:
            assert client.stdout is not None
            assert client.stdout.readline() == b"ready\n"
            redirect(pod, "up", "--backend", kind)
            _, error = client.communicate(b"\n", timeout=20)
            assert b"ConnectionResetError" in error
            accepted.settimeout(0.05)
            assert accepted.recv(100) == b"before"
            with pytest.raises((TimeoutError, ConnectionResetError)):
                accepted.recv(100)


def test_up_twice_is_up_once_and_down_takes_out_what_up_put_in(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, _ = spaces
    # Rules of somebody else, in the very chains that iptables shares.
    for tool in ("iptables-nft", "ip6tables-nft", "iptables-legacy", "ip6tables-legacy"):
        for table in ("nat", "filter"):
            pod.run(tool, "-w", "-t", table, "-F")
            pod.run(tool, "-w", "-t", table, "-A", "OUTPUT", "-p", "tcp", "--dport", "1",
                    "-j", "ACCEPT")  # fmt: skip
    pod.run("nft", "add table inet foreign { chain out { type filter hook output priority 0; }; }")
    before = rules(pod)
    redirect(pod, "up", "--backend", kind, "--ports", "80,443,8080")
    redirect(pod, "up", "--backend", kind)
    once = rules(pod)
    assert once != before
    shown = redirect(pod, "show")
    assert shown.count(f"skuid {WORKLOAD_UID}") == (2 if kind == "nft" else 0)
    assert "443" in shown
    assert "8080" not in shown
    redirect(pod, "up", "--backend", kind)
    assert rules(pod) == once
    redirect(pod, "down")
    assert rules(pod) == before
    redirect(pod, "down")
    redirect(pod, "down", "--backend", kind)
    assert rules(pod) == before
    nothing = pod.run("sh", SCRIPT, "show", "--uid", str(WORKLOAD_UID), check=False)
    assert (nothing.returncode, nothing.stdout) == (1, "")
    found = probe(pod, WORKLOAD_UID, [("tcp", TARGET[4], 80), ("tcp", TARGET[6], SERVED)])
    assert set(found.values()) == {"outside"}


def test_two_workloads_have_rules_of_their_own(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, _ = spaces
    redirect(pod, "up", "--backend", kind)
    with_one = rules(pod)
    pod.run("sh", SCRIPT, "up", "--uid", "10009", "--port", "7074", "--backend", kind)
    pod.run("sh", SCRIPT, "down", "--uid", "10009")
    assert rules(pod) == with_one


def test_dry_run_prints_and_changes_nothing(
    kind: str, spaces: tuple[Namespace, Namespace], outside: Outside
) -> None:
    pod, _ = spaces
    before = rules(pod)
    printed = redirect(pod, "up", "--backend", kind, "--dry-run")
    assert rules(pod) == before
    assert str(WORKLOAD_UID) in printed
    assert "7073" in printed
    if kind == "nft":
        subprocess.run(pod.argv("nft", "--check", "-f", "-"), input=printed, text=True, check=True)

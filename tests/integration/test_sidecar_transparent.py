"""Transparent mode: clients that know of no proxy, as another user, behind real redirect rules.

Everything happens in two namespaces: the pod with workload, sidecar and broker, the world with the
targets. The rules are the script's.
"""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from tests.support.namespaces import (
    ANYWHERE,
    DECOY,
    POD,
    ROOT,
    SIDECAR_UID,
    TARGET,
    WORKLOAD_UID,
    Namespace,
    Outside,
    lacking,
    probe,
    two_namespaces,
)
from tests.support.recording import Recording
from tests.support.sidecar import Sidecar, World, target
from tests.support.waiting import until_sync

TICKETS = "tickets.example.test"
NOTES = "notes.example.test"
OPEN = "open.example.test"
FRESH = "fresh.example.test"
UNKNOWN = "unknown.example.test"
PORT = 7073


@dataclass
class Site:
    pod: Namespace
    world: Namespace
    sidecar: Sidecar
    broker: int
    secure: Recording
    plain: Recording
    trust: Path
    upstream_trust: Path

    def curl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """The workload's curl. Prints body, then the status on a line of its own."""
        return self.pod.run(
            "curl", "-sS", "--noproxy", "*", "--max-time", "10", "--cacert", str(self.trust),
            "-w", "\n%{http_code}", *arguments, uid=WORKLOAD_UID, check=False,
        )  # fmt: skip

    def status(self, *arguments: str) -> tuple[int, str]:
        """Status and, for a problem, its code."""
        done = self.curl(*arguments)
        assert done.returncode == 0, done.stderr
        body, _, status = done.stdout.rpartition("\n")
        return int(status), json.loads(body)["code"] if body.startswith("{") else ""

    def workload(self, code: str, *arguments: str) -> str:
        """Python of the workload's; what it prints."""
        return self.pod.run(
            sys.executable, "-I", "-c", code, *arguments, uid=WORKLOAD_UID
        ).stdout.strip()

    def recorded(self) -> list[dict[str, Any]]:
        """The data of all decisions so far."""
        return [
            event["data"] for event in self.sidecar.events() if "authorizations" in event["data"]
        ]

    def denied(self) -> list[str]:
        return [data["unmapped"]["code"] for data in self.recorded() if "code" in data["unmapped"]]

    def reached(self) -> set[str]:
        """Addresses at which the world was called."""
        return {*self.secure.addresses, *self.plain.addresses}


def redirect(pod: Namespace, action: str, uid: int) -> None:
    script = str(ROOT / "config/redirect/redirect.sh")
    pod.run("sh", script, action, "--uid", str(uid), "--port", str(PORT))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    if reason := lacking():
        pytest.skip(reason)
    directory = tmp_path_factory.mktemp("transparent")
    hosts = directory / "hosts"
    names = (TICKETS, NOTES, OPEN, FRESH, UNKNOWN)
    hosts.write_text(
        "127.0.0.1 localhost\n"
        + "".join(f"{address} {name}\n" for address in TARGET.values() for name in names)
    )
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert(*names).configure_cert(context)
    upstream_trust, trust = directory / "upstream.pem", directory / "trust.pem"
    authority.cert_pem.write_to_path(str(upstream_trust))
    with contextlib.ExitStack() as stack:
        pod, world = stack.enter_context(two_namespaces(hosts))
        fleet = World(directory / "fleet", prefix=pod.argv())
        fleet.start()
        stack.callback(fleet.broker.kill)
        secure = stack.enter_context(Recording(context, listener=world.listen("::", 443)))
        plain = stack.enter_context(Recording(listener=world.listen("::", 80)))
        networks = list(ANYWHERE.values())
        secured = {"allow_networks": networks, "ca_file": str(upstream_trust)}
        sidecar = fleet.sidecar(
            "transparent",
            {
                "notes": target(f"http://{NOTES}", allow_networks=networks),
                "tickets": target(f"https://{TICKETS}", **secured),
                "fresh": target(f"http://{FRESH}", allow_networks=networks),
                "fresh-tls": target(f"https://{FRESH}", **secured),
            },
            listeners=[
                {"bind": f"127.0.0.1:{PORT}", "mode": "transparent"},
                {"bind": f"[::1]:{PORT}", "mode": "transparent"},
            ],
            passthrough=[{"host": OPEN, "allow_networks": networks}],
            interception={"certificate_file": str(trust)},
            timeouts={"head": "1s"},
            prefix=pod.argv(uid=SIDECAR_UID, capability="dac_override"),
        )
        stack.callback(sidecar.kill)
        redirect(pod, "up", WORKLOAD_UID)
        yield Site(
            pod,
            world,
            sidecar,
            int(fleet.url.rpartition(":")[2]),
            secure,
            plain,
            trust,
            upstream_trust,
        )
        assert sidecar.defects() == []
        sidecar.stop()


@pytest.fixture(autouse=True)
def nothing_left(site: Site) -> Iterator[None]:
    for recording in (site.secure, site.plain):
        recording.forget()
        recording.clear()
    yield
    for recording in (site.secure, site.plain):
        recording.clear()


EACH_VERSION = pytest.mark.parametrize("version", [4, 6])


# --- what it is for ------------------------------------------------------------------------------


@EACH_VERSION
@pytest.mark.parametrize("scheme", ["https", "http"])
def test_a_call_of_a_client_that_knows_of_no_proxy(site: Site, scheme: str, version: int) -> None:
    upstream, host, port = {
        "https": (site.secure, TICKETS, 443),
        "http": (site.plain, NOTES, 80),
    }[scheme]
    call = (f"-{version}", f"{scheme}://{host}/a/1", "-H", "Authorization: Bearer stolen")
    assert site.status(*call) == (200, "")
    [request] = upstream.requests
    assert request.values("host") == [host]
    [credential] = request.values("authorization")
    assert credential.startswith("Bearer ey")
    data = site.recorded()[-1]
    assert data["action_id"] == 1
    assert data["src_endpoint"]["ip"] == POD[version]
    assert data["dst_endpoint"] == {"ip": TARGET[version], "port": port}


def test_one_connection_of_the_workload_is_one_of_the_sidecar(site: Site) -> None:
    """The sidecar's own connections go out as they are: redirected, they would come in again."""
    before = len(site.recorded())
    urls = [f"https://{TICKETS}/{n}" for n in range(3)]
    assert site.curl(*urls).returncode == 0
    assert len(site.secure.requests) == 3
    assert len(site.recorded()) == before + 3
    assert {wire.sock.getpeername()[0].removeprefix("::ffff:") for wire in site.secure.wires} <= {
        *POD.values()
    }


def test_the_doctor_sees_which_way_calls_take(site: Site) -> None:
    """By `Via`: the workload's go through the sidecar, those of a user without rules around it."""
    code = (
        "import os,sys;from valetkey.cli.main import main\n"
        "for n in list(os.environ):\n"
        "    if n.lower().endswith('_proxy'): del os.environ[n]\n"
        "os.environ['CURL_CA_BUNDLE']=sys.argv[1]\n"
        "main(['doctor','--json','--transparent','--no-admin','--runtime','curl','--ca-file',"
        "*sys.argv[1:]])"
    )
    urls = ("--url", f"https://{TICKETS}/doctor", "--url", f"http://{NOTES}/doctor")
    for uid, outcomes, status in (
        (WORKLOAD_UID, ["through", "through"], 0),
        (0, ["untrusted", "elsewhere"], 1),
    ):
        done = site.pod.run(
            sys.executable, "-c", code, str(site.trust), *urls, uid=uid, check=False
        )
        assert done.returncode == status, done.stdout + done.stderr
        assert [call["outcome"] for call in json.loads(done.stdout)["calls"]] == outcomes


def test_other_clients(site: Site) -> None:
    code = (
        "import ssl,sys,urllib.request\n"
        "c=ssl.create_default_context(cafile=sys.argv[1])\n"
        "c.verify_flags|=ssl.VERIFY_X509_STRICT\n"
        "o=urllib.request.build_opener(urllib.request.ProxyHandler({}),"
        "urllib.request.HTTPSHandler(context=c))\n"
        "for u in sys.argv[2:]: print(o.open(u,b'body').status)"
    )
    urls = (f"https://{TICKETS}/post", f"http://{NOTES}/post")
    assert site.workload(code, str(site.trust), *urls) == "200\n200"
    for upstream in (site.secure, site.plain):
        assert [request.body for request in upstream.requests] == [b"body"]


def test_a_passthrough_host_is_reached_unseen(site: Site) -> None:
    """The host's own certificate arrives, no credential leaves, and the record has the count."""
    done = site.curl("--cacert", str(site.upstream_trust), f"https://{OPEN}/x", "-H", "X-Key: own")
    assert done.stdout == "ok\n200"
    [request] = site.secure.requests
    assert request.values("authorization") == []
    assert request.values("x-key") == ["own"]
    event = next(event for event in reversed(site.sidecar.events()) if "policy" in event["data"])
    decision = event["data"]
    assert decision["policy"] == {"uid": f"passthrough:{OPEN}"}
    assert decision["api"]["service"] == {"name": f"{OPEN}:443"}
    assert decision["dst_endpoint"] == {"ip": TARGET[6], "port": 443}
    [outcome] = until_sync(
        lambda: [
            other["data"]["unmapped"]
            for other in site.sidecar.events()
            if other["data"]["unmapped"].get("decision") == event["id"]
        ],
        "the tunnel's outcome",
    )
    assert outcome["outcome"] in {"completed", "client_closed"}
    assert min(outcome["sent"], outcome["received"]) > 500


def test_large_bodies_through_an_opaque_tunnel(site: Site) -> None:
    body = bytes(3 << 20)
    site.secure.answer = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    code = (
        "import http.client,ssl,sys\n"
        f"c=http.client.HTTPSConnection('{OPEN}',"
        "context=ssl.create_default_context(cafile=sys.argv[1]))\n"
        "c.request('POST','/',bytes(3<<20)); print(len(c.getresponse().read()))"
    )
    assert site.workload(code, str(site.upstream_trust)) == str(3 << 20)
    assert [len(request.body) for request in site.secure.requests] == [3 << 20]


# --- what a workload may say ---------------------------------------------------------------------


def test_an_allowed_name_at_another_address(site: Site) -> None:
    """What is dialled is what the sidecar resolves: the address that the workload chose is not."""
    for port, scheme in ((443, "https"), (80, "http")):
        lie = ("--resolve", f"{FRESH}:{port}:{DECOY[4]}")
        assert site.status(*lie, f"{scheme}://{FRESH}/a") == (200, "")
        assert site.recorded()[-1]["dst_endpoint"] == {"ip": DECOY[4], "port": port}
    lie = ("--resolve", f"{OPEN}:443:{DECOY[4]}", "--cacert", str(site.upstream_trust))
    assert site.status(*lie, f"https://{OPEN}/a") == (200, "")
    assert len(site.secure.addresses) == 2
    assert len(site.plain.addresses) == 1
    assert site.reached() <= set(TARGET.values())


REFUSED = {
    "an unknown host": ([f"http://{UNKNOWN}/"], 403, "target.no_match"),
    "a passthrough host without TLS": ([f"http://{OPEN}/"], 403, "target.no_match"),
    "a target of https without TLS": ([f"http://{TICKETS}/"], 403, "target.no_match"),
    "another port in Host": (
        [f"http://{NOTES}/", "-H", f"Host: {NOTES}:8080"], 400, "request.ambiguous_host",
    ),
    "http to the port of https": ([f"http://{NOTES}:443/"], 403, "target.no_match"),
    "its Host without the port": (
        [f"http://{NOTES}:443/", "-H", f"Host: {NOTES}"], 400, "request.ambiguous_host",
    ),
    "an absolute-form for TLS": (
        [f"http://{NOTES}/", "--request-target", f"https://{NOTES}:80/"],
        400,
        "request.ambiguous_host",
    ),
    "no Host": ([f"http://{NOTES}/", "-0", "-H", "Host:"], 400, "request.ambiguous_host"),
    "an address as Host": ([f"http://{TARGET[4]}/"], 403, "target.no_match"),
    "CONNECT": (
        [f"http://{NOTES}/", "-X", "CONNECT", "--request-target", f"{TICKETS}:80", "-H",
         f"Host: {TICKETS}:80"],
        405,
        "request.connect_denied",
    ),
    "another Host within TLS": (
        [f"https://{TICKETS}/", "-H", f"Host: {UNKNOWN}"], 421, "request.misdirected",
    ),
    "the listener itself": (["http://127.0.0.1:7073/"], 421, "request.not_redirected"),
    "the listener itself, a target's name": (
        ["http://127.0.0.1:7073/", "-H", f"Host: {NOTES}"], 421, "request.not_redirected",
    ),
    "the listener itself, IPv6": (["http://[::1]:7073/"], 421, "request.not_redirected"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "status", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_a_request_that_is_refused(
    site: Site, arguments: list[str], status: int, code: str
) -> None:
    assert site.status(*arguments) == (status, code)
    assert site.recorded()[-1]["unmapped"]["code"] == code
    assert site.reached() == set()


def test_an_absolute_form_that_agrees_is_taken(site: Site) -> None:
    """RFC 9112 §3.2.2: servers accept it."""
    assert site.status(f"http://{NOTES}/", "--request-target", f"http://{NOTES}/a") == (200, "")
    assert [request.line for request in site.plain.requests] == [b"GET /a HTTP/1.1"]


HELLOS = {
    "an unknown host": ([f"https://{UNKNOWN}/"], "target.no_match", "unrecognized name"),
    "a target on another port": (
        [f"https://{TICKETS}:80/"], "target.no_match", "unrecognized name",
    ),
    "a target without TLS": ([f"https://{NOTES}/"], "target.no_match", "unrecognized name"),
    "no name": ([f"https://{TARGET[4]}/"], "tls.no_server_name", "unrecognized name"),
    "the listener itself": (
        ["--connect-to", "::127.0.0.1:7073", f"https://{TICKETS}/"], "request.not_redirected",
        "access denied",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "code", "alert"), HELLOS.values(), ids=HELLOS.keys())
def test_a_hello_that_is_refused(site: Site, arguments: list[str], code: str, alert: str) -> None:
    done = site.curl(*arguments)
    assert done.returncode == 35  # CURLE_SSL_CONNECT_ERROR
    assert alert in done.stderr
    data = site.recorded()[-1]
    assert data["unmapped"]["code"] == code
    if code == "target.no_match":
        [_, host, *port] = arguments[-1].rstrip("/").replace("//", "").split(":")
        assert data["http_request"]["url"]["hostname"] == host
        assert data["http_request"]["url"]["port"] == int(*port or ["443"])
    assert site.reached() == set()


def test_a_client_that_does_not_trust_the_ca_is_on_record(site: Site) -> None:
    before = len(site.recorded())
    done = site.curl("--cacert", str(site.upstream_trust), f"https://{TICKETS}/")
    assert done.returncode == 60  # CURLE_PEER_FAILED_VERIFICATION
    [data] = until_sync(lambda: site.recorded()[before:], "the refused handshake's record")
    assert data["unmapped"]["code"] == "interception.untrusted"
    assert data["dst_endpoint"]["port"] == 443


# --- bytes, as they come -------------------------------------------------------------------------

# A raw client of the workload's. Arguments: address, port, then pieces in hexadecimal, each sent on
# its own; "-" is an end. Prints what comes back, in hexadecimal.
RAW = """
import socket,sys,time
s=socket.create_connection((sys.argv[1],int(sys.argv[2])),timeout=10)
s.setsockopt(6,1,1)
for piece in sys.argv[3:]:
    if piece=='-': s.shutdown(1)
    else: s.sendall(bytes.fromhex(piece))
    time.sleep(.0002)
got=b''
try:
    while data:=s.recv(4096): got+=data
except ConnectionResetError: got+=b'RESET'
print(got.hex())
"""


def raw(site: Site, *pieces: bytes, port: int = 443, end: bool = False) -> bytes:
    arguments = [piece.hex() for piece in pieces] + (["-"] if end else [])
    return bytes.fromhex(site.workload(RAW, TARGET[4], str(port), *arguments))


def hello(name: str) -> bytes:
    """What CPython sends first."""
    context = ssl.create_default_context()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname=name).do_handshake()
    return outgoing.read()


DECODE_ERROR = bytes.fromhex("15030300020232")


@pytest.mark.parametrize("size", [1, 7, 200])
def test_a_hello_in_pieces_is_answered(site: Site, size: int) -> None:
    """The TLS engine gets the whole hello, though it was looked at many times before."""
    whole_hello = hello(TICKETS)
    pieces = [whole_hello[at : at + size] for at in range(0, len(whole_hello), size)]
    answer = raw(site, *pieces, end=True)
    assert answer[:3] == b"\x16\x03\x03"  # a ServerHello
    assert answer[5] == 2


def test_a_hello_in_many_records_is_answered(site: Site) -> None:
    content = hello(TICKETS)[5:]
    records = b"".join(
        b"\x16\x03\x01" + len(piece).to_bytes(2, "big") + piece
        for piece in (content[at : at + 50] for at in range(0, len(content), 50))
    )
    assert raw(site, records[:300], records[300:], end=True)[5] == 2


@pytest.mark.parametrize(
    ("pieces", "end", "code"),
    [
        ([b"\x16\x03\x01\x00\x02\x02\x00"], False, "tls.hello_malformed"),
        ([b"\x16" + bytes(20_000)], False, "tls.hello_malformed"),
        ([hello(TICKETS)[:-9]], True, "tls.hello_malformed"),
        ([hello(TICKETS)[:-9]], False, "request.timeout"),
        ([b"\x16"], False, "request.timeout"),
    ],
    ids=["no hello", "no TLS", "an end within", "a stall within", "a stall at once"],
)
def test_half_a_hello_is_refused_and_recorded(
    site: Site, pieces: list[bytes], end: bool, code: str
) -> None:
    before = len(site.denied())
    assert raw(site, *pieces, end=end) == DECODE_ERROR
    assert site.denied()[before:] == [code]
    data = site.recorded()[-1]
    assert data["dst_endpoint"] == {"ip": TARGET[4], "port": 443}


def test_what_is_neither_http_nor_tls_is_refused_and_recorded(site: Site) -> None:
    for port in (80, 443):
        answer = raw(site, b"SSH-2.0-OpenSSH_9.6\r\n", b"more\r\n\r\n", port=port, end=True)
        assert answer.startswith(b"HTTP/1.1 400 ")
        data = site.recorded()[-1]
        assert data["unmapped"]["code"] == "request.malformed"
        assert data["dst_endpoint"]["port"] == port


def test_who_leaves_without_a_word_leaves_no_trace(site: Site) -> None:
    before = len(site.recorded())
    assert raw(site, end=True) == b""
    assert len(site.recorded()) == before


def test_waiting_for_the_rest_of_a_hello_costs_nothing(site: Site) -> None:
    """A socket that was peeked at stays readable: twenty of them must not keep the loop awake."""
    code = (
        "import socket,sys,time\n"
        "held=[socket.create_connection((sys.argv[1],443)) for _ in range(20)]\n"
        "for s in held: s.sendall(bytes.fromhex(sys.argv[2]))\n"
        "print('sent',flush=True)\nfor s in held: s.recv(100)"
    )
    client = subprocess.Popen(
        site.pod.argv(sys.executable, "-I", "-S", "-c", code, TARGET[4],
                      hello(TICKETS)[:300].hex(), uid=WORKLOAD_UID),
        stdout=subprocess.PIPE,
    )  # fmt: skip
    with client:
        assert client.stdout is not None
        assert client.stdout.readline() == b"sent\n"
        process = psutil.Process(site.sidecar.program.pid)
        before = process.cpu_times()
        switches = process.num_ctx_switches().voluntary
        time.sleep(0.4)
        after = process.cpu_times()
        assert after.user + after.system - before.user - before.system < 0.2
        assert process.num_ctx_switches().voluntary - switches < 400
    assert site.denied()[-20:] == ["request.timeout"] * 20


# --- around it -----------------------------------------------------------------------------------


@EACH_VERSION
def test_there_is_no_way_around(site: Site, version: int) -> None:
    """The script's own tests try more; here the real sidecar and broker are beside the workload."""
    own = {4: "127.0.0.1", 6: "::1"}[version]
    attempts = [
        ("tcp", TARGET[version], 8443),
        ("udp", TARGET[version], 443),
        ("tcp", own, site.sidecar.admin),
        ("tcp", own, site.broker),
    ]
    with Outside(site.world, tcp=(8443,), udp=((TARGET[version], 443),)) as outside:
        found = probe(site.pod, WORKLOAD_UID, attempts)
        assert set(found.values()) <= {"ECONNREFUSED", "EHOSTUNREACH", "EACCES", "EPERM"}
        assert outside.seen == []


def test_rules_for_the_sidecar_s_own_user_end_in_a_refusal_and_not_in_a_loop(site: Site) -> None:
    """A tunnel to a passthrough host needs no broker: nothing else would stop it."""
    before = len(site.recorded())
    redirect(site.pod, "up", SIDECAR_UID)
    try:
        done = site.curl("--cacert", str(site.upstream_trust), f"https://{OPEN}/")
        assert done.returncode != 0
    finally:
        redirect(site.pod, "down", SIDECAR_UID)
    own = [data for data in site.recorded()[before:] if data["src_endpoint"]["ip"] in POD.values()]
    assert [data["unmapped"].get("code") for data in own] == [None, "request.loop"]
    assert site.reached() == set()
    assert site.status("--cacert", str(site.upstream_trust), f"https://{OPEN}/") == (200, "")

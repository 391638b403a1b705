"""Real clients, each by each way it knows, against httpbin: what comes back is what comes directly.

A client makes the same calls directly and through the sidecar, as a program of its own with its own
defaults. Status, headers and body must be the same, but for what must differ (`Difference`), which
is looked at as well: nothing differs that is not listed there.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode, urlsplit

import pytest
import trustme

from tests.support.clients import (
    NODE_MODULES,
    PYTHON,
    needs_clients,
    upstream_name,
    without_ambient,
)
from tests.support.httpbin import Httpbin
from tests.support.sidecar import Sidecar, World, target, whole
from valetkey.contracts.events import TYPE_DECISION, TYPE_OUTCOME

pytest_plugins = ["tests.support.wire_fixtures"]
# Java's and Go's clients are compiled by the first test that needs them, on a busy machine for minutes.
pytestmark = [needs_clients, pytest.mark.timeout(400)]

PROGRAMS: Final = Path(__file__).parent / "clients"
TEXT: Final = "hé ✓ & = + % \r\n--x\r\n"
LARGE: Final = "0123456789abcdef" * 20_000
BASIC: Final = "Basic " + base64.b64encode(b"someone:of-their-own").decode()
# name, method, path, and what else the call has: headers, and one kind of body.
CALLS: Final[list[tuple[str, str, str, dict[str, Any]]]] = [
    ("query", "GET", "/get?a=1&b=%C3%A9&c=a+b&c=2&d", {"headers": {"X-Seen": "a,  b"}}),
    ("unicode path", "GET", "/anything/%C3%A9t%C3%A9/%E2%9C%93?q=%F0%9F%98%80", {}),
    ("json", "POST", "/post", {"json": {"a": [1, None, TEXT]}}),
    ("form", "POST", "/post", {"form": {"a": "1", "b": TEXT}}),
    ("multipart", "POST", "/post", {"multipart": [
        {"name": "file", "filename": "a.txt", "type": "text/plain", "content": TEXT},
        {"name": "other", "filename": "b.bin", "type": "application/x-b", "content": "b" * 5000},
    ]}),
    ("chunked", "POST", "/post", {"chunks": ["first ", TEXT, "c" * 70_000]}),
    ("large body", "PUT", "/put", {"body": LARGE}),
    ("patch", "PATCH", "/patch", {"body": "x"}),
    ("delete", "DELETE", "/delete", {}),
    ("options", "OPTIONS", "/get", {}),
    ("head", "HEAD", "/range/1024", {}),
    ("redirect", "GET", "/redirect-to?url=%2Fget%3Fa%3Db&status_code=302", {}),
    ("redirect of a POST", "POST", "/redirect-to?url=%2Fpost&status_code=307", {"body": "x"}),
    ("gzip", "GET", "/gzip", {}),
    ("deflate", "GET", "/deflate", {}),
    ("brotli", "GET", "/brotli", {}),
    ("etag", "GET", "/etag/abc", {}),
    ("not modified", "GET", "/etag/abc", {"headers": {"If-None-Match": '"abc"'}}),
    ("precondition failed", "GET", "/etag/abc", {"headers": {"If-Match": '"other"'}}),
    ("range", "GET", "/range/1024?chunk_size=100", {"headers": {"Range": "bytes=10-599"}}),
    ("stream", "GET", "/stream/5", {}),
    ("long stream", "GET", "/stream/100", {}),
    ("drip", "GET", "/drip?duration=0.1&numbytes=5&delay=0", {}),
    ("delay", "GET", "/delay/0.1", {}),
    ("bytes", "GET", "/range/102400?chunk_size=777", {}),
    ("teapot", "GET", "/status/418", {}),
    ("nothing", "GET", "/status/204", {}),
    ("not found", "GET", "/status/404", {}),
    ("error", "GET", "/status/500", {}),
    ("response headers", "GET", "/response-headers?X-A=1&X-A=2&X-B=%2C", {}),
    ("own credential", "GET", "/headers?show_env=1", {"headers": {"Authorization": BASIC}}),
    ("own cookie", "GET", "/cookies", {"headers": {"Cookie": "mine=1"}}),
    ("cookies that are set", "GET", "/cookies/set?flavour=oat", {}),
    ("challenge", "GET", "/basic-auth/someone/else", {}),
]  # fmt: skip


class Difference:
    """All that may and must differ between a direct answer and the sidecar's."""

    # Of this hop, or of the moment.
    HOP = frozenset({"connection", "keep-alive", "transfer-encoding", "date"})
    # What the target saw of the request: these are the client's and of its hop…
    DROPPED = frozenset({"Connection", "Keep-Alive", "Proxy-Connection", "Te"})
    # …and these are not the workload's to send.
    REPLACED = frozenset({"Authorization", "Cookie", "Via"})
    # What targets say of credentials and sessions goes no further.
    STRIPPED = frozenset({"set-cookie", "www-authenticate"})


@dataclass(frozen=True)
class Answer:
    """What a client got. Header names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def value(self, name: str) -> list[str]:
        return [value for each, value in self.headers if each == name]


@dataclass(frozen=True)
class Mode:
    """A way in: where its calls go, with which variables, and by which socket if any."""

    plain: str
    environ: dict[str, str] = field(default_factory=dict)
    socket: str = ""


@dataclass
class Site:
    """httpbin twice, with and without TLS, and a sidecar with every way in."""

    sidecar: Sidecar
    modes: dict[str, Mode]
    directory: Path
    got: dict[str, dict[str, dict[str, Answer]]] = field(default_factory=dict)

    def answers(self, client: str) -> dict[str, dict[str, Answer]]:
        """Mode to call to answer, all made once, as many modes at once as there are."""
        if client not in self.got:
            make = CLIENTS[client]
            getattr(self, _BUILT.get(client, "directory"))  # once, before they all ask for it
            modes = ("direct", *MODES[client])
            with ThreadPoolExecutor(len(modes)) as pool:
                made = pool.map(lambda mode: make(self, self.modes[mode]), modes)
                self.got[client] = dict(zip(modes, made, strict=True))
        return self.got[client]

    def run(self, argv: list[str], mode: Mode, stdin: str, **more: str) -> str:
        """A client's program, with the variables of the mode and no others of the kind."""
        done = subprocess.run(
            argv, input=stdin, env={**without_ambient(), **mode.environ, **more}, capture_output=True,
            text=True, timeout=100, check=False,
        )  # fmt: skip
        assert done.returncode == 0, f"{argv[0]}: {done.stderr[-2000:]}"
        return done.stdout

    @cached_property
    def java_classes(self) -> str:
        classes = self.directory / "java"
        argv = ("javac", "-d", str(classes), str(PROGRAMS / "Client.java"))
        subprocess.run(argv, check=True, timeout=300)
        return str(classes)

    @cached_property
    def go_program(self) -> str:
        program = self.directory / "go-client"
        subprocess.run(
            ("go", "build", "-o", str(program), str(PROGRAMS / "client.go")),
            env={**os.environ, "GOTOOLCHAIN": "local", "GOPROXY": "off", "CGO_ENABLED": "0"},
            check=True,
            timeout=300,
        )
        return str(program)


# --- clients --------------------------------------------------------------------------------------


def calls_for(mode: Mode) -> list[dict[str, Any]]:
    return [
        {"name": name, "method": method, "url": mode.plain + path, **more}
        for name, method, path, more in CALLS
    ]


def read_answers(out: str) -> dict[str, Answer]:
    found = {}
    for line in out.splitlines():
        seen = json.loads(line)
        headers = [(name.lower(), value) for name, value in seen["headers"]]
        found[seen["name"]] = Answer(seen["status"], headers, base64.b64decode(seen["body"]))
    return found


def python(client: str) -> Callable[[Site, Mode], dict[str, Answer]]:
    def make(site: Site, mode: Mode) -> dict[str, Answer]:
        given = json.dumps({"calls": calls_for(mode), "socket": mode.socket})
        argv = [str(PYTHON), str(PROGRAMS / "client.py"), client]
        return read_answers(site.run(argv, mode, given))

    return make


def node(site: Site, mode: Mode) -> dict[str, Answer]:
    given = json.dumps({"calls": calls_for(mode), "socket": mode.socket})
    argv = ["node", "--no-warnings", str(PROGRAMS / "client.js")]
    return read_answers(site.run(argv, mode, given, NODE_PATH=str(NODE_MODULES)))


def go(site: Site, mode: Mode) -> dict[str, Answer]:
    given = json.dumps({"calls": calls_for(mode), "socket": mode.socket})
    return read_answers(site.run([site.go_program], mode, given))


def java(site: Site, mode: Mode) -> dict[str, Answer]:
    lines = []
    for call in calls_for(mode):
        headers = dict(call.get("headers", {}))
        kind, body = "none", b""
        if "json" in call:
            kind, body = "bytes", json.dumps(call["json"]).encode()
            headers["Content-Type"] = "application/json"
        elif "form" in call:
            kind, body = "bytes", urlencode(call["form"]).encode()
            headers["Content-Type"] = "application/x-www-form-urlencoded"
        elif "multipart" in call:
            # The client has no way of its own.
            kind, body = "bytes", b"".join(
                f'--b0undary\r\nContent-Disposition: form-data; name="{part["name"]}"; '
                f'filename="{part["filename"]}"\r\nContent-Type: {part["type"]}\r\n\r\n'
                f"{part['content']}\r\n".encode()
                for part in call["multipart"]
            ) + b"--b0undary--\r\n"  # fmt: skip
            headers["Content-Type"] = "multipart/form-data; boundary=b0undary"
        elif "chunks" in call:
            kind, body = "chunks", "".join(call["chunks"]).encode()
        elif "body" in call:
            kind, body = "bytes", call["body"].encode()
        parts = [call["name"], call["method"], call["url"], kind]
        encoded = [base64.b64encode(part.encode()).decode() for part in parts]
        encoded.append(base64.b64encode(body).decode())
        for pair in headers.items():
            encoded += [base64.b64encode(part.encode()).decode() for part in pair]
        lines.append(" ".join(encoded))
    argv = ["java", "-cp", site.java_classes, "-XX:TieredStopAtLevel=1", "Client"]
    out = site.run(argv, mode, "\n".join(lines) + "\n")
    found = {}
    for line in out.splitlines():
        name, status, body64, *fields = line.split(" ")
        plain = [base64.b64decode(part).decode() for part in fields]
        found[base64.b64decode(name).decode()] = Answer(
            int(status),
            [(key.lower(), value) for key, value in zip(plain[::2], plain[1::2], strict=True)],
            base64.b64decode(body64),
        )
    return found


def curl(site: Site, mode: Mode) -> dict[str, Answer]:
    """One process for all: its answers go to files."""
    with_output = site.directory / f"curl-{len(list(site.directory.iterdir()))}-{id(mode)}"
    with_output.mkdir()
    words: list[str] = []
    for number, call in enumerate(calls_for(mode)):
        words += [] if not number else ["--next"]
        # Encodings that it has no library for are not asked for, and httpbin sends them all the same.
        words += ["--silent", "--show-error", "--globoff", "--max-time", "30"]
        words += ["--dump-header", str(with_output / f"{number}.head")]
        words += ["--suppress-connect-headers", "--output", str(with_output / f"{number}.body")]
        words += ["--head"] if call["method"] == "HEAD" else ["--request", call["method"]]
        if mode.socket:
            words += ["--unix-socket", mode.socket]
        for name, value in call.get("headers", {}).items():
            words += ["--header", f"{name}: {value}"]
        if "json" in call:
            words += ["--header", "Content-Type: application/json"]
            words += ["--data-binary", json.dumps(call["json"])]
        for name, value in call.get("form", {}).items():
            words += ["--data-urlencode", f"{name}={value}"]
        for part in call.get("multipart", []):
            file = with_output / f"{number}-{part['filename']}"
            file.write_bytes(part["content"].encode())
            words += ["--form", f"{part['name']}=@{file};type={part['type']};filename={part['filename']}"]  # fmt: skip
        body = "".join(call["chunks"]) if "chunks" in call else call.get("body")
        if body is not None:
            file = with_output / f"{number}.sent"
            file.write_bytes(body.encode())
            words += ["--data-binary", f"@{file}"]
            words += ["--header", "Transfer-Encoding: chunked"] if "chunks" in call else []
        words.append(call["url"])
    site.run(["curl", *words], mode, "")
    found = {}
    for number, call in enumerate(calls_for(mode)):
        # What comes before the last head are interim answers (100).
        heads = (with_output / f"{number}.head").read_bytes().decode("latin-1")
        head = heads.split("\r\n\r\n")[-2]
        status, *lines = head.split("\r\n")
        fields = (line.partition(":") for line in lines)
        output = with_output / f"{number}.body"
        found[call["name"]] = Answer(
            int(status.split()[1]),
            [(name.lower(), value.strip()) for name, _, value in fields],
            output.read_bytes() if output.exists() and call["method"] != "HEAD" else b"",
        )
    shutil.rmtree(with_output)  # the target's echo of a credential is in there
    return found


CLIENTS: Final[dict[str, Callable[[Site, Mode], dict[str, Answer]]]] = {
    "curl": curl,
    "requests": python("requests"),
    "httpx": python("httpx"),
    "aiohttp": python("aiohttp"),
    "urllib3": python("urllib3"),
    "node": node,
    "go": go,
    "java": java,
}
_ALL: Final = ("reverse", "reverse to TLS", "forward", "forward and TLS", "Unix socket")
# Who knows no Unix sockets: requests and urllib3 by themselves, Java's HttpClient.
MODES: Final = {
    client: _ALL[:4] if client in {"requests", "urllib3", "java"} else _ALL for client in CLIENTS
}
_BUILT: Final = {"go": "go_program", "java": "java_classes"}
_NEEDS: Final = {"curl": "curl", "node": "node", "go": "go", "java": "javac"}


# --- site -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def site(wire_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    directory = tmp_path_factory.mktemp("clients")
    name, address = upstream_name()
    authority = trustme.CA()
    made = authority.issue_cert(name)
    made.private_key_and_cert_chain_pem.write_to_path(str(directory / "upstream.pem"))
    authority.cert_pem.write_to_path(str(directory / "upstream-ca.pem"))
    bundle, unix = directory / "bundle.pem", directory / "s.sock"
    with (
        Httpbin(address, directory) as plain,
        Httpbin(
            address,
            directory,
            certificate=directory / "upstream.pem",
            key=directory / "upstream.pem",
        ) as secure,
    ):
        networks = {"allow_networks": [f"{address}/32"]}
        sidecar = wire_world.sidecar(
            "clients",
            {
                "plain": target(f"http://{name}:{plain.port}", prefix="/plain", **networks),
                "secure": target(
                    f"https://{name}:{secure.port}",
                    prefix="/secure",
                    ca_file=str(directory / "upstream-ca.pem"),
                    **networks,
                ),
                "sessions": target(
                    f"http://{address}:{plain.port}",
                    prefix="/sessions",
                    pass_headers=["Cookie"],
                    **networks,
                ),
            },
            routes=[whole(each) for each in ("plain", "secure", "sessions")],
            listeners=[
                {"bind": "127.0.0.1:0"},
                {"bind": "127.0.0.1:0", "mode": "forward"},
                {"bind": f"unix:{unix}", "target": "plain"},
            ],
            interception={
                "certificate_file": str(directory / "ca.pem"),
                "bundle_file": str(bundle),
                "truststore_file": str(directory / "trust.p12"),
            },
        )
        proxy = f"127.0.0.1:{sidecar.ports[1]}"
        java_options = (
            *(
                f"-D{scheme}.proxy{what}={value}"
                for scheme in ("http", "https")
                for what, value in zip(("Host", "Port"), proxy.split(":"), strict=True)
            ),
            f"-Djavax.net.ssl.trustStore={directory / 'trust.p12'}",
            "-Djavax.net.ssl.trustStorePassword=changeit",
        )
        forward = {
            "http_proxy": f"http://{proxy}",
            "https_proxy": f"http://{proxy}",
            "SSL_CERT_FILE": str(bundle),
            "REQUESTS_CA_BUNDLE": str(bundle),
            "CURL_CA_BUNDLE": str(bundle),
            "NODE_EXTRA_CA_CERTS": str(directory / "ca.pem"),
            "JAVA_TOOL_OPTIONS": " ".join(java_options),
        }
        reverse = f"http://127.0.0.1:{sidecar.ports[0]}"
        modes = {
            "direct": Mode(f"http://{name}:{plain.port}"),
            "reverse": Mode(f"{reverse}/plain"),
            "reverse to TLS": Mode(f"{reverse}/secure"),
            "forward": Mode(f"http://{name}:{plain.port}", forward),
            "forward and TLS": Mode(f"https://{name}:{secure.port}", forward),
            "Unix socket": Mode("http://by.the.socket", socket=str(unix)),
            "sessions": Mode(f"{reverse}/sessions"),
        }
        yield Site(sidecar, modes, directory)
        assert sidecar.defects() == []
        sidecar.stop()


# --- comparison -----------------------------------------------------------------------------------


def differences(call: str, direct: Answer, seen: Answer) -> list[str]:
    """What differs and should not, and what should differ and does not."""
    found = []
    if direct.status != seen.status:
        found.append(f"{call}: status {seen.status} for {direct.status}")
    echoes = _echo(direct)
    if seen.value("via") != ["1.1 valetkey"] or direct.value("via"):
        found.append(f"{call}: Via is {seen.value('via')}")
    ignored = Difference.HOP | Difference.STRIPPED | {"via"}
    if echoes:  # what the target saw is longer or shorter by what differs there
        ignored |= {"content-length"}
    ours, theirs = (
        sorted(pair for pair in answer.headers if pair[0] not in ignored)
        for answer in (seen, direct)
    )
    if ours != theirs:
        found.append(f"{call}: headers {ours} for {theirs}")
    for name in Difference.STRIPPED:
        if seen.value(name):
            found.append(f"{call}: {name} came back")
    if not echoes:
        if direct.body != seen.body:
            found.append(f"{call}: body {seen.body[:200]!r} for {direct.body[:200]!r}")
        return found
    found += _echoed(call, echoes, _echo(seen))
    return found


def _echo(answer: Answer) -> list[dict[str, Any]]:
    """What httpbin says of requests; ``/stream`` says it line by line. Empty if it says nothing."""
    body = _decoded(answer)
    try:
        document = json.loads(body)
    except ValueError:
        try:
            documents = [json.loads(line) for line in body.splitlines()]
        except ValueError:
            return []
    else:
        documents = [document]
    return [each for each in documents if isinstance(each, dict) and {"headers", "cookies"} & set(each)]  # fmt: skip


def _decoded(answer: Answer) -> bytes:
    """The body without its coding: Go, Java and curl leave some to their callers."""
    coding = "".join(answer.value("content-encoding"))
    if not coding or answer.body.startswith(b"{"):
        return answer.body
    if coding == "br":
        code = "import brotlicffi, sys; sys.stdout.buffer.write(brotlicffi.decompress(sys.stdin.buffer.read()))"
        argv = (str(PYTHON), "-c", code)
        return subprocess.run(argv, input=answer.body, stdout=-1, timeout=30, check=True).stdout
    return zlib.decompress(answer.body, zlib.MAX_WBITS | 32)  # gzip and zlib by their heads


def _echoed(call: str, direct: list[dict[str, Any]], seen: list[dict[str, Any]]) -> list[str]:
    found = []
    if len(direct) != len(seen):
        return [f"{call}: {len(seen)} echoes for {len(direct)}"]
    for theirs, ours in zip(direct, seen, strict=True):
        if "headers" in ours:
            found += _requested(call, theirs["headers"], ours["headers"])
        elif ours["cookies"]:
            found.append(f"{call}: the workload's cookies went on")
        # The client's address; the scheme is the target's, the host that of the target.
        left = {"headers", "cookies", "origin", "url"}
        for name in (theirs.keys() | ours.keys()) - left:
            if _plain(theirs.get(name), theirs) != _plain(ours.get(name), ours):
                found.append(f"{call}: {name} differs")
        if "url" in theirs:
            one, other = urlsplit(theirs["url"]), urlsplit(ours["url"])
            if (one.path, one.query) != (other.path, other.query):
                found.append(f"{call}: URL {ours['url']} for {theirs['url']}")
    return found


def _plain(value: Any, echo: dict[str, Any]) -> Any:
    """A value without the boundary that a client made up for this one body."""
    boundary = re.search(r"boundary=([^;\s]+)", echo.get("headers", {}).get("Content-Type", ""))
    return value.replace(boundary[1], "BOUNDARY") if boundary and isinstance(value, str) else value


def _requested(call: str, theirs: dict[str, str], ours: dict[str, str]) -> list[str]:
    """What the target saw of the request: the same, with the credential changed and Via added."""
    found = []
    if not re.fullmatch(r"Bearer [\w-]+\.[\w-]+\.[\w-]+", ours.get("Authorization", "")):
        found.append(f"{call}: no credential arrived")
    if "Cookie" in ours:
        found.append(f"{call}: a cookie arrived")
    # httpbin shows what proxies add if it is asked to.
    if ours.get("Via") != ("1.1 valetkey" if call == "own credential" else None):
        found.append(f"{call}: Via is {ours.get('Via')}")
    left = Difference.DROPPED | Difference.REPLACED | {"Host"}
    for echo in (theirs, ours):
        if "boundary=" in echo.get("Content-Type", ""):
            left |= {"Content-Length"}  # boundaries may differ in length
    one, other = (
        {name: _plain(value, {"headers": echo}) for name, value in echo.items() if name not in left}
        for echo in (theirs, ours)
    )
    for echo in (one, other):
        # undici asks for Brotli over TLS alone.
        codings = echo.get("Accept-Encoding", "").split(", ")
        if echo.get("User-Agent") == "undici":
            echo["Accept-Encoding"] = ", ".join(sorted({*codings} - {"br"}))
    if one != other:
        found.append(f"{call}: the target saw {other} for {one}")
    gone = Difference.DROPPED & ours.keys()
    if gone - {"Connection"}:
        found.append(f"{call}: {gone} went on")
    return found


def each_client_and_mode() -> Any:
    return pytest.mark.parametrize(
        ("client", "mode"),
        [
            pytest.param(
                client,
                mode,
                id=f"{client}, {mode}",
                marks=pytest.mark.skipif(
                    shutil.which(_NEEDS.get(client, "sh")) is None
                    or (client == "node" and not (NODE_MODULES / "undici").exists()),
                    reason=f"{client} is not installed",
                ),
            )
            for client in CLIENTS
            for mode in MODES[client]
        ],
    )


@each_client_and_mode()
def test_what_comes_back_is_what_comes_directly(client: str, mode: str, site: Site) -> None:
    made = site.answers(client)
    direct, seen = made["direct"], made[mode]
    assert list(seen) == list(direct) == [name for name, *_ in CALLS]
    found = [
        difference for name in direct for difference in differences(name, direct[name], seen[name])
    ]
    assert found == []


@pytest.mark.parametrize("client", [client for client in CLIENTS if client not in _NEEDS])
def test_the_comparison_notices(client: str, site: Site) -> None:
    """A direct answer is none of the sidecar's, and a changed one not the target's."""
    made = site.answers(client)
    for name, direct in made["direct"].items():
        assert differences(name, direct, direct), name
        seen = made["forward"][name]
        assert differences(name, direct, seen) == []
        for changed in (
            replace(seen, status=seen.status + 1),
            replace(seen, body=seen.body + b" x"),
            replace(seen, headers=[*seen.headers, ("x-more", "1")]),
            replace(seen, headers=[*seen.headers, ("set-cookie", "a=b")]),
            replace(seen, headers=[pair for pair in seen.headers if pair[0] != "server"]),
        ):
            assert differences(name, direct, changed), (name, changed)


def test_a_session_lives_where_cookies_may_pass(site: Site) -> None:
    """Cookies that the target sets come back to it by requests' own jar, or not at all."""
    argv = [str(PYTHON), str(PROGRAMS / "client.py"), "requests"]
    for mode, kept in (("sessions", {"flavour": "oat"}), ("reverse", {})):
        where = site.modes[mode]
        calls = [
            {"name": name, "method": "GET", "url": where.plain + path}
            for name, path in (("set", "/cookies/set?flavour=oat"), ("get", "/cookies"))
        ]
        got = read_answers(site.run(argv, where, json.dumps({"calls": calls, "cookies": True})))
        assert got["set"].status == 302
        assert [value.partition(";")[0] for value in got["set"].value("set-cookie")] == [
            f"{name}={value}" for name, value in kept.items()
        ]
        assert json.loads(got["get"].body) == {"cookies": kept}


def test_every_call_is_on_record(site: Site) -> None:
    """Of all clients and modes: a decision that allowed it, with an outcome, for each."""
    if not site.got:  # alone: the calls of one client, which every machine has that runs this
        site.answers(next(iter(MODES)))
    events = site.sidecar.events()
    allowed = {
        event["id"]
        for event in events
        if event["type"] == TYPE_DECISION and event["data"]["action_id"] == 1
    }
    outcomes = {
        event["data"]["unmapped"]["decision"]
        for event in events
        if event["type"] == TYPE_OUTCOME and event["data"]["unmapped"]["outcome"] == "completed"
    }
    made = sum(len(MODES[client]) for client in site.got) * len(CALLS)
    assert made
    assert allowed == outcomes
    assert len(allowed) >= made

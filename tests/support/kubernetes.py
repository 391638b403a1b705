"""A real control plane: kube-apiserver and etcd, built from their Go modules, on loopback.

``make cluster`` builds both once, into ``.kubernetes/``. There is no node, no scheduler and no
controller, so pods are admitted and stored and never run, and what controllers make is made by
whoever needs it: `Client.add_namespace` makes the service account ``default`` and the ConfigMap
``kube-root-ca.crt``, `Service` is what kube-proxy does for one of them.

Service addresses are of a part of 127.0.0.0/8 that is this cluster's alone: what listens there is
what the API server reaches under a Service's name.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import ssl
import subprocess
import sys
import urllib.request
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import aiohttp
import trustme
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support import go_modules
from tests.support.canaries import CANARIES
from tests.support.ports import free_port
from tests.support.waiting import until_sync

VERSION: Final = go_modules.pinned("k8s.io/kubernetes")
ISSUER: Final = "https://kubernetes.default.svc.cluster.local"
_PROGRAMS: Final = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
}
_BUILT: Final = go_modules.Built(".kubernetes")
_STAMP: Final = "k8s.io/component-base/version"
_START: Final = 120.0
# What each request was, who asked and what came of it; no bodies.
_AUDIT: Final = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [{"level": "Metadata"}],
}

Json = dict[str, Any]


def missing() -> str:
    """Why no cluster can be started, or empty."""
    if not _BUILT.there:
        return "no Kubernetes: `make cluster` builds it (Go, minutes the first time)"
    lowest = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if os.geteuid() != 0 and lowest > 443:
        return "Services listen at port 443 of loopback, which takes root"
    return ""


def build() -> None:
    """Build both programs (their checksums are verified by Go), unless they are there."""
    _BUILT.make(_fill)


def _fill(place: Path) -> None:
    major, minor, _ = VERSION.removeprefix("v").split(".")
    stamps = {"gitVersion": VERSION, "gitMajor": major, "gitMinor": minor}
    flags = " ".join(f"-X {_STAMP}.{name}={value}" for name, value in stamps.items())
    for name, package in _PROGRAMS.items():
        go_modules.build(package, place / "bin" / name, flags if name != "etcd" else "")


class Cluster:
    """One API server over one etcd, which keeps nothing."""

    def __init__(self, directory: Path, *, plugins: tuple[str, ...] = ()) -> None:
        """``plugins`` are admission plugins beside those that are on by default."""
        self.directory = directory
        directory.mkdir(parents=True)
        self._plugins = plugins
        self._authority = trustme.CA()
        self._processes: list[tuple[str, subprocess.Popen[bytes]]] = []
        self._held, self.network = _network()
        self.url = f"https://127.0.0.1:{free_port()}"
        self.admin = secrets.token_hex(16)
        self.ca_file = directory / "ca.crt"
        self.kubeconfig = directory / "kubeconfig"
        CANARIES.add(self.admin, name="the cluster's administrator", allow=[directory])

    def start(self) -> Self:
        self._authority.cert_pem.write_to_path(self.ca_file)
        self.kubeconfig.write_text(json.dumps(self._kubeconfig()))
        self.kubeconfig.chmod(0o600)
        try:
            etcd = self._start_etcd()
            self._start_api_server(etcd)
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """What is stored is of no use to anybody."""
        for _, process in reversed(self._processes):
            process.kill()
            process.wait()
        self._processes.clear()
        self._held.close()

    def audited(self) -> list[Json]:
        """What was asked of the API server so far (audit.k8s.io/v1 Events)."""
        lines = (self.directory / "audit.log").read_bytes().split(b"\n")
        return [json.loads(line) for line in lines[:-1]]

    def _start_etcd(self) -> str:
        client, peer = (f"http://127.0.0.1:{free_port()}" for _ in range(2))
        self._run(
            "etcd",
            f"--data-dir={self.directory / 'etcd'}",
            "--unsafe-no-fsync",
            "--log-level=warn",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
        )
        self._answers(f"{client}/readyz")
        return client

    def _start_api_server(self, etcd: str) -> None:
        port = self.url.rpartition(":")[2]
        files = {
            "tokens.csv": f"{self.admin},admin,admin,system:masters\n",
            "audit.yaml": yaml.safe_dump(_AUDIT),
        }
        for name, text in files.items():
            (self.directory / name).write_text(text)
        certificate = self._authority.issue_cert("127.0.0.1", "kubernetes.default.svc")
        certificate.private_key_pem.write_to_path(self._file("serving.key"))
        certificate.cert_chain_pems[0].write_to_path(self._file("serving.crt"))
        _write_key(self._file("accounts.key"))
        more = [f"--enable-admission-plugins={','.join(self._plugins)}"] if self._plugins else []
        self._run(
            "kube-apiserver",
            f"--etcd-servers={etcd}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            # Loopback may be no endpoint, and nobody looks for one.
            "--endpoint-reconciler-type=none",
            f"--secure-port={port}",
            f"--tls-cert-file={self._file('serving.crt')}",
            f"--tls-private-key-file={self._file('serving.key')}",
            f"--cert-dir={self.directory}",
            f"--token-auth-file={self._file('tokens.csv')}",
            "--authorization-mode=RBAC",
            f"--service-account-issuer={ISSUER}",
            f"--service-account-key-file={self._file('accounts.key')}",
            f"--service-account-signing-key-file={self._file('accounts.key')}",
            f"--service-cluster-ip-range={self.network}",
            f"--audit-policy-file={self._file('audit.yaml')}",
            f"--audit-log-path={self._file('audit.log')}",
            "--allow-privileged=true",
            *more,
        )
        self._answers(f"{self.url}/readyz")

    def _file(self, name: str) -> str:
        return str(self.directory / name)

    def _kubeconfig(self) -> Json:
        cluster = {"server": self.url, "certificate-authority": str(self.ca_file)}
        return {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "test", "cluster": cluster}],
            "users": [{"name": "admin", "user": {"token": self.admin}}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "admin"}}],
            "current-context": "test",
        }

    def _run(self, name: str, *arguments: str) -> None:
        # A proxy of the environment would be asked for webhooks.
        environment = {"PATH": os.environ["PATH"], "HOME": str(self.directory)}
        with (self.directory / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                [_BUILT.program(name), *arguments], stdout=log, stderr=log, env=environment
            )
        self._processes.append((name, process))

    def _answers(self, url: str) -> None:
        """Wait for the process that was started last."""
        name, process = self._processes[-1]
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {self.admin}"})
        context = ssl.create_default_context(cafile=self.ca_file)
        opener = urllib.request.build_opener(
            urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context)
        )

        def answered() -> bool:
            if process.poll() is not None:
                log = (self.directory / f"{name}.log").read_text(errors="replace")
                raise AssertionError(f"{name} ended\n{log[-3000:]}")
            try:
                with opener.open(request, timeout=5) as response:
                    return bool(response.status == 200)
            except OSError:  # HTTPError is one
                return False

        until_sync(answered, f"{name} is ready", _START, poll=0.1)


def _write_key(path: str) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    Path(path).write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )


def _network() -> tuple[socket.socket, str]:
    """The first part of loopback that no other cluster has, and what holds it."""
    for number in range(1, 255):
        held = socket.socket(socket.AF_UNIX)
        try:
            held.bind(f"\0valetkey-test-services-{number}")
        except OSError:
            held.close()
            continue
        return held, f"127.96.{number}.0/24"
    raise AssertionError("no network is left: too many clusters on this machine")


# --- asking it ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Answer:
    """What the API server said, and what it warned of."""

    status: int
    body: Json
    warnings: tuple[str, ...] = ()

    def ok(self) -> Json:
        """The object, of an answer that is good."""
        assert self.status in {200, 201}, self.message
        return self.body

    @property
    def message(self) -> str:
        return f"{self.status}: {self.body.get('message', '')}"


@dataclass(slots=True)
class Client:
    """Whoever has this token. Used with ``async with``."""

    cluster: Cluster
    token: str = ""
    _plural: dict[tuple[str, str], tuple[str, bool]] = field(default_factory=dict)
    _session: aiohttp.ClientSession = field(init=False)

    async def __aenter__(self) -> Self:
        context = ssl.create_default_context(cafile=self.cluster.ca_file)
        self._session = aiohttp.ClientSession(
            self.cluster.url,
            connector=aiohttp.TCPConnector(ssl=context),
            headers={"Authorization": f"Bearer {self.token or self.cluster.admin}"},
            timeout=aiohttp.ClientTimeout(total=60),
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def call(
        self,
        method: str,
        path: str,
        document: Json | None = None,
        *,
        media: str = "application/json",
        **query: str,
    ) -> Answer:
        body = None if document is None else json.dumps(document)
        headers = {"Content-Type": media} if document is not None else {}
        async with self._session.request(
            method, path, data=body, headers=headers, params=query
        ) as response:
            # RFC 7234 §5.5: 299 - "text"
            warnings = (each[7:-1] for each in response.headers.getall("Warning", ()))
            text = await response.text()
            # Of what it does not know it says so without an object.
            is_json = response.content_type.endswith("json")
            said = json.loads(text) if is_json else {"message": text}
            return Answer(response.status, said, tuple(warnings))

    async def text(self, path: str) -> str:
        async with self._session.get(path) as response:
            assert response.status == 200, await response.text()
            return await response.text()

    async def path(self, version: str, kind: str, namespace: str = "", name: str = "") -> str:
        """Where objects of a kind are, or the one of a name."""
        group = f"/apis/{version}" if "/" in version else f"/api/{version}"
        if (version, kind) not in self._plural:
            for each in (await self.call("GET", group)).ok()["resources"]:
                if "/" not in each["name"]:
                    self._plural[version, each["kind"]] = each["name"], each["namespaced"]
        plural, is_namespaced = self._plural[version, kind]
        place = f"/namespaces/{namespace}" if is_namespaced and namespace else ""
        return f"{group}{place}/{plural}{f'/{name}' if name else ''}"

    async def place(self, document: Json, *, named: bool) -> str:
        """The path of an object, or of those of its kind."""
        metadata = document["metadata"]
        return await self.path(
            document["apiVersion"],
            document["kind"],
            metadata.get("namespace", ""),
            metadata["name"] if named else "",
        )

    async def create(self, document: Json, **query: str) -> Answer:
        return await self.call("POST", await self.place(document, named=False), document, **query)

    async def get(self, document: Json) -> Answer:
        """As it is there by now."""
        return await self.call("GET", await self.place(document, named=True))

    async def add_namespace(self, name: str, **labels: str) -> None:
        """With what controllers make in each. ``__`` in a label stands for a slash, ``_`` for a dash."""
        given = {key.replace("__", "/").replace("_", "-"): value for key, value in labels.items()}
        pem = self.cluster.ca_file.read_text()
        for document in (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": given}},
            _object("ServiceAccount", name, "default"),
            {**_object("ConfigMap", name, "kube-root-ca.crt"), "data": {"ca.crt": pem}},
        ):
            (await self.create(document)).ok()

    async def token_of(self, namespace: str, account: str) -> str:
        """A token of a service account for the API server itself, of an hour."""
        path = await self.path("v1", "ServiceAccount", namespace, account)
        request = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        token: str = (await self.call("POST", f"{path}/token", request)).ok()["status"]["token"]
        return token


async def rules(client: Client, namespace: str) -> set[tuple[str, str, str]]:
    """What whoever asks may: verb, resource and name (empty: any)."""
    review = {
        "apiVersion": "authorization.k8s.io/v1",
        "kind": "SelfSubjectRulesReview",
        "metadata": {},
        "spec": {"namespace": namespace},
    }
    found = (await client.create(review)).ok()["status"]["resourceRules"]
    return {
        (verb, resource, name)
        for rule in found
        for verb in rule["verbs"]
        for resource in rule["resources"]
        for name in rule.get("resourceNames") or [""]
    }


async def rules_of(client: Client, namespace: str, account: str) -> set[tuple[str, str, str]]:
    """What a service account may in its namespace, and no other one there may unasked."""
    found = []
    for each in (account, "default"):
        async with Client(client.cluster, await client.token_of(namespace, each)) as asking:
            found.append(await rules(asking, namespace))
    return found[0] - found[1]


def _object(kind: str, namespace: str, name: str) -> Json:
    return {"apiVersion": "v1", "kind": kind, "metadata": {"name": name, "namespace": namespace}}


# --- kube-proxy's part ----------------------------------------------------------------------------


class Service:
    """One port of a Service: connections go to its ready endpoints in turn."""

    def __init__(self, address: str, port: int) -> None:
        self._at = address, port
        self.endpoints: list[int] = []
        self._turn = 0
        self._flows: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, *self._at)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for flow in tuple(self._flows):
            flow.cancel()
        await asyncio.gather(*self._flows, return_exceptions=True)
        await self._server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._flows.add(task)
        task.add_done_callback(self._flows.discard)
        try:
            if not self.endpoints:
                return  # and so the connection is reset, as kube-proxy's rules do
            self._turn += 1
            port = self.endpoints[self._turn % len(self.endpoints)]
            with contextlib.suppress(OSError):
                there, to = await asyncio.open_connection("127.0.0.1", port)
                try:
                    await _relay((reader, to), (there, writer))
                finally:
                    await _close(to)
        finally:
            await _close(writer)


async def _relay(*ways: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
    """Until one of both ends."""
    flows = [asyncio.create_task(_pump(*way)) for way in ways]
    try:
        await asyncio.wait(flows, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for flow in flows:
            flow.cancel()
        await asyncio.gather(*flows, return_exceptions=True)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


if __name__ == "__main__":
    build()
    sys.exit(missing() or 0)

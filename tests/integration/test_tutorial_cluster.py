"""The tutorial in a cluster, without one: its commands, values and manifests, with the programs for real.

What a kubelet and the API server would do is done here: Secrets and ConfigMaps become files, the pod
gets its sidecar by ``valetkey inject``, its token is signed by a key that stands for the cluster's, and
names of Services lead to addresses of a network namespace. Ports, URLs, certificates, settings,
commands and variables are those of the page. That the chart renders these settings:
tests/integration/helm_chart.py.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jwt
import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import rsa

from tests.support.canaries import CANARIES
from tests.support.namespaces import Namespace, lacking
from tests.support.procs import START_TIMEOUT, Program
from tests.support.waiting import SECONDS
from valetkey.broker.core.grants import GrantsFile
from valetkey.cli.check import check_file
from valetkey.contracts import settings

pytestmark = pytest.mark.skipif(bool(lacking()), reason=lacking())

PAGE = (Path(__file__).parents[2] / "docs/tutorial-in-a-cluster.md").read_text()
ISSUER = "https://kubernetes.default.svc.cluster.local"
TICKETS = "10.96.12.34"
HOSTS = f"""127.0.0.1 localhost valetkey-broker.valetkey.svc valetkey-collector.valetkey.svc
{TICKETS} tickets.tickets.svc
"""
DIRECTORIES = (
    "/etc/valetkey", "/var/lib/valetkey", "/run/valetkey-private", "/run/valetkey",
    "/var/run/secrets/valetkey", "/etc/tickets", "/tmp/calls", "/agent",
)  # fmt: skip


def fenced(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)


def manifests() -> list[dict[str, Any]]:
    return [each for text in fenced("yaml") for each in yaml.safe_load_all(text)]


def values() -> dict[str, Any]:
    [block] = re.findall(r"^    # values\.yaml\n((?:    .*\n|\n)+)", PAGE, re.MULTILINE)
    loaded: dict[str, Any] = yaml.safe_load(block)
    return loaded


def found(kind: str, name: str, namespace: str) -> dict[str, Any]:
    [one] = [
        each
        for each in manifests()
        if (each["kind"], each["metadata"]["name"], each["metadata"]["namespace"])
        == (kind, name, namespace)
    ]
    return one


class Pod:
    """The files of one pod, below a directory of the test's; nothing else of it is elsewhere."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def here(self, text: str) -> str:
        for directory in DIRECTORIES:
            text = re.sub(rf"(?<![\w/-]){directory}(?![\w-])", f"{self.root}{directory}", text)
        return text

    def put(self, path: str, content: str | bytes, mode: int = 0o644) -> Path:
        file = Path(self.here(path))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content.encode() if isinstance(content, str) else content)
        file.chmod(mode)
        return file


class Cluster:
    """What the page has made, program by program."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.page = directory / "page"
        self.page.mkdir()
        for script in fenced("sh"):
            subprocess.run(
                ["bash", "-euc", script], cwd=self.page, check=True, capture_output=True, text=True
            )
        CANARIES.add((self.page / "master.key").read_bytes(), name="master key", allow=[directory])
        hosts = directory / "hosts"
        hosts.write_text(HOSTS)
        self.network = Namespace(hosts)
        self.network.run("ip", "addr", "add", f"{TICKETS}/32", "dev", "lo")
        self._key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.jwks = self._jwks()
        self.programs: list[Program] = []
        self.grants = {"grants": values()["broker"]["grants"]}

    def _jwks(self) -> str:
        public = json.loads(jwt.algorithms.RSAAlgorithm.to_jwk(self._key.public_key()))
        return json.dumps({"keys": [{**public, "kid": "k1", "use": "sig", "alg": "RS256"}]})

    def token(self, subject: str, audience: str) -> str:
        now = int(time.time())
        claims = {"iss": ISSUER, "sub": subject, "aud": [audience], "iat": now, "exp": now + 3600}
        token = jwt.encode(claims, self._key, algorithm="RS256", headers={"kid": "k1"})
        CANARIES.add(token, name=f"token of {subject}", allow=[self.directory])
        return token

    def pod(self, name: str) -> Pod:
        return Pod(self.directory / name)

    def service(self, name: str) -> Pod:
        """Broker or collector: settings as the chart writes them, and files as it mounts them."""
        pod, shown = self.pod(name), values()[name]
        # helm/valetkey/templates/*/_settings.tpl
        document = {
            **shown["settings"],
            "bind": f"0.0.0.0:{7080 if name == 'broker' else 7090}",
            "tls": {
                "cert_file": "/etc/valetkey/tls/tls.crt",
                "key_file": "/etc/valetkey/tls/tls.key",
            },
            "database": f"sqlite+aiosqlite:////var/lib/valetkey/{name}.db",
        }
        if name == "broker":
            document |= {
                "master_key_file": "/etc/valetkey/master/master.key",
                "grants_file": "/etc/valetkey/grants/grants.yaml",
            }
            pod.put(
                "/etc/valetkey/master/master.key", (self.page / "master.key").read_bytes(), 0o600
            )
            pod.put("/etc/valetkey/grants/grants.yaml", yaml.safe_dump(self.grants))
        for end in ("crt", "key"):
            made = self.page / f"valetkey-{name}.valetkey.{end}"
            pod.put(f"/etc/valetkey/tls/tls.{end}", made.read_bytes(), 0o600)
        pod.put("/etc/valetkey/files/cluster-jwks.json", self.jwks)
        Path(pod.here("/var/lib/valetkey")).mkdir(parents=True)
        text = yaml.safe_dump(document)
        text = text.replace("aiosqlite:////var", f"aiosqlite:///{pod.root}/var")
        config = pod.put(f"/etc/valetkey/settings/{name}.yaml", pod.here(text))
        check_file(name, config, environ={})
        self.start(name, ("-m", f"valetkey.{name}", "--config", str(config)), {})
        return pod

    def tickets(self) -> None:
        pod = self.pod("tickets")
        deployment = found("Deployment", "tickets", "tickets")
        [container] = deployment["spec"]["template"]["spec"]["containers"]
        for name, made in (("tls.crt", "crt"), ("tls.key", "key")):
            content = (self.page / f"tickets.tickets.{made}").read_bytes()
            pod.put(f"/etc/tickets/{name}", content, 0o600)
        pod.put("/etc/tickets/ca.crt", (self.page / "ca.crt").read_bytes())
        Path(pod.here("/tmp/calls")).parent.mkdir(parents=True)
        [port] = found("Service", "tickets", "tickets")["spec"]["ports"]
        assert f"--port={port['port']}" in container["command"]
        environment = {each["name"]: pod.here(each["value"]) for each in container["env"]}
        python, *argv = [pod.here(word) for word in container["command"]]
        assert python == "python3"
        self.start("tickets", tuple(argv), environment)

    def agent(self) -> tuple[Pod, dict[str, str]]:
        """The pod with its sidecar; where it is, and the variables of the workload's container."""
        pod = self.pod("agent")
        config = self.directory / "injector.yaml"
        sidecar = values()["injector"]["settings"]["sidecar"]
        # helm/valetkey/templates/injector/_settings.tpl
        image = "{repository}:{tag}".format(**values()["image"])
        webhook = {"own": {"service": "valetkey-injector", "mutating": "m", "validating": "v"}}
        config.write_text(
            yaml.safe_dump({"sidecar": {"image": image, **sidecar}, "webhook": webhook})
        )
        manifest = self.page / "agent.yaml"
        manifest.write_text(
            next(text for text in fenced("yaml") if text.startswith("# agent.yaml"))
        )
        [line] = re.findall(r"^    (valetkey inject .*)$", PAGE, re.MULTILINE)
        words = [
            {"agent.yaml": str(manifest), "injector.yaml": str(config)}.get(word, word)
            for word in shlex.split(line)[1:]
        ]
        done = subprocess.run(
            [sys.executable, "-m", "valetkey.cli", *words],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        [injected] = [
            each for each in yaml.safe_load_all(done.stdout) if each["kind"] == "Deployment"
        ]
        spec = injected["spec"]["template"]["spec"]
        [container] = spec["initContainers"]
        subject = f"system:serviceaccount:agents:{spec['serviceAccountName']}"
        for volume in spec["volumes"]:
            for source in volume.get("projected", {}).get("sources", ()):
                token = source["serviceAccountToken"]
                pod.put(
                    f"/var/run/secrets/valetkey/{token['path']}",
                    self.token(subject, token["audience"]), 0o600,
                )  # fmt: skip
        routes = found("ConfigMap", "valetkey-routes", "agents")["data"]
        pod.put("/etc/valetkey/routes/proxy.yaml", routes["proxy.yaml"])
        pod.put("/etc/valetkey/anchors/ca.crt", (self.page / "ca.crt").read_bytes())
        pod.put("/agent/call.py", found("ConfigMap", "agent", "agents")["data"]["call.py"])
        for mount in container["volumeMounts"]:
            Path(pod.here(mount["mountPath"])).mkdir(parents=True, exist_ok=True)
        environment = {each["name"]: pod.here(each["value"]) for each in container["env"]}
        _, *argv = [pod.here(word) for word in container["command"]]
        self.start("sidecar", tuple(argv), environment)
        [workload] = spec["containers"]
        return pod, {each["name"]: pod.here(each["value"]) for each in workload["env"]}

    def start(self, name: str, argv: tuple[str, ...], environment: dict[str, str]) -> None:
        program = Program(
            argv, self.directory / "run", name=name, env=environment, prefix=self.network.argv()
        )
        self.programs.append(program.start())

    def ready(self, url: str) -> None:
        deadline = time.monotonic() + START_TIMEOUT
        while self.network.run("curl", "-skf", url, check=False).returncode:
            assert time.monotonic() < deadline, f"{url}: not ready"
            assert all(program.running for program in self.programs)
            time.sleep(0.1)

    def close(self) -> None:
        for program in self.programs:
            program.kill()
        self.network.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    made = Cluster(tmp_path_factory.mktemp("tutorial"))
    with ExitStack() as stack:
        stack.callback(made.close)
        yield made


def told(text: str) -> list[str]:
    """Lines, without what differs from run to run: times, durations, ids, the machine's name."""
    text = text.replace(f"{socket.gethostname()} ", "POD ")
    for pattern, name in (
        (r"[0-9a-f]{16}(-\d+)?", "ID"),
        (r"\d\d:\d\d:\d\d\.\d+", "TIME"),
        (r"\b\d+\.\d\b", "MS"),
        (r" +", " "),
    ):
        text = re.sub(pattern, name, text)
    return [line.strip() for line in text.splitlines()]


def executed(command: str) -> tuple[str, str]:
    """What is run in a container, and what the page says that it prints."""
    pattern = rf"^    (kubectl .* -- {command}.*)\n\n((?:    .*\n)+)"
    [(line, answer)] = re.findall(pattern, PAGE, re.MULTILINE)
    return line.partition(" -- ")[2], "\n".join(row[4:] for row in answer.splitlines())


def test_from_nothing_to_the_first_audited_call(cluster: Cluster) -> None:
    cluster.service("broker")
    collector = cluster.service("collector")
    cluster.ready("https://valetkey-broker.valetkey.svc:7080/readyz")
    cluster.ready("https://valetkey-collector.valetkey.svc:7090/readyz")
    cluster.tickets()
    cluster.ready("https://tickets.tickets.svc:8443/healthz")
    pod, variables = cluster.agent()
    cluster.ready("http://127.0.0.1:7071/readyz")

    def run(command: str, at: Pod, environment: dict[str, str]) -> str:
        words = [at.here(word) for word in shlex.split(command)]
        assert words[0] == "python3"
        set_ = [f"{name}={value}" for name, value in environment.items()]
        argv = cluster.network.argv("env", *set_, sys.executable, *words[1:])
        done = subprocess.run(
            argv, check=True, capture_output=True, text=True, timeout=START_TIMEOUT
        )
        return done.stdout.strip()

    for method in ("GET", "DELETE"):
        command, answer = executed(rf"python3 /agent/call\.py {method}")
        assert told(run(command, pod, variables)) == told(answer)
    # Without the sidecar's variables, the API asks for a token.
    command, _ = executed(r"python3 /agent/call\.py GET")
    alone = {"SSL_CERT_FILE": str(cluster.page / "ca.crt")}
    assert run(command, pod, alone).startswith("401 ")

    wide = {"COLUMNS": "160"}
    command, answer = executed(r"python3 -m valetkey\.cli audit tail")
    deadline = time.monotonic() + SECONDS
    while (said := run(command, collector, wide)).count("\n") < answer.count("\n"):
        assert time.monotonic() < deadline, said
        time.sleep(0.2)
    assert told(said) == told(answer)
    command, answer = executed(r"python3 -m valetkey\.cli audit verify")
    assert told(run(command, collector, wide)) == told(answer)


def test_what_the_page_says_to_kubectl_and_helm_fits_its_files() -> None:
    lines = re.findall(r"^    ((?:kubectl|helm|kind) (?:.*\\\n)*.*)$", PAGE, re.MULTILINE)
    text = "\n".join(lines).replace("\\\n", " ")
    shown = values()
    for name in ("broker", "collector"):
        secret = shown[name]["tls"]["existingSecret"]
        assert f"secret tls {secret} --cert=valetkey-{name}.valetkey.crt" in text
        assert f"{name}.files.cluster-jwks\\.json=cluster-jwks.json" in text
    assert f"secret generic {shown['broker']['masterKey']['existingSecret']}" in text
    trust = shown["injector"]["settings"]["sidecar"]["trust"]
    assert f"configmap {trust['config_map']} --from-file={trust['key']}" in text
    assert "{repository}:{tag}".format(**shown["image"]) in text
    namespaces = set(re.findall(r"create namespace (\w+)", text))
    assert {each["metadata"]["namespace"] for each in manifests()} <= namespaces
    applied = set(re.findall(r"apply -f (\S+)", text))
    assert applied == {block.split()[1] for block in fenced("yaml")}
    grants = {"grants": shown["broker"]["grants"]}
    assert settings.parse(GrantsFile, yaml.safe_dump(grants), name="page", program="broker").grants

"""The injector as a process, called as an API server calls it: TLS, reviews, certificates that change.

The Kubernetes API behind it is `tests.support.kube_api`.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import json
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import aiohttp
import msgspec
import pytest
import trustme
import yaml

from tests.support.kube_api import NAMESPACE, SERVICE, KubeApi
from tests.support.pods import EXAMPLE, api_token, applied, pod
from tests.support.procs import Program
from tests.support.secret_volume import Pair, SecretVolume
from tests.support.waiting import until
from valetkey.injector import authorities
from valetkey.injector.core import names
from valetkey.injector.core.rotation import State

HOST: Final = f"{SERVICE}.{NAMESPACE}.svc"
SECRET: Final = "valetkey-injector-tls"
NAMES: Final = (HOST, f"{HOST}.cluster.local", f"{SERVICE}.{NAMESPACE}", SERVICE)
DAY: Final = 86_400.0


def settings(directory: Path, **webhook: Any) -> Path:
    """The example's file with a webhook that can be run here."""
    tree = yaml.safe_load(EXAMPLE.read_text())
    tree["pods"]["excluded"].remove(NAMESPACE)  # it is left alone unsaid
    tree["webhook"] = {"bind": "127.0.0.1:0", "admin": "127.0.0.1:0", "linger": "0s", **webhook}
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / "injector.yaml"
    file.write_text(yaml.safe_dump(tree))
    return file


class Process:
    """One replica."""

    def __init__(self, directory: Path, **webhook: Any) -> None:
        self.program = Program.of("injector", settings(directory, **webhook), directory)

    async def start(self) -> Process:
        self.program.start()
        lines = {
            name: await self.program.event(
                "listening", where=lambda line, name=name: line["listener"] == name
            )
            for name in ("admin", "webhook")
        }
        self.url = f"https://127.0.0.1:{lines['webhook']['port']}"
        self.admin = f"http://127.0.0.1:{lines['admin']['port']}"
        return self

    async def ready(self) -> None:
        await self.program.ready(f"{self.admin}/readyz")


def review(document: Any, **more: Any) -> dict[str, Any]:
    request = {
        "uid": "7c8c1f7e-0000-4000-8000-000000000001",
        "kind": {"group": "", "version": "v1", "kind": "Pod"},
        "operation": "CREATE",
        "namespace": "agents",
        "object": document,
        **more,
    }
    return {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request}


async def ask(
    session: aiohttp.ClientSession,
    url: str,
    bundle: str,
    document: dict[str, Any],
    path: str = "/mutate",
) -> dict[str, Any]:
    """What an API server does: verify by the caBundle, ask for SERVICE.NAMESPACE.svc."""
    context = ssl.create_default_context(cadata=bundle)
    async with session.post(
        url + path, json=document, ssl=context, server_hostname=HOST
    ) as response:
        assert response.status == 200, await response.text()
        answer = (await response.json())["response"]
    assert answer["uid"] == document["request"]["uid"]
    return answer


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[KubeApi]:
    async with KubeApi(tmp_path / "kube") as kube:
        yield kube


@pytest.fixture
async def session() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(force_close=True)
    timeout = aiohttp.ClientTimeout(total=30)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session


@contextlib.asynccontextmanager
async def running(*replicas: Process) -> AsyncIterator[None]:
    try:
        for replica in replicas:
            await replica.start()
        yield
    finally:
        for replica in replicas:
            if replica.program.running:
                await replica.program.stop()


def own(kube: KubeApi, **more: Any) -> dict[str, Any]:
    return {
        "api": kube.settings,
        "own": {"service": SERVICE, "mutating": SERVICE, "validating": SERVICE, **more},
    }


@pytest.fixture
async def injector(tmp_path: Path, kube: KubeApi) -> AsyncIterator[Process]:
    replica = Process(tmp_path / "injector", **own(kube))
    async with running(replica):
        await replica.ready()
        yield replica


async def test_a_pod_comes_out_right_and_again_the_same(
    injector: Process, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    bundle, others = kube.bundles()
    assert others == "", "the webhook of somebody else was touched"
    document = api_token(
        pod({"name": "app", "image": "a", "env": [{"name": "PIP_CERT", "value": "/p"}]})
    )
    answer = await ask(session, injector.url, bundle, review(document))
    assert (answer["allowed"], answer["patchType"]) == (True, "JSONPatch")
    assert [each for each in answer["warnings"] if "app/PIP_CERT" in each]
    made = applied(json.loads(base64.b64decode(answer["patch"])), document)
    assert made["spec"]["initContainers"][0]["name"] == names.CONTAINER
    again = await ask(session, injector.url, bundle, review(made))
    assert "patch" not in again
    for path, thing, allowed in (
        ("/validate", review(made), True),
        ("/validate", review(document), False),
        ("/validate", review(made, operation="UPDATE", oldObject=made), True),
        ("/validate", review(document, operation="UPDATE", oldObject=made), False),
        ("/mutate", review(document, operation="UPDATE", oldObject=made), True),
        ("/mutate", review(pod(hostNetwork=True)), False),
        ("/mutate", review(pod(), namespace="kube-system"), True),
        ("/mutate", review(pod(), namespace=NAMESPACE), True),
        ("/mutate", review(pod(), kind={"group": "apps", "version": "v1", "kind": "Deployment"}), False),
    ):  # fmt: skip
        answer = await ask(session, injector.url, bundle, thing, path)
        assert answer["allowed"] is allowed, (path, thing, answer)
        assert "patch" not in answer
        if not allowed:
            status = answer["status"]
            assert status["code"] in {400, 403}
            assert status["message"].startswith("inject.")
    async with session.get(f"{injector.admin}/metrics") as response:
        text = await response.text()
    assert 'reviews_total{code="",result="injected",webhook="mutate"} 2.0' in text
    assert 'reviews_total{code="inject.host_network",result="refused",webhook="mutate"} 1.0' in text


BAD = {
    "empty": (b"", "application/json", 400, "service.bad_request"),
    "no JSON": (b"{", "application/json", 400, "service.bad_request"),
    "no UTF-8": (b'{"apiVersion": "\xff"}', "application/json", 400, "service.bad_request"),
    "a list": (b"[]", "application/json", 400, "service.bad_request"),
    "no request": (b'{"apiVersion":"admission.k8s.io/v1","kind":"AdmissionReview"}', "application/json", 400, "service.bad_request"),
    "another version": (json.dumps({**review(pod()), "apiVersion": "admission.k8s.io/v1beta1"}).encode(), "application/json", 400, "service.bad_request"),
    "no uid": (json.dumps(review(pod(), uid="")).encode(), "application/json", 400, "service.bad_request"),
    "nested deeply": (b'{"request":' + b"[" * 100_000, "application/json", 400, "service.bad_request"),
    "YAML": (b"a: 1", "application/yaml", 415, "service.media_type"),
    "too large": (b" " * (9 << 20), "application/json", 413, "service.too_large"),
}  # fmt: skip


async def test_what_is_no_review_is_refused(
    injector: Process, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    context = ssl.create_default_context(cadata=kube.bundles()[0])
    for name, (body, media_type, status, code) in BAD.items():
        async with session.post(
            f"{injector.url}/mutate",
            data=io.BytesIO(body),
            headers={"Content-Type": media_type},
            ssl=context,
            server_hostname=HOST,
        ) as response:
            assert (response.status, (await response.json())["code"]) == (status, code), name
    async with session.get(f"{injector.url}/mutate", ssl=context, server_hostname=HOST) as response:
        assert response.status == 405
    # A pod that is nonsense is a pod that is refused, not a failure of the webhook.
    answer = await ask(session, injector.url, kube.bundles()[0], review({"spec": 1}))
    assert (answer["allowed"], answer["status"]["code"]) == (False, 400)


class ApiServer:
    """Calls a replica now and then as long as it is told, and learns of new bundles a while later."""

    LAG = 0.2

    def __init__(self, kube: KubeApi, session: aiohttp.ClientSession, url: str) -> None:
        self._kube, self._session, self._url = kube, session, url
        self._bundle = kube.bundles()[0]
        self.calls = 0
        self.failed: list[str] = []

    async def run(self) -> None:
        document = review(pod())
        learning = asyncio.create_task(self._learn())
        try:
            while True:
                try:
                    answer = await ask(self._session, self._url, self._bundle, document)
                    assert answer["allowed"]
                except (aiohttp.ClientError, AssertionError) as error:
                    self.failed.append(repr(error))
                self.calls += 1
                await asyncio.sleep(0.02)
        finally:
            learning.cancel()

    async def _learn(self) -> None:
        while True:
            bundle = self._kube.bundles()[0]
            await asyncio.sleep(self.LAG)
            self._bundle = bundle


async def test_while_ca_and_leaf_are_exchanged_no_call_fails(
    tmp_path: Path, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    """Two replicas under calls, when a CA gets past half of its life and a leaf past two thirds."""
    now = time.time()
    old = authorities.new_authority(now - 30 * DAY, 90 * DAY)
    leaf = authorities.new_leaf(old, NAMES, now - 3 * DAY, 7 * DAY)

    def put(state: State) -> None:
        encoded = base64.b64encode(msgspec.json.encode(state)).decode()
        kube.put_secret(SECRET, {"state.json": encoded})

    put(State((old,), leaf))

    def stored() -> State:
        secret = kube.secret(SECRET)
        assert secret is not None
        return msgspec.json.decode(base64.b64decode(secret["data"]["state.json"]), type=State)

    webhook = own(kube, check_every="700ms", overlap="4s")
    replicas = [Process(tmp_path / name, **webhook) for name in ("one", "two")]
    async with running(*replicas):
        for replica in replicas:
            await replica.ready()
        await until(lambda: kube.bundles()[0] != "", "a bundle")
        callers = [ApiServer(kube, session, replica.url) for replica in replicas]
        async with calling(*callers):
            await until(lambda: all(caller.calls > 10 for caller in callers), "calls")
            assert len(stored().authorities) == 1
            replace = msgspec.structs.replace
            put(State((replace(old, made=now - 50 * DAY),), replace(leaf, made=now - 6 * DAY)))
            await until(lambda: len(stored().authorities) == 2, "a second CA")
            new = stored().authorities[1].certificate
            both = {old.certificate, new}
            await until(lambda: all(_trusts(kube, each) for each in both), "trust in both")
            await until(lambda: stored().authorities[0].certificate == new, "the switch")
            await until(lambda: len(stored().authorities) == 1, "the end of the old CA")
            await until(
                lambda: not any(old.certificate in each for each in _all_bundles(kube)),
                "its last trace",
            )
            await asyncio.sleep(2 * ApiServer.LAG)
        # Both serve the same leaf of the new CA, and no write of one undid the other's.
        for replica in replicas:
            answer = await ask(session, replica.url, stored().bundle, review(pod()))
            assert answer["allowed"]
    for caller in callers:
        assert caller.failed == []
        assert caller.calls > 50


@contextlib.asynccontextmanager
async def calling(*callers: ApiServer) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(caller.run()) for caller in callers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _all_bundles(kube: KubeApi) -> list[str]:
    """Of our webhook in both configurations."""
    kinds = ("mutatingwebhookconfigurations", "validatingwebhookconfigurations")
    return [kube.bundles(kind)[0] for kind in kinds]


def _trusts(kube: KubeApi, certificate: str) -> bool:
    return all(certificate in each for each in _all_bundles(kube))


@pytest.mark.parametrize(
    "prepared", [False, True], ids=["no Secret", "an empty one of the chart's"]
)
async def test_replicas_that_start_together_have_one_ca(
    tmp_path: Path, kube: KubeApi, session: aiohttp.ClientSession, prepared: bool
) -> None:
    if prepared:
        kube.put_secret(SECRET, None)
    replicas = [Process(tmp_path / name, **own(kube)) for name in ("one", "two", "three")]
    async with running(*replicas):
        for replica in replicas:
            await replica.ready()
        bundle = kube.bundles()[0]
        assert bundle.count("BEGIN CERTIFICATE") == 1
        for replica in replicas:
            assert (await ask(session, replica.url, bundle, review(pod())))["allowed"]


async def test_without_the_api_it_goes_on_with_what_it_has(
    tmp_path: Path, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    replica = Process(tmp_path / "one", **own(kube, check_every="100ms", overlap="1m"))
    async with running(replica):
        await replica.ready()
        bundle = kube.bundles()[0]
        kube.down = True
        await replica.program.event("certificate_unusable")
        assert (await ask(session, replica.url, bundle, review(pod())))["allowed"]
        async with session.get(f"{replica.admin}/readyz") as response:
            said = await response.json()
        assert (said["status"], "503" in said["certificates"]) == ("ready", True)
        kube.down = False

        async def good() -> bool:
            async with session.get(f"{replica.admin}/readyz") as response:
                return (await response.json())["certificates"] == "good"

        await until(good, "it is well again")


async def test_a_secret_that_is_not_its_own_is_not_written_over(
    tmp_path: Path, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    theirs = {"state.json": base64.b64encode(b"{}").decode()}
    kube.put_secret(SECRET, theirs)
    replica = Process(tmp_path / "one", **own(kube, check_every="100ms", overlap="1m"))
    async with running(replica):
        said = await replica.program.event("certificate_unusable")
        assert "delete it to begin anew" in said["reason"]
        async with session.get(f"{replica.admin}/readyz") as response:
            assert response.status == 503
        secret = kube.secret(SECRET)
        assert secret is not None
        assert secret["data"] == theirs
        kube.drop_secret(SECRET)
        await replica.ready()


async def test_files_are_read_again_and_halves_that_do_not_fit_change_nothing(
    tmp_path: Path, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    one, two = trustme.CA(), trustme.CA()
    pems = [ca.cert_pem.bytes().decode() for ca in (one, two)]
    volume = SecretVolume(tmp_path / "tls")
    volume.put(Pair.of(one, HOST))
    replica = Process(tmp_path / "injector", tls=volume.settings, api=kube.settings)
    async with running(replica):
        await replica.ready()
        kube_writes = list(kube.writes)
        assert (await ask(session, replica.url, pems[0], review(pod())))["allowed"]
        # A connection that was open goes on over it all.
        context = ssl.create_default_context(cadata=pems[0])
        async with (
            aiohttp.ClientSession() as keeping,
            keeping.post(
                f"{replica.url}/mutate", json=review(pod()), ssl=context, server_hostname=HOST
            ) as response,
        ):
            await response.read()
            (tmp_path / "tls/..data").resolve().joinpath("tls.crt").write_text("no certificate")
            await replica.program.event("certificate_unusable")
            assert (await ask(session, replica.url, pems[0], review(pod())))["allowed"]
            volume.put(Pair.of(two, HOST))
            await replica.program.event(
                "certificate_taken_up",
                where=lambda line: line != first_taken_up(replica),
            )
            assert (await ask(session, replica.url, pems[1], review(pod())))["allowed"]
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ask(session, replica.url, pems[0], review(pod()))
            async with keeping.post(
                f"{replica.url}/mutate", json=review(pod()), ssl=context, server_hostname=HOST
            ) as again:
                assert again.status == 200
        assert kube.writes == kube_writes == []


def first_taken_up(replica: Process) -> dict[str, Any]:
    return next(line for line in replica.program.log() if line["event"] == "certificate_taken_up")


async def test_told_to_stop_it_serves_until_nothing_more_comes(
    tmp_path: Path, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    replica = Process(tmp_path / "one", **own(kube), linger="2s")
    async with running(replica):
        await replica.ready()
        bundle = kube.bundles()[0]
        context = ssl.create_default_context(cadata=bundle)
        async with aiohttp.ClientSession() as keeping:
            replica.program.terminate()
            await replica.program.event("draining")
            async with session.get(f"{replica.admin}/readyz") as response:
                assert (response.status, (await response.json())["reason"]) == (503, "draining")
            async with keeping.post(
                f"{replica.url}/mutate", json=review(pod()), ssl=context, server_hostname=HOST
            ) as response:
                assert response.status == 200
                assert response.headers["Connection"] == "close"
        assert await replica.program.ended() == 0


async def test_the_cluster_s_version_is_asked_for(
    tmp_path: Path, kube: KubeApi, session: aiohttp.ClientSession
) -> None:
    kube.version = {"major": "1", "minor": "28"}
    replica = Process(tmp_path / "one", **own(kube))
    async with running(replica):
        await replica.ready()
        document = pod()
        answer = await ask(session, replica.url, kube.bundles()[0], review(document))
        made = applied(json.loads(base64.b64decode(answer["patch"])), document)
        assert [each["name"] for each in made["spec"]["containers"]] == [names.CONTAINER, "app"]


UNUSABLE = {
    "no webhook": (None, "webhook: it is missing"),
    "no cluster to ask for the version": (
        {"tls": {"cert_file": "/nowhere", "key_file": "/nowhere"}},
        "webhook.api.url: this is no pod of a cluster",
    ),
    "a cluster, but no namespace": (
        {
            "own": {"service": SERVICE},
            "api": {"url": "https://127.0.0.1:1", "namespace_file": "/nowhere"},
        },
        "webhook.api.namespace: /nowhere can't be read",
    ),
}


@pytest.mark.parametrize("name", UNUSABLE)
async def test_what_it_can_not_be_started_with(tmp_path: Path, name: str) -> None:
    webhook, said = UNUSABLE[name]
    tree = yaml.safe_load(EXAMPLE.read_text()) | {"webhook": webhook}
    file = tmp_path / "injector.yaml"
    file.write_text(yaml.safe_dump(tree))
    program = Program.of("injector", file, tmp_path, env={"KUBERNETES_SERVICE_HOST": ""}).start()
    assert await program.ended() == 2
    assert program.tail().startswith(f"valetkey injector: {said}")


async def test_an_address_that_is_taken(tmp_path: Path, kube: KubeApi) -> None:
    port = kube.url.rpartition(":")[2]
    replica = Process(tmp_path, **own(kube), bind=f"127.0.0.1:{port}")
    replica.program.start()
    assert await replica.program.ended() == 2
    assert f"webhook.bind: 127.0.0.1:{port}: " in replica.program.tail()

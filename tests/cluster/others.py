"""Somebody else's mutating webhook: it adds a container, or changes what is not its own."""

from __future__ import annotations

import base64
import json
import ssl
from collections.abc import Callable
from typing import Any, Final, Self

import trustme
from aiohttp import web

from tests.support.kubernetes import Client
from tests.support.ports import free_port
from tests.support.waiting import until

Json = dict[str, Any]
_PATH: Final = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations"
_CONTEXT: Final = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}


def _sidecar(spec: Json) -> Json:
    return next(each for each in spec["initContainers"] if each["name"] == "valetkey")


def _image(pod: Json) -> None:
    _sidecar(pod["spec"])["image"] = "registry.example.com/other:1"


def _variable(pod: Json) -> None:
    _sidecar(pod["spec"])["env"].append({"name": "PYTHONPATH", "value": "/mine"})


def _removed(pod: Json) -> None:
    pod["spec"]["initContainers"].remove(_sidecar(pod["spec"]))


def _volume(pod: Json) -> None:
    (volume,) = (each for each in pod["spec"]["volumes"] if each["name"] == "valetkey-routes")
    volume["configMap"]["name"] = "others"


def _token(pod: Json) -> None:
    mount = {"name": "valetkey-token", "mountPath": "/mine"}
    pod["spec"]["containers"][0]["volumeMounts"].append(mount)


def _token_of_its_own(pod: Json) -> None:
    token = {"path": "t", "audience": "https://valetkey-broker.valetkey.svc:7080"}
    source = {"serviceAccountToken": token}
    pod["spec"]["volumes"].append({"name": "mine", "projected": {"sources": [source]}})


def _processes(pod: Json) -> None:
    pod["spec"]["shareProcessNamespace"] = True


def _opt_out_of_checks(pod: Json) -> None:
    pod["metadata"]["annotations"]["valetkey/checked"] = "true"


TAMPER: Final[dict[str, Callable[[Json], None]]] = {
    each.__name__.removeprefix("_"): each
    for each in (
        _image, _variable, _removed, _volume, _token, _token_of_its_own, _processes,
        _opt_out_of_checks,
    )
}  # fmt: skip


class Others:
    """Its server, on loopback, and what was registered, for as long as it is entered.

    ``namespace``: where a pod can be tried that nobody else looks at.
    """

    def __init__(self, client: Client, namespace: str) -> None:
        self._client = client
        self._namespace = namespace
        self._registered: list[str] = []
        self._authority = trustme.CA()
        self._port = free_port()
        self._probed = False

    async def __aenter__(self) -> Self:
        app = web.Application()
        app.router.add_post("/add", self._adds)
        app.router.add_post("/tamper/{way}", self._tampers)
        app.router.add_post("/tamper-at-once/{way}", self._tampers_at_once)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._authority.issue_cert("127.0.0.1").configure_cert(context)
        await web.TCPSite(self._runner, "127.0.0.1", self._port, ssl_context=context).start()
        return self

    async def __aexit__(self, *_: object) -> None:
        for name in self._registered:
            await self._client.call("DELETE", f"{_PATH}/{name}")
        await self._runner.cleanup()

    async def register(self, name: str, path: str, *, reinvocation: str = "Never") -> None:
        """For pods with the label ``webhook: NAME``; it is in force when this returns."""
        bundle = base64.b64encode(self._authority.cert_pem.bytes()).decode()
        self._registered.append(name)
        configuration = {
            "apiVersion": "admissionregistration.k8s.io/v1",
            "kind": "MutatingWebhookConfiguration",
            "metadata": {"name": name},
            "webhooks": [
                {
                    "name": "other.example.com",
                    "admissionReviewVersions": ["v1"],
                    "sideEffects": "None",
                    "reinvocationPolicy": reinvocation,
                    "clientConfig": {
                        "url": f"https://127.0.0.1:{self._port}/{path}", "caBundle": bundle,
                    },
                    "objectSelector": {"matchLabels": {"webhook": name}},
                    "rules": [
                        {"operations": ["CREATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}
                    ],
                }
            ],
        }  # fmt: skip
        (await self._client.create(configuration)).ok()
        await self._is_in_force(name)

    async def _is_in_force(self, name: str) -> None:
        """The API server learns of it a moment later."""
        probe = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {
                "name": "probe",
                "namespace": self._namespace,
                "labels": {"webhook": name},
            },
            "spec": {"containers": [{"name": "probe", "image": "probe"}]},
        }

        async def was_called() -> bool:
            await self._client.create(probe, dryRun="All")
            return self._probed

        self._probed = False
        await until(was_called, f"a call of {name}", poll=0.05)

    async def _adds(self, request: web.Request) -> web.Response:
        def add(pod: Json) -> None:
            if all(each["name"] != "late" for each in pod["spec"]["containers"]):
                late = {"name": "late", "image": "registry.example.com/late:1"}
                pod["spec"]["containers"].append({**late, "securityContext": _CONTEXT})

        return await self._answer(request, add)

    async def _tampers(self, request: web.Request) -> web.Response:
        """The first time it adds a container, which has all others called again; then it tampers."""

        def tamper(pod: Json) -> None:
            if all(each["name"] != "late" for each in pod["spec"]["containers"]):
                late = {"name": "late", "image": "registry.example.com/late:1"}
                pod["spec"]["containers"].append({**late, "securityContext": _CONTEXT})
            else:
                TAMPER[request.match_info["way"]](pod)

        return await self._answer(request, tamper)

    async def _tampers_at_once(self, request: web.Request) -> web.Response:
        return await self._answer(request, TAMPER[request.match_info["way"]])

    async def _answer(self, request: web.Request, change: Callable[[Json], None]) -> web.Response:
        asked = (await request.json())["request"]
        pod = asked["object"]
        response = {"uid": asked["uid"], "allowed": True}
        if asked.get("name") == "probe":
            self._probed = True
        else:
            change(pod)
            operations = [
                {"op": "replace", "path": f"/{key}", "value": pod[key]}
                for key in ("metadata", "spec")
            ]
            patch = base64.b64encode(json.dumps(operations).encode()).decode()
            response |= {"patchType": "JSONPatch", "patch": patch}
        review = {"apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview"}
        return web.json_response({**review, "response": response})

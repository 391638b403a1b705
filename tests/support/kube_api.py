"""As much of a Kubernetes API server as the injector speaks to, strict in what the real one checks.

TLS, a bearer token on every request, ``resourceVersion`` on every replacement (409 for a stale one,
422 for none), 409 for a name that is taken, JSON alone, base64 in ``data`` and ``caBundle``. A
real kube-apiserver is not to be had from a package registry without building it.
"""

from __future__ import annotations

import base64
import copy
import itertools
import ssl
from pathlib import Path
from typing import Any, Final, Self

import trustme
from aiohttp import web

from tests.support.canaries import CANARIES

NAMESPACE: Final = "valetkey"
SERVICE: Final = "valetkey-injector"
_HOOKS: Final = "/apis/admissionregistration.k8s.io/v1"
_SECRETS: Final = f"/api/v1/namespaces/{NAMESPACE}/secrets"
_TOKEN: Final = "injector-s-own-token"
_CONFIG_MAPS: Final = "/api/v1/namespaces/{}/configmaps"
# Who the injector is, and what lists of metadata are asked for by.
USER: Final = f"system:serviceaccount:{NAMESPACE}:{SERVICE}"
_AS_METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"
_SELF: Final = "/apis/authentication.k8s.io/v1/selfsubjectreviews"

Json = dict[str, Any]


def configuration(kind: str) -> Json:
    """A webhook configuration with a webhook of ours and one of somebody else's."""
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": kind,
        "metadata": {"name": SERVICE},
        "webhooks": [
            {
                "name": f"{name}.valetkey.example",
                "clientConfig": {
                    "service": {"name": name, "namespace": NAMESPACE, "path": "/mutate"}
                },
                "sideEffects": "None",
            }
            for name in (SERVICE, "somebody-else")
        ],
    }


class KubeApi:
    """``async with`` serves it. ``directory`` gets its CA and the token."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._versions = itertools.count(1)
        self._objects: dict[str, Json] = {}
        self.version = {"major": "1", "minor": "31+"}
        self.writes: list[tuple[str, str]] = []
        self.refused: list[int] = []
        self.down = False
        self.add_namespace(NAMESPACE)
        for kind in ("MutatingWebhookConfiguration", "ValidatingWebhookConfiguration"):
            self.put(f"{_HOOKS}/{kind.lower()}s/{SERVICE}", configuration(kind))
        (directory / "token").write_text(f"{_TOKEN}\n")
        CANARIES.allow(directory / "token")

    async def __aenter__(self) -> Self:
        ca = trustme.CA()
        ca.cert_pem.write_to_path(str(self._directory / "ca.crt"))
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        ca.issue_cert("127.0.0.1").configure_cert(context)
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=context).start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._runner.cleanup()

    @property
    def settings(self) -> Json:
        """The injector's ``webhook.api``."""
        return {
            "url": self.url,
            "namespace": NAMESPACE,
            "token_file": str(self._directory / "token"),
            "ca_file": str(self._directory / "ca.crt"),
        }

    def put(self, path: str, document: Json) -> None:
        """Write an object, whatever is there."""
        stored = copy.deepcopy(document)
        stored["metadata"]["resourceVersion"] = str(next(self._versions))
        self._objects[path] = stored

    def add_namespace(self, name: str, **labels: str) -> None:
        metadata = {"name": name, "labels": labels}
        self.put(f"/api/v1/namespaces/{name}", {"kind": "Namespace", "metadata": metadata})

    def config_map(self, namespace: str, name: str) -> dict[str, str] | None:
        """Its data."""
        found = self._objects.get(f"{_CONFIG_MAPS.format(namespace)}/{name}")
        return None if found is None else dict(found["data"])

    def put_config_map(self, namespace: str, name: str, data: dict[str, str] | None) -> None:
        """``None`` deletes it."""
        path = f"{_CONFIG_MAPS.format(namespace)}/{name}"
        if data is None:
            del self._objects[path]
            return
        metadata = {"name": name, "namespace": namespace}
        self.put(path, {"kind": "ConfigMap", "metadata": metadata, "data": data})

    def _listed(self, request: web.Request) -> web.Response:
        """Metadata alone, of what a selector as the injector writes it chooses."""
        if request.headers["Accept"] != _AS_METADATA:
            return self._status(406)
        key, _, value = "".join(request.query.values()).partition("=")
        found = []
        for path, document in self._objects.items():
            metadata = document["metadata"]
            if request.path == "/api/v1/namespaces":
                chosen = path.count("/") == 4 and metadata.get("labels", {}).get(key) == value
            else:
                chosen = "/configmaps/" in path and metadata["name"] == value
            if chosen:
                found.append({"metadata": metadata})
        return web.json_response({"kind": "PartialObjectMetadataList", "items": found})

    def secret(self, name: str) -> Json | None:
        return copy.deepcopy(self._objects.get(f"{_SECRETS}/{name}"))

    def put_secret(self, name: str, data: Json | None) -> None:
        document: Json = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}}
        self.put(f"{_SECRETS}/{name}", document | ({} if data is None else {"data": data}))

    def drop_secret(self, name: str) -> None:
        del self._objects[f"{_SECRETS}/{name}"]

    def bundles(self, kind: str = "mutatingwebhookconfigurations") -> list[str]:
        """What each webhook of a configuration trusts, PEM."""
        hooks = self._objects[f"{_HOOKS}/{kind}/{SERVICE}"]["webhooks"]
        return [
            base64.b64decode(each["clientConfig"].get("caBundle", "")).decode() for each in hooks
        ]

    async def _answer(self, request: web.Request) -> web.Response:
        if self.down:
            return self._status(503)
        if request.headers.get("Authorization") != f"Bearer {_TOKEN}":
            return self._status(401)
        path = request.path
        if path == "/version" and request.method == "GET":
            return web.json_response(self.version)
        if request.method == "GET" and path in {"/api/v1/namespaces", "/api/v1/configmaps"}:
            return self._listed(request)
        if request.method == "GET":
            found = self._objects.get(path)
            return web.json_response(found) if found else self._status(404)
        if request.content_type != "application/json":
            return self._status(415)
        document = await request.json()
        if request.method == "POST" and path == _SELF:
            user = {"status": {"userInfo": {"username": USER}}}
            return web.json_response(document | user, status=201)
        namespace = path.removesuffix("/configmaps")
        of_a_namespace = namespace != path and namespace in self._objects
        if request.method == "POST" and (path == _SECRETS or of_a_namespace):
            path = f"{path}/{document['metadata']['name']}"
            if path in self._objects:
                return self._status(409)
            if "resourceVersion" in document["metadata"]:
                return self._status(400)
        elif request.method == "PUT":
            if path not in self._objects:
                return self._status(404)
            stated = document["metadata"].get("resourceVersion")
            if not stated:
                return self._status(422)
            if stated != self._objects[path]["metadata"]["resourceVersion"]:
                return self._status(409)
        else:
            return self._status(405)
        encoded = [
            *(document.get("data", {}).values() if "/secrets/" in path else ()),
            *(each["clientConfig"].get("caBundle", "") for each in document.get("webhooks", ())),
        ]
        try:
            for each in encoded:
                base64.b64decode(each, validate=True)
        except ValueError:
            return self._status(400)
        self.put(path, document)
        self.writes.append((request.method, path))
        return web.json_response(
            self._objects[path], status=201 if request.method == "POST" else 200
        )

    def _status(self, code: int) -> web.Response:
        self.refused.append(code)
        document = {"apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code}
        return web.json_response(document, status=code)

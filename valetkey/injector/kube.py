"""The Kubernetes API, as far as the injector needs it: read an object, write it if nobody else has.

Invariant: a write names the version that it rests on (``metadata.resourceVersion``), so of two
replicas that write at once one is told, and looks again.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import urlencode

import msgspec

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.fetch import FetchFailed, exchange
from valetkey.injector.settings import ApiServerSettings, version_of

SECRETS: Final = "/api/v1/namespaces/{namespace}/secrets"
CONFIG_MAPS: Final = "/api/v1/namespaces/{namespace}/configmaps"
_ALL_CONFIG_MAPS: Final = "/api/v1/configmaps"
_NAMESPACES: Final = "/api/v1/namespaces"
_REVIEWS: Final = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
WEBHOOKS: Final = "/apis/admissionregistration.k8s.io/v1/{kind}"

# A ConfigMap is 1 MiB at most, and a list of metadata a kilobyte for each namespace.
_MOST: Final = 16 << 20
_METADATA: Final = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"

Json = dict[str, Any]


class KubeError(Exception):
    """The API server can't be asked, or did not do it. The message holds nothing secret."""


class Conflict(KubeError):  # noqa: N818 - reads as what it is
    """Somebody else was there first: look again."""


class Kube:
    """One API server, as the service account of this pod."""

    def __init__(
        self, settings: ApiServerSettings, environ: Mapping[str, str] = os.environ
    ) -> None:
        """Blocking. Raises `ConfigError` outside of a cluster."""
        self._settings = settings
        self._url = (settings.url or _url(environ)).rstrip("/")
        self.namespace = settings.namespace or namespace_of(settings)

    async def version(self) -> tuple[int, int]:
        """The cluster's: major, minor. Raises `KubeError`."""
        found = await self.get("/version")
        try:
            return version_of(f"{found['major']}.{found['minor']}")
        except (KeyError, TypeError, ValueError) as error:
            raise KubeError("/version has no version") from error

    async def get(self, path: str) -> Json:
        """Raises `KubeError`; `LookupError` where there is no such object."""
        status, body = await self._call("GET", path)
        if status == 404:
            raise LookupError(path)
        return _object(path, status, body)

    async def create(self, path: str, document: Json) -> Json:
        """What was made. Raises `KubeError`, `Conflict` where there is one by now."""
        status, body = await self._call("POST", path, document)
        return _object(path, status, body)

    async def whoami(self) -> str:
        """The user that the API server takes this pod for (SelfSubjectReview)."""
        kind = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
        made = await self.create(_REVIEWS, kind)
        try:
            return str(made["status"]["userInfo"]["username"])
        except (KeyError, TypeError) as error:
            raise KubeError(f"{_REVIEWS}: the answer names nobody") from error

    async def namespaces(self, selector: str) -> set[str]:
        """Those with these labels that are not being deleted. Raises `KubeError`."""
        found = await self._list(_NAMESPACES, "labelSelector", selector)
        return {each["name"] for each in found if not each.get("deletionTimestamp")}

    async def config_maps(self, name: str) -> dict[str, str]:
        """By namespace, the version of the ConfigMap of this name. Raises `KubeError`."""
        found = await self._list(_ALL_CONFIG_MAPS, "fieldSelector", f"metadata.name={name}")
        return {each["namespace"]: each["resourceVersion"] for each in found}

    async def _list(self, path: str, key: str, selector: str) -> list[Json]:
        """The metadata of what a selector chooses."""
        status, body = await self._call(
            "GET", f"{path}?{urlencode({key: selector})}", read=_METADATA
        )
        found = _object(path, status, body)
        try:
            return [each["metadata"] for each in found["items"] or ()]
        except (KeyError, TypeError) as error:
            raise KubeError(f"{path}: the answer is no list") from error

    async def replace(self, path: str, document: Json) -> Json:
        """What it is now. Raises `KubeError`, `Conflict` where it is another than was read."""
        if not document.get("metadata", {}).get("resourceVersion"):
            raise KubeError(f"{path}: no version was read to be replaced")
        status, body = await self._call("PUT", path, document)
        return _object(path, status, body)

    async def _call(
        self,
        method: str,
        path: str,
        document: Json | None = None,
        read: str = "application/json",
    ) -> tuple[int, bytes]:
        try:
            # The kubelet renews it.
            token = await asyncio.to_thread(self._settings.token_file.read_text, "ascii")
            return await exchange(
                method,
                self._url + path,
                ca_file=self._settings.ca_file,
                headers={
                    "Authorization": f"Bearer {token.strip()}",
                    "Accept": read,
                    **({"Content-Type": "application/json"} if document is not None else {}),
                },
                body=None if document is None else msgspec.json.encode(document),
                most=_MOST,
            )
        except (OSError, UnicodeDecodeError, FetchFailed) as error:
            raise KubeError(f"{method} {path}: {error}") from error


def _object(path: str, status: int, body: bytes) -> Json:
    if status == 409:
        raise Conflict(path)
    if status not in {200, 201}:
        raise KubeError(f"{path}: status {status}")
    try:
        return msgspec.json.decode(body, type=Json)
    except msgspec.DecodeError as error:
        raise KubeError(f"{path}: the answer is no object") from error


def _url(environ: Mapping[str, str]) -> str:
    host, port = environ.get("KUBERNETES_SERVICE_HOST"), environ.get("KUBERNETES_SERVICE_PORT")
    if not host or not port:
        raise ConfigError("webhook.api.url: this is no pod of a cluster, so it has to be said")
    return f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"


def namespace_of(settings: ApiServerSettings) -> str:
    """Of the pod that this is. Blocking. Raises `ConfigError` outside of a cluster."""
    try:
        return settings.namespace_file.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"webhook.api.namespace: {settings.namespace_file} can't be read, so it has to be said"
        ) from error

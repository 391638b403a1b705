"""The operator's file, kept in each namespace of sidecars: the injector copies it, nobody else may.

Invariants:

- What is copied was read after the copy that it replaces, and the write names the version of that
  one; so whatever replicas do at once, a copy never becomes an older one.
- A file that is bad is not copied. What was good last is kept beside it, so that it is still there
  when the injector starts anew.
- A namespace is covered once this replica saw the very file there. Since then nobody but an
  injector can have written it (the validating webhook). Before, its owner could: pods wait.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from typing import Any, Final

from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.injector.kube import CONFIG_MAPS, Conflict, Kube, KubeError
from valetkey.injector.metrics import Metrics
from valetkey.injector.settings import OperatorLayerSettings
from valetkey.proxy.core.operator_file import compile_operator_file
from valetkey.proxy.settings import OperatorFileSettings

_MANAGED: Final = {"app.kubernetes.io/managed-by": "valetkey-injector"}

Json = dict[str, Any]


class OperatorFile:
    """The file and its copies. `run` until cancelled."""

    def __init__(
        self,
        layer: OperatorLayerSettings,
        kube: Kube,
        metrics: Metrics,
        excluded: tuple[str, ...],
    ) -> None:
        self._settings = layer
        self._kube = kube
        self._metrics = metrics
        self._excluded = frozenset(excluded)
        self._log = Log("operator-file")
        self._asked = asyncio.Event()
        self._covered: set[str] = set()
        self._current: dict[str, tuple[str, str]] = {}
        """By namespace: the version of a copy, and the digest of the file that it was then."""
        self._rejected = ""
        self.user = ""
        """Who the injector is to the API server; empty until it was told."""
        self.problem = "not looked yet"
        """Why copies may not be what they should be; empty where they are."""

    def covers(self, namespace: str) -> bool:
        """Whether the operator's file is in the namespace; if not, it is looked for at once."""
        if namespace in self._covered:
            return True
        self._asked.set()
        return False

    async def run(self) -> None:
        while True:
            self._asked.clear()
            await self.look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._settings.check_every):
                    await self._asked.wait()

    async def look(self) -> None:
        """Bring all copies up to what the file is now, as far as that can be done."""
        try:
            if not self.user:
                self.user = await self._kube.whoami()
            problem = await self._copy()
        except (KubeError, LookupError) as error:
            problem = str(error)
        if problem and problem != self.problem:
            self._log.error("operator_file_not_everywhere", reason=problem)
        self.problem = problem

    async def _copy(self) -> str:
        """What is wrong yet, or empty. Raises `KubeError`."""
        wanted = await self._kube.namespaces(self._settings.namespaces)
        wanted -= {*self._excluded, self._kube.namespace}
        there = await self._kube.config_maps(self._settings.config_map)
        self._covered &= wanted & there.keys()
        # After the copies' versions: of what is written over, this is the newer one.
        text = await self._good()
        digest = hashlib.sha256(text.encode()).hexdigest()
        failed = []
        for namespace in sorted(wanted):
            try:
                version = there.get(namespace)
                if version is None or self._current.get(namespace) != (version, digest):
                    await self._put(namespace, text, digest, version)
                self._covered.add(namespace)
            except (KubeError, LookupError) as error:
                # Of another replica's making, or of a namespace that is about to go: next time.
                failed.append(f"{namespace}: {error}")
        self._current = {name: self._current[name] for name in self._covered}
        copies = self._metrics.operator_copies
        copies.labels("current").set(len(wanted) - len(failed))
        copies.labels("due").set(len(failed))
        return "; ".join(failed[:3])

    async def _put(self, namespace: str, text: str, digest: str, version: str | None) -> None:
        """Raises `KubeError`, `LookupError`."""
        place = CONFIG_MAPS.format(namespace=namespace)
        name, data = self._settings.config_map, {self._settings.key: text}
        if version is None:
            made = await self._kube.create(place, _config_map(namespace, name, data))
        else:
            made = await self._kube.get(f"{place}/{name}")
            if made["metadata"]["resourceVersion"] != version:
                raise Conflict(f"{place}/{name}")
            if made.get("data") != data or made.get("binaryData"):
                metadata = {**made["metadata"]}
                metadata["labels"] = {**(metadata.get("labels") or {}), **_MANAGED}
                made = await self._kube.replace(
                    f"{place}/{name}",
                    {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data},
                )
                self._log.info("operator_file_copied", workload=namespace, hash=digest)
        self._current[namespace] = (made["metadata"]["resourceVersion"], digest)

    async def _good(self) -> str:
        """The file, or the last one that was good. Raises `KubeError`, `LookupError`."""
        place = CONFIG_MAPS.format(namespace=self._kube.namespace)
        try:
            read = await self._kube.get(f"{place}/{self._settings.config_map}")
            text = await asyncio.to_thread(self._read, read)
        except (LookupError, ConfigError) as error:
            self._metrics.operator_rejected.set(1)
            if str(error) != self._rejected:
                self._rejected = str(error)
                self._log.error("operator_file_rejected", reason=error)
            return await self._last_good(place, error)
        self._metrics.operator_rejected.set(0)
        self._rejected = ""
        await self._keep(place, text)
        return text

    def _read(self, config_map: Json) -> str:
        """Raises `ConfigError`."""
        key = self._settings.key
        text = (config_map.get("data") or {}).get(key)
        if not isinstance(text, str):
            raise ConfigError(f"ConfigMap {self._settings.config_map} has no key {key}")
        compile_operator_file(settings.parse(OperatorFileSettings, text, name=key, program="proxy"))
        return text

    async def _last_good(self, place: str, why: Exception) -> str:
        try:
            read = await self._kube.get(f"{place}/{self._settings.in_force}")
            return await asyncio.to_thread(self._read, read)
        except (LookupError, ConfigError) as error:
            raise KubeError(f"no good file, now or before: {why}") from error

    async def _keep(self, place: str, text: str) -> None:
        """Put it beside the file, for when that is bad. Raises `KubeError`."""
        name, data = self._settings.in_force, {self._settings.key: text}
        try:
            kept = await self._kube.get(f"{place}/{name}")
        except LookupError:
            await self._kube.create(place, _config_map(self._kube.namespace, name, data))
            return
        if kept.get("data") != data:
            await self._kube.replace(f"{place}/{name}", {**kept, "data": data})

    def details(self) -> dict[str, str]:
        """For ``/readyz``."""
        return {"operator_file": self._rejected or self.problem or "in force"}


def _config_map(namespace: str, name: str, data: dict[str, str]) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": namespace, "labels": _MANAGED},
        "data": data,
    }

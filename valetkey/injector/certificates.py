"""Where the webhook's certificate comes from: files that somebody renews, or the injector itself.

Both are looked at again and again. What can't be had or used changes nothing in force, and says so:
log, metric, ``/readyz``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log
from valetkey.contracts.service import TlsSettings
from valetkey.injector import authorities
from valetkey.injector.core import rotation
from valetkey.injector.core.rotation import State, Step, Times
from valetkey.injector.kube import SECRETS, WEBHOOKS, Conflict, Kube, KubeError
from valetkey.injector.metrics import Metrics
from valetkey.injector.serving import ServedCertificate
from valetkey.injector.settings import OwnCertificateSettings

Clock = Callable[[], float]
_KEY: Final = "state.json"
# A look makes at most so many steps: each is one write, and others may be at it too.
_STEPS: Final = 20
_FILES_EVERY: Final = 2.0


class Certificates(ABC):
    """Looks for a certificate now and then. ``problem`` says why the last look failed."""

    def __init__(self, served: ServedCertificate, metrics: Metrics, every: float) -> None:
        self.served = served
        self.problem = "no certificate yet"
        self._metrics = metrics
        self._every = every
        self._log = Log("certificates")

    async def run(self) -> None:
        """For ever."""
        while True:
            await self.look()
            await asyncio.sleep(self._every)

    async def look(self) -> None:
        """Once."""
        try:
            changed = await self._look()
        except (ConfigError, KubeError) as error:
            self.problem = str(error)
            self._metrics.certificates.labels("failed").inc()
            self._log.error("certificate_unusable", reason=self.problem)
            return
        self.problem = ""
        if changed:
            self._metrics.certificates.labels("taken_up").inc()
            self._metrics.expiry.set(self.served.expires)
            self._log.info("certificate_taken_up", seconds=round(self.served.expires - time.time()))

    @abstractmethod
    async def _look(self) -> bool:
        """Whether another is served now. Raises `ConfigError`, `KubeError`."""


class FileCertificates(Certificates):
    """Files of cert-manager, or your own."""

    def __init__(
        self,
        files: TlsSettings,
        served: ServedCertificate,
        metrics: Metrics,
        every: float = _FILES_EVERY,
    ) -> None:
        super().__init__(served, metrics, every)
        self._files = files

    async def _look(self) -> bool:
        # A volume of a Secret is exchanged as a whole, but between two reads; then the two do not
        # fit together, and the next look finds those that do.
        certificate, key = await asyncio.to_thread(self._read)
        return await self.served.replace(certificate, key)

    def _read(self) -> tuple[bytes, bytes]:
        return _content(self._files.cert_file), _content(self._files.key_file)


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error


class OwnCertificates(Certificates):
    """A CA and a leaf that all replicas share through a Secret (`core.rotation`)."""

    def __init__(
        self,
        settings: OwnCertificateSettings,
        kube: Kube,
        served: ServedCertificate,
        metrics: Metrics,
        now: Clock = time.time,
    ) -> None:
        super().__init__(served, metrics, settings.check_every)
        self._settings = settings
        self._kube = kube
        self._now = now
        self._times = Times(settings.ca_lifetime, settings.leaf_lifetime, settings.overlap)
        host = f"{settings.service}.{kube.namespace}"
        # The API server asks for SERVICE.NAMESPACE.svc.
        self.names = (f"{host}.svc", f"{host}.svc.cluster.local", host, settings.service)
        self._secrets = SECRETS.format(namespace=kube.namespace)

    async def _look(self) -> bool:
        changed = False
        for _ in range(_STEPS):
            try:
                secret, state = await self._read()
                now = self._now()
                if state is not None and not self._is_lost(state, now):
                    await self._announce(state.bundle)
                    leaf = state.leaf
                    changed |= await self.served.replace(
                        leaf.certificate.encode(), leaf.key.encode()
                    )
                step = rotation.due(state, self.names, self._times, now)
                if step is Step.NOTHING:
                    return changed
                made = await asyncio.to_thread(self._after, step, state, now)
                await self._write(secret, made)
                self._log.info("certificates_step", action=step.value)
            except Conflict:
                continue  # another replica was quicker: its state counts
        raise KubeError("others change Secret or webhook configurations all the time")

    def _is_lost(self, state: State, now: float) -> bool:
        return rotation.due(state, self.names, self._times, now) is Step.BEGIN

    def _after(self, step: Step, state: State | None, now: float) -> State:
        """Blocking: keys are made."""
        settings = self._settings
        if state is None or step is Step.BEGIN:
            first = authorities.new_authority(now, settings.ca_lifetime)
            return State((first,), self._leaf(first, now))
        match step:
            case Step.PREPARE:
                return rotation.prepared(
                    state, authorities.new_authority(now, settings.ca_lifetime)
                )
            case Step.MARK:
                return rotation.marked(state, now)
            case Step.SWITCH:
                assert state.coming is not None
                return rotation.switched(state, self._leaf(state.coming, now), now)
            case Step.DROP:
                return rotation.dropped(state, self._times, now)
            case _:
                return State(state.authorities, self._leaf(state.authorities[0], now))

    def _leaf(self, authority: rotation.Authority, now: float) -> rotation.Leaf:
        return authorities.new_leaf(authority, self.names, now, self._settings.leaf_lifetime)

    async def _read(self) -> tuple[dict[str, Any] | None, State | None]:
        """The Secret and what is in it; an empty one may have been made for the injector."""
        try:
            secret = await self._kube.get(f"{self._secrets}/{self._settings.secret}")
        except LookupError:
            return None, None
        encoded = (secret.get("data") or {}).get(_KEY)
        if encoded is None:
            return secret, None
        try:
            state = msgspec.json.decode(base64.b64decode(encoded, validate=True), type=State)
        except (msgspec.MsgspecError, binascii.Error, TypeError, ValueError) as error:
            # Somebody's else, or of another version: nothing that is to be written over.
            raise KubeError(
                f"Secret {self._settings.secret}: {_KEY} can't be read; delete it to begin anew"
            ) from error
        if not state.authorities:
            raise KubeError(f"Secret {self._settings.secret}: {_KEY} has no CA")
        return secret, state

    async def _write(self, secret: dict[str, Any] | None, state: State) -> None:
        encoded = base64.b64encode(msgspec.json.encode(state)).decode()
        if secret is None:
            made = {
                "apiVersion": "v1",
                "kind": "Secret",
                "metadata": {"name": self._settings.secret, "namespace": self._kube.namespace},
                "type": "Opaque",
                "data": {_KEY: encoded},
            }
            await self._kube.create(self._secrets, made)
            return
        data = {**(secret.get("data") or {}), _KEY: encoded}
        await self._kube.replace(
            f"{self._secrets}/{self._settings.secret}", {**secret, "data": data}
        )

    async def _announce(self, bundle: str) -> None:
        """Have all webhook configurations trust the bundle. Raises `KubeError`, `Conflict`."""
        wanted = base64.b64encode(bundle.encode()).decode()
        for kind, name in (
            ("mutatingwebhookconfigurations", self._settings.mutating),
            ("validatingwebhookconfigurations", self._settings.validating),
        ):
            if name is None:
                continue
            path = f"{WEBHOOKS.format(kind=kind)}/{name}"
            try:
                configuration = await self._kube.get(path)
            except LookupError as error:
                raise KubeError(f"there is no {kind} {name}") from error
            own = [
                webhook["clientConfig"]
                for webhook in configuration.get("webhooks") or ()
                if self._is_own(webhook["clientConfig"].get("service"))
            ]
            if not own:
                raise KubeError(f"{kind} {name} has no webhook of {self.names[0]}")
            if all(each.get("caBundle") == wanted for each in own):
                continue
            for each in own:
                each["caBundle"] = wanted
            await self._kube.replace(path, configuration)

    def _is_own(self, service: Any) -> bool:
        return isinstance(service, dict) and (
            service.get("name"), service.get("namespace")
        ) == (self._settings.service, self._kube.namespace)  # fmt: skip

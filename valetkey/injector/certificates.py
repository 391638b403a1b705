"""The webhook's certificate, where the injector makes it itself.

Where files are to be taken, `valetkey.contracts.certificate_files` does it.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import time
from typing import Any, Final

import msgspec

from valetkey.contracts.certificate_files import CertificateMetrics, CertificateSource, Clock
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.served_certificate import ServedCertificate
from valetkey.injector import authorities
from valetkey.injector.core import rotation
from valetkey.injector.core.rotation import State, Step, Times
from valetkey.injector.kube import SECRETS, WEBHOOKS, Conflict, Kube, KubeError
from valetkey.injector.settings import OwnCertificateSettings

_KEY: Final = "state.json"
# A look makes at most so many steps: each is one write, and others may be at it too.
_STEPS: Final = 20


class OwnCertificates(CertificateSource):
    """A CA and a leaf that all replicas share through a Secret (`core.rotation`)."""

    failures = (ConfigError, KubeError)

    def __init__(
        self,
        settings: OwnCertificateSettings,
        kube: Kube,
        served: ServedCertificate,
        metrics: CertificateMetrics,
        now: Clock = time.time,
    ) -> None:
        super().__init__(served, metrics, settings.check_every, now)
        self._settings = settings
        self._kube = kube
        self._times = Times(settings.ca_lifetime, settings.leaf_lifetime, settings.overlap)
        host = f"{settings.service}.{kube.namespace}"
        # The API server asks for SERVICE.NAMESPACE.svc.
        self.names = (f"{host}.svc", f"{host}.svc.cluster.local", host, settings.service)
        self._secrets = SECRETS.format(namespace=kube.namespace)

    async def _look(self) -> None:
        for _ in range(_STEPS):
            try:
                secret, state = await self._read()
                now = self._now()
                if state is not None and not self._is_lost(state, now):
                    await self._announce(state.bundle)
                    leaf = state.leaf
                    await self.served.replace(leaf.certificate.encode(), leaf.key.encode(), now=now)
                step = rotation.due(state, self.names, self._times, now)
                if step is Step.NOTHING:
                    return
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

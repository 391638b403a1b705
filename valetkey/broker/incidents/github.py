"""Alerts of GitHub's secret scanning: signed by pinned keys, over the bytes as they came.

https://docs.github.com/en/code-security/secret-scanning/secret-scanning-partnership-program. An
alert has no time and may come again: what is known already opens nothing.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from valetkey.broker.incidents.exposed import Found, Recognises, recognise
from valetkey.broker.incidents.response import Report, Response
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.logs import Log

MAX_ALERTS: Final = 1000
_ECDSA: Final = ec.ECDSA(hashes.SHA256())


class Alert(msgspec.Struct, frozen=True):
    """One match. Members that are not known are passed over: they are not ours to define."""

    token: str
    type: str
    url: str = ""
    source: str = ""


class Feedback(msgspec.Struct, frozen=True):
    """What GitHub is told of one match: its SHA-256, and whether it was a credential of ours."""

    token_hash: str
    token_type: str
    label: str


class AlertInvalid(Exception):  # noqa: N818 - reads as what it is
    """The request is not a signed alert. The message holds nothing of it."""


class _Key(msgspec.Struct):
    key_identifier: str
    key: str


class _Keys(msgspec.Struct):
    public_keys: list[_Key]


_KEYS: Final = msgspec.json.Decoder(_Keys)
_ALERTS: Final = msgspec.json.Decoder(list[Alert])


class PinnedKeys:
    """The keys of a file as GitHub publishes them, by their identifier."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._keys: Mapping[str, ec.EllipticCurvePublicKey] = {}
        self._log = Log("broker.github")

    async def load(self) -> None:
        """Raises `ConfigError`."""
        try:
            self._keys = await asyncio.to_thread(self._read)
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self._path}: no keys of GitHub's: {error}") from error

    async def reload(self) -> None:
        """Read the file again; one that can't be used leaves the keys as they are."""
        try:
            await self.load()
        except ConfigError as error:
            self._log.error("keys_unusable", reason=error)

    def verify(self, body: bytes, *, identifier: str, signature: str) -> None:
        """Whether one of the keys signed these bytes. Raises `AlertInvalid`."""
        key = self._keys.get(identifier)
        if key is None:
            raise AlertInvalid("signed with a key that is not pinned")
        try:
            key.verify(base64.b64decode(signature, validate=True), body, _ECDSA)
        except (InvalidSignature, binascii.Error, ValueError) as error:
            raise AlertInvalid("bad signature") from error

    def _read(self) -> dict[str, ec.EllipticCurvePublicKey]:
        keys: dict[str, ec.EllipticCurvePublicKey] = {}
        for entry in _KEYS.decode(self._path.read_bytes()).public_keys:
            key = load_pem_public_key(entry.key.encode())
            if not isinstance(key, ec.EllipticCurvePublicKey) or key.curve.name != "secp256r1":
                raise ValueError("a key is not on P-256")
            keys[entry.key_identifier] = key
        if not keys:
            raise ValueError("it is empty")
        return keys


def read_alerts(body: bytes) -> list[Alert]:
    """Raises `AlertInvalid`."""
    try:
        alerts = _ALERTS.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise AlertInvalid("not a list of alerts") from error
    if len(alerts) > MAX_ALERTS:
        raise AlertInvalid("too many alerts at once")
    return alerts


class AlertDesk:
    """Acts on alerts. ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        response: Response,
        epochs: Epochs,
        recognisers: Sequence[Recognises],
        *,
        clock: Clock,
    ) -> None:
        self._response = response
        self._epochs = epochs
        self._recognisers = recognisers
        self._clock = clock
        self._log = Log("broker.github")

    async def take(self, alerts: Sequence[Alert]) -> list[Feedback]:
        """What each is; for what can still do harm, an incident. Raises `StoreError`."""
        return [await self._take(alert) for alert in alerts]

    async def _take(self, alert: Alert) -> Feedback:
        found = await recognise(alert.token, self._recognisers)
        if found is not None:
            if self._is_harmless(found):
                self._log.info("alert_passed_over", action=alert.type, reason="it counts no more")
            else:
                report = Report(
                    found.exposure,
                    source="github",
                    by="GitHub secret scanning",
                    reason=f"exposed on GitHub ({alert.type})",
                    evidence=alert.url,
                )
                await self._response.open(report)
        return Feedback(
            hashlib.sha256(alert.token.encode()).hexdigest(),
            alert.type,
            "false_positive" if found is None else "true_positive",
        )

    def _is_harmless(self, found: Found) -> bool:
        party = found.exposure.party
        epoch = self._epochs.of(party.issuer, party.subject) if party is not None else None
        return found.expires <= self._clock() or (epoch is not None and found.is_known(epoch))

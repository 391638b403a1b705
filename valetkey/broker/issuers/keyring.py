"""The broker's signing keys: loaded, rotated, published.

Invariants:

- Keys that don't open under the master key stop the start. New keys are made only where the
  database holds none, or by rotation: never because old ones can't be read.
- A key is stored (sealed) before it is published, and published before it signs
  (`core.rotation`).
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import msgspec
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from valetkey.broker.core.rotation import KeyTimes, Plan, Schedule, plan
from valetkey.broker.store.keys import SigningKeyStore, StoredKey
from valetkey.broker.store.sealing import SealBroken, Sealer
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.jose import KeySet, b64url, thumbprint
from valetkey.contracts.logs import Log

Clock = Callable[[], float]


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A key in use. ``jwk`` is the public half as published."""

    times: KeyTimes
    created_at: float
    jwk: dict[str, str]
    private: ec.EllipticCurvePrivateKey = field(repr=False)


@dataclass(frozen=True, slots=True)
class Published:
    """The JWK Set at one moment: its bytes, its entity tag, and the keys to verify with."""

    document: bytes
    etag: str
    keys: KeySet


class KeyRing:
    """All keys of one broker. ``longest_ttl`` is in seconds."""

    def __init__(
        self,
        store: SigningKeyStore,
        sealer: Sealer,
        schedule: Schedule,
        *,
        longest_ttl: float,
        clock: Clock,
    ) -> None:
        self._store = store
        self._sealer = sealer
        self._schedule = schedule
        self._longest_ttl = longest_ttl
        self._clock = clock
        self._keys: dict[str, SigningKey] = {}
        self._signing: SigningKey | None = None
        self._signing_until = 0.0
        self._published: Published | None = None
        self._rotating = asyncio.Lock()
        self._log = Log("broker.keys")

    async def load(self) -> None:
        """Read the keys of earlier runs and make the first one. Raises `ConfigError`."""
        self._take(await self._store.all())
        await self.rotate()
        current = self._plan()
        still_signing = [
            kid
            for kid, key in self._keys.items()
            if kid == current.signing or key.times.signs_from > self._clock()
        ]
        await self._store.raise_longest_ttl(still_signing, self._longest_ttl)
        self._take(await self._store.all())
        self._store.on_change(self._changed)

    def signer(self) -> SigningKey:
        """The key that signs now."""
        if self._signing is None or self._clock() >= self._signing_until:
            self._choose_signer()
        assert self._signing is not None, "load comes before the first use"
        return self._signing

    def published(self) -> Published:
        """The current JWK Set."""
        assert self._published is not None, "load comes before the first use"
        return self._published

    def signing_age(self) -> float:
        """Seconds since the signing key was made."""
        return max(0.0, self._clock() - self.signer().created_at)

    def signing_due(self) -> float:
        """When another key is to sign, seconds since the epoch.

        That lies in the past where it could not be made.
        """
        return self.signer().times.signs_from + self._schedule.rotate_every

    async def rotate(self) -> None:
        """Make and drop keys as the schedule says for now. Cheap when nothing is due."""
        async with self._rotating:
            if not self._is_due(self._plan()):
                return
            async with self._store.exclusive() as held:
                # Another replica may have done it: what is stored now is what counts.
                stored = {key.kid: key for key in await held.all()}
                due = plan(
                    [KeyTimes(k.kid, k.signs_from, k.longest_ttl) for k in stored.values()],
                    self._schedule,
                    now=self._clock(),
                )
                if due.create_for is not None:
                    made = self._make(due.create_for)
                    await held.add(made)
                    stored[made.kid] = made
                if due.gone:
                    await held.remove(due.gone)
                    for kid in due.gone:
                        del stored[kid]
                        self._log.info("signing_key_removed", kid=kid)
            self._take(stored.values())

    def holds(self, kid: str) -> bool:
        """Whether this is one of the keys, whatever it does at present."""
        return kid in self._keys

    async def replace(self, kid: str) -> str:
        """Drop a key that leaked, at once; gives the one that signs now. Idempotent.

        Nothing under it verifies any more, and its successor was not published before it signs:
        verifiers that hold an older JWK Set fetch it again for the new ``kid``.
        """
        async with self._rotating:
            async with self._store.exclusive() as held:
                stored = {key.kid: key for key in await held.all()}
                times = [KeyTimes(k.kid, k.signs_from, k.longest_ttl) for k in stored.values()]
                if stored.pop(kid, None) is not None:
                    if plan(times, self._schedule, now=self._clock()).signing == kid:
                        made = self._make(self._clock())
                        await held.add(made)
                        stored[made.kid] = made
                    await held.remove([kid])
                    self._log.warning("signing_key_replaced", kid=kid)
            self._take(stored.values())
            return self.signer().times.kid

    async def _changed(self, _key: str) -> None:
        """A replica (or this one) changed the keys."""
        async with self._rotating:
            self._take(await self._store.all())

    def _take(self, stored: Iterable[StoredKey]) -> None:
        """Hold exactly these keys from now on."""
        keys: dict[str, SigningKey] = {}
        for row in stored:
            known = self._keys.get(row.kid)
            if known is None:
                keys[row.kid] = self._open(row)
            else:
                keys[row.kid] = _with_ttl(known, row.longest_ttl)
        self._keys = keys
        if keys:
            self._choose_signer()
            self._publish()

    @staticmethod
    def _is_due(due: Plan) -> bool:
        return due.create_for is not None or bool(due.gone)

    def _plan(self) -> Plan:
        return plan([key.times for key in self._keys.values()], self._schedule, now=self._clock())

    def _choose_signer(self) -> None:
        now = self._clock()
        signing = self._plan().signing
        self._signing = self._keys[signing] if signing is not None else None
        self._signing_until = min(
            (k.times.signs_from for k in self._keys.values() if k.times.signs_from > now),
            default=float("inf"),
        )

    def _publish(self) -> None:
        ordered = sorted(self._keys.values(), key=lambda key: key.times.signs_from)
        document = msgspec.json.encode({"keys": [key.jwk for key in ordered]})
        self._published = Published(
            document=document,
            etag=f'"{hashlib.sha256(document).hexdigest()[:32]}"',
            keys=KeySet.from_jwks(document, algorithms=frozenset({"ES256"})),
        )

    def _make(self, signs_from: float) -> StoredKey:
        private = ec.generate_private_key(ec.SECP256R1())
        numbers = private.public_key().public_numbers()
        public = {
            "kty": "EC",
            "crv": "P-256",
            "x": b64url(numbers.x.to_bytes(32)),
            "y": b64url(numbers.y.to_bytes(32)),
        }
        kid = thumbprint(public)
        jwk = {**public, "kid": kid, "use": "sig", "alg": "ES256"}
        encoded = private.private_bytes(
            serialization.Encoding.DER,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
        now = self._clock()
        self._log.info("signing_key_created", kid=kid, seconds=round(signs_from - now, 3))
        return StoredKey(
            kid=kid,
            sealed=self._sealer.seal(encoded, kid=kid),
            public_jwk=msgspec.json.encode(jwk).decode(),
            created_at=now,
            signs_from=signs_from,
            longest_ttl=self._longest_ttl,
        )

    def _open(self, stored: StoredKey) -> SigningKey:
        try:
            encoded = self._sealer.open(stored.sealed, kid=stored.kid)
        except SealBroken as error:
            raise ConfigError(
                f"signing key {stored.kid} does not open with this master key: wrong "
                "master_key_file, or the database was changed"
            ) from error
        private = serialization.load_der_private_key(encoded, password=None)
        if not isinstance(private, ec.EllipticCurvePrivateKey):
            raise ConfigError(f"signing key {stored.kid} is no P-256 key")
        jwk = msgspec.json.decode(stored.public_jwk, type=dict[str, str])
        # The kid is the AAD and the thumbprint of the public half: a swapped JWK shows here.
        numbers = private.public_key().public_numbers()
        own = {**jwk, "x": b64url(numbers.x.to_bytes(32)), "y": b64url(numbers.y.to_bytes(32))}
        if thumbprint(own) != stored.kid or own != jwk:
            raise ConfigError(f"signing key {stored.kid}: public and private half differ")
        times = KeyTimes(stored.kid, stored.signs_from, stored.longest_ttl)
        return SigningKey(times, stored.created_at, jwk, private)


def _with_ttl(key: SigningKey, ttl: float) -> SigningKey:
    return SigningKey(
        KeyTimes(key.times.kid, key.times.signs_from, max(ttl, key.times.longest_ttl)),
        key.created_at,
        key.jwk,
        key.private,
    )

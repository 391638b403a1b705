"""Trusted issuers: whose tokens are believed, with which keys, for which audience.

Broker and collector both authenticate callers by tokens of external issuers; this is the one
reader of such tokens. An issuer is pinned to its key source in settings: nothing in a token can
name another place to fetch keys from. Unknown ``kid`` leads to one refetch, at most every
`REFETCH_COOLDOWN`; a failed or empty answer keeps the old set (RFC 7517 pitfalls). A set is
fetched again when it is older than `REFRESH_AFTER`, so that withdrawn keys stop counting.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Final, Literal

import aiohttp

from valetkey.contracts import jose
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.jose import KeySet, TokenInvalid, UnknownKey, VerifiedClaims
from valetkey.contracts.logs import Log
from valetkey.contracts.settings import Settings

REFETCH_COOLDOWN: Final = 10.0
# A set this old is fetched again: a key that the issuer withdrew must not count until we restart.
REFRESH_AFTER: Final = 300.0
_FETCH_TIMEOUT: Final = 5.0
_MAX_JWKS: Final = 256 * 1024

Algorithm = Literal["ES256", "ES384", "RS256", "PS256", "EdDSA"]
Use = Literal["workload", "user", "admin"]


class IssuerSettings(Settings, frozen=True, kw_only=True):
    """One trusted issuer.

    ``use`` says for what its tokens count: ``workload`` (they authenticate a workload), ``user``
    (a workload may act for their subject), ``admin`` (their subject administers the broker).
    Exactly one of ``jwks_file`` and ``jwks_url`` is given.
    ``audience_list`` accepts a one-element list as ``aud`` (Kubernetes writes that).
    ``reusable`` accepts the same token more than once and for longer than 60 s as a client
    assertion: projected token files need it, self-signed assertions must not have it.
    """

    issuer: str
    audience: str
    use: Use
    jwks_file: Path | None = None
    jwks_url: str | None = None
    jwks_ca_file: Path | None = None
    algorithms: tuple[Algorithm, ...] = ("ES256",)
    audience_list: bool = False
    reusable: bool = False


class TrustedIssuer:
    """One issuer with its current keys."""

    def __init__(self, settings: IssuerSettings) -> None:
        if (settings.jwks_file is None) == (settings.jwks_url is None):
            raise ConfigError(f"issuer {settings.issuer}: give one of jwks_file and jwks_url")
        if not settings.algorithms:
            raise ConfigError(f"issuer {settings.issuer}: algorithms is empty")
        if not settings.issuer or not settings.audience:
            raise ConfigError("an issuer needs issuer and audience")
        self.settings = settings
        self._algorithms = frozenset(settings.algorithms)
        self._checks = {
            "iss": jose.equals(settings.issuer),
            "aud": jose.audience_is(settings.audience, allow_list=settings.audience_list),
            "sub": jose.present,
        }
        self._keys: KeySet | None = None
        self._fetched_at = float("-inf")
        self._fresh_until = float("-inf")
        self._fetching = asyncio.Lock()
        self._log = Log("issuer")

    async def verify(self, token: jose.UnverifiedToken, *, now: float) -> VerifiedClaims:
        """Verify with this issuer's keys; one refetch for an unknown key."""
        keys = self._keys
        if keys is None or time.monotonic() >= self._fresh_until:
            keys = await self._refetch(keys)
        if keys is None:
            raise TokenInvalid("the issuer's keys are not available")
        try:
            return self._verify_with(keys, token, now)
        except UnknownKey:
            newer = await self._refetch(keys)
            if newer is None or newer is keys:
                raise
            return self._verify_with(newer, token, now)

    def _verify_with(self, keys: KeySet, token: jose.UnverifiedToken, now: float) -> VerifiedClaims:
        return jose.verify(token, keys, algorithms=self._algorithms, checks=self._checks, now=now)

    async def _refetch(self, seen: KeySet | None) -> KeySet | None:
        async with self._fetching:
            if self._keys is not seen:  # somebody else fetched while we waited
                return self._keys
            if time.monotonic() - self._fetched_at < REFETCH_COOLDOWN:
                return self._keys
            self._fetched_at = time.monotonic()
            try:
                document = await self._read()
                self._keys = KeySet.from_jwks(document, algorithms=self._algorithms)
                self._fresh_until = time.monotonic() + REFRESH_AFTER
            except (OSError, aiohttp.ClientError, TimeoutError, TokenInvalid) as error:
                self._log.warning(
                    "jwks_unavailable",
                    issuer=self.settings.issuer,
                    error_type=type(error).__name__,
                )
            return self._keys

    async def _read(self) -> bytes:
        if self.settings.jwks_file is not None:
            return await asyncio.to_thread(self.settings.jwks_file.read_bytes)
        assert self.settings.jwks_url is not None
        ca_file = self.settings.jwks_ca_file
        tls = True if ca_file is None else _context(ca_file)
        timeout = aiohttp.ClientTimeout(total=_FETCH_TIMEOUT)
        # Redirects would let the answer come from a place that nobody pinned.
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=False) as session,
            session.get(self.settings.jwks_url, ssl=tls, allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise TokenInvalid(f"JWKS endpoint answered {response.status}")
            body = await response.content.read(_MAX_JWKS + 1)
            if len(body) > _MAX_JWKS:
                raise TokenInvalid("JWK Set is too large")
            return body


def _context(ca_file: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(ca_file))


class TrustedIssuers:
    """All issuers of a program, by exact ``iss``."""

    def __init__(self, issuers: tuple[IssuerSettings, ...]) -> None:
        if not issuers:
            raise ConfigError("issuers is empty: nobody could ever authenticate")
        self._by_name = {settings.issuer: TrustedIssuer(settings) for settings in issuers}
        if len(self._by_name) != len(issuers):
            raise ConfigError("an issuer is listed twice")

    def find(self, token: jose.UnverifiedToken) -> TrustedIssuer:
        """The issuer that the token *claims*; nothing is verified yet. Raises `TokenInvalid`."""
        issuer = self._by_name.get(token.unverified_issuer)
        if issuer is None:
            raise TokenInvalid("issuer is not trusted")
        return issuer

    async def verify(
        self, compact: str, *, use: Use, now: float
    ) -> tuple[VerifiedClaims, IssuerSettings]:
        """Verify a token of an issuer that is trusted for ``use``. Raises `TokenInvalid`."""
        token = jose.parse(compact)
        issuer = self.find(token)
        if issuer.settings.use != use:
            raise TokenInvalid(f"issuer is not trusted for {use} tokens")
        return await issuer.verify(token, now=now), issuer.settings

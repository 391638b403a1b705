"""Trusted issuers: whose tokens are believed, with which keys, for which audience.

Broker and collector both authenticate callers by tokens of external issuers; this is the one
reader of such tokens. An issuer is pinned to its key source in settings: nothing in a token can
name another place to fetch keys from. What an issuer's kind adds to that is in a file of its own:
`contracts.spiffe`, and ``broker/trust/`` for what only the broker does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import msgspec

from valetkey.contracts import jose
from valetkey.contracts.claims import ClaimTable, check_tables
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.fetch import fetch, is_safe_url
from valetkey.contracts.jose import KeySet, TokenInvalid, UnknownKey, VerifiedClaims
from valetkey.contracts.keys import KeySource
from valetkey.contracts.settings import Duration, Settings, duration
from valetkey.contracts.spiffe_id import SpiffeId, SpiffeIdInvalid
from valetkey.contracts.subjects import WorkloadPattern

Algorithm = Literal["ES256", "ES384", "RS256", "PS256", "EdDSA"]
Use = Literal["workload", "user", "admin", "deployment"]
Kind = Literal["oidc", "kubernetes", "spiffe", "x509"]

# How long a token that held is taken to hold: a key withdrawn by its issuer stops counting soon.
REMEMBERED: Final = 60.0


class ReviewSettings(Settings, frozen=True, kw_only=True):
    """Ask a Kubernetes API server about each token (TokenReview) in place of reading its keys.

    ``token_file`` authenticates the broker there (it needs ``create`` on ``tokenreviews``) and is
    read anew for each question. ``remember`` is how long an answer is used again: for so long a
    token goes on counting after its pod was deleted, and for the ten seconds that the API server
    remembers its own.
    """

    url: str
    token_file: Path
    ca_file: Path | None = None
    remember: Duration = duration(10)

    def __post_init__(self) -> None:
        if not is_safe_url(self.url):
            raise ValueError("review.url must be an https URL (http on loopback only)")
        if not 0 < self.remember <= REMEMBERED:
            raise ValueError("review.remember is more than 0s and at most 1m")


class IssuerSettings(Settings, frozen=True, kw_only=True):
    """One trusted issuer.

    ``use`` says for what its tokens count: ``workload`` (they authenticate a workload), ``user``
    (a workload may act for their subject), ``admin`` (their subject administers the broker),
    ``deployment`` (a CI job, which opens deployment windows).
    ``audience`` is what they must be for, alone. ``audience_list`` accepts a one-element list as
    ``aud``. ``reusable`` accepts the same token more than once and for longer than 60 s as a client
    assertion: projected token files need it, self-signed assertions must not have it.

    ``kind`` is how it issues. ``oidc``: JWTs with ``iss``, whose keys are a JWK Set in
    ``jwks_file``, at ``jwks_url``, or where its OpenID Connect metadata say (``discovery``; broker
    only). ``kubernetes``: tokens of service accounts, by a JWK Set or by ``review`` (broker only).
    ``spiffe``: SVIDs of the trust domain ``issuer`` (``spiffe://NAME``), by its bundle, which
    ``jwks_file`` or ``jwks_url`` holds. These two imply ``audience_list`` and ``reusable``.
    ``x509``: client certificates under the roots in ``ca_file``, and no tokens: it has no
    ``audience``, and ``issuer`` is a name for it (broker only). ``jwks_ca_file`` has the roots for
    https, if not the system's.

    ``subjects`` limits the issuer to these: exact, or with one ``*`` for one segment. ``claims``
    are tables of claims and their accepted values, one of which must hold whole; of Kubernetes
    tokens the names are ``namespace``, ``service_account``, ``pod``, ``node`` and each with
    ``_uid`` but the first.
    """

    issuer: str
    use: Use
    audience: str = ""
    kind: Kind = "oidc"
    jwks_file: Path | None = None
    jwks_url: str | None = None
    jwks_ca_file: Path | None = None
    discovery: bool = False
    review: ReviewSettings | None = None
    ca_file: Path | None = None
    algorithms: tuple[Algorithm, ...] = ("ES256",)
    audience_list: bool = False
    reusable: bool = False
    subjects: tuple[str, ...] | None = None
    claims: tuple[ClaimTable, ...] | None = None

    def __post_init__(self) -> None:
        if not self.issuer or (not self.audience and self.kind != "x509"):
            raise ValueError("an issuer needs issuer and audience")
        if self.kind == "x509":
            self._be_of_certificates()
            return
        if not self.algorithms:
            raise ValueError("algorithms is empty")
        sources = (
            self.jwks_file, self.jwks_url, self.discovery or None, self.review, self.ca_file,
        )  # fmt: skip
        if sum(source is not None for source in sources) != 1:
            raise ValueError(_SOURCES[self.kind])
        if self.discovery and self.kind != "oidc":
            raise ValueError("discovery is for kind: oidc")
        if self.discovery and not is_safe_url(self.issuer):
            raise ValueError("discovery: issuer must be an https URL (http on loopback only)")
        if self.ca_file is not None:
            raise ValueError("ca_file is for kind: x509")
        if self.review is not None and self.kind != "kubernetes":
            raise ValueError("review is for kind: kubernetes")
        if self.jwks_url is not None and not is_safe_url(self.jwks_url):
            raise ValueError("jwks_url must be an https URL (http on loopback only)")
        if self.subjects is not None and not self.subjects:
            raise ValueError("subjects is empty: leave it out, or say who may come")
        if self.claims is not None and not self.claims:
            raise ValueError("claims is empty: leave it out, or give a table")
        for subject in self.subjects or ():
            WorkloadPattern.parse(subject)
        if self.kind != "oidc":
            self._be_of_a_platform()

    def _be_of_certificates(self) -> None:
        others = (self.jwks_file, self.jwks_url, self.discovery or None, self.review)
        if self.ca_file is None or any(other is not None for other in others):
            raise ValueError(_SOURCES[self.kind])
        if self.audience or self.claims is not None:
            raise ValueError("kind: x509 has no tokens: leave audience and claims out")
        if self.use != "workload":
            raise ValueError("kind: x509 is for use: workload")
        if self.subjects is not None and not self.subjects:
            raise ValueError("subjects is empty: leave it out, or say who may come")
        for subject in self.subjects or ():
            WorkloadPattern.parse(subject)
        msgspec.structs.force_setattr(self, "reusable", True)

    def _be_of_a_platform(self) -> None:
        """Kubernetes and SPIFFE issue to workloads: lists as ``aud``, no ``jti``, until expiry."""
        if self.use != "workload":
            raise ValueError(f"kind: {self.kind} is for use: workload")
        if self.kind == "spiffe":
            try:
                names_workload = SpiffeId.parse(self.issuer).path
            except SpiffeIdInvalid as error:
                raise ValueError(f"issuer: {error}") from error
            if names_workload:
                raise ValueError("issuer: a trust domain has no path")
            if "EdDSA" in self.algorithms:  # JWT-SVID §2.1
                raise ValueError("algorithms: a JWT-SVID is never signed with EdDSA")
        msgspec.structs.force_setattr(self, "audience_list", True)
        msgspec.structs.force_setattr(self, "reusable", True)


_SOURCES: Final[dict[str, str]] = {
    "oidc": "give one of jwks_file, jwks_url and discovery",
    "kubernetes": "give one of jwks_file, jwks_url and review",
    "spiffe": "give one of jwks_file and jwks_url",
    "x509": "give ca_file, and no other source",
}


class Admission:
    """Whom of an issuer settings let in: by ``subjects``, and by tables of ``claims``."""

    def __init__(self, settings: IssuerSettings) -> None:
        self._settings = settings
        self._subjects = tuple(map(WorkloadPattern.parse, settings.subjects or ()))

    def check(self, subject: str, claims: Mapping[str, Any]) -> None:
        """``claims`` is what the tables are about. Raises `TokenInvalid`."""
        if self._settings.subjects is not None and not any(
            pattern.matches(subject) for pattern in self._subjects
        ):
            raise TokenInvalid("the issuer is not trusted for this subject")
        if self._settings.claims is not None:
            check_tables(claims, self._settings.claims)


class TrustedIssuer:
    """One issuer with its current keys: the base of every kind, and whole for pinned JWK Sets."""

    discovers = False
    """Whether this kind can find its keys by itself."""

    def __init__(self, settings: IssuerSettings) -> None:
        if settings.discovery and not self.discovers:
            raise ConfigError(f"issuer {settings.issuer}: discovery is for the broker alone")
        self.settings = settings
        self.remember = REMEMBERED
        """Seconds for which a token that held may be taken to hold."""
        self._algorithms = frozenset(settings.algorithms)
        self._checks: dict[str, jose.ClaimCheck] = {
            "iss": jose.equals(settings.issuer),
            "aud": jose.audience_is(settings.audience, allow_list=settings.audience_list),
            "sub": jose.present,
        }
        self._admission = Admission(settings)
        self._keys = KeySource(settings.issuer, self._read, self._parse)

    async def verify(self, token: jose.UnverifiedToken, *, now: float) -> VerifiedClaims:
        """Verify with this issuer's keys; one refetch for an unknown key. Raises `TokenInvalid`."""
        keys = await self._keys.current()
        try:
            verified = self._verify_with(keys, token, now)
        except UnknownKey:
            newer = await self._keys.newer(keys)
            if newer is None:
                raise
            verified = self._verify_with(newer, token, now)
        self._admit(verified)
        return verified

    def _verify_with(self, keys: KeySet, token: jose.UnverifiedToken, now: float) -> VerifiedClaims:
        return jose.verify(token, keys, algorithms=self._algorithms, checks=self._checks, now=now)

    def _admit(self, verified: VerifiedClaims) -> None:
        """Whether settings let this subject, with these claims, come in. Raises `TokenInvalid`."""
        self._admission.check(verified.subject, self._claims_of(verified))

    def _claims_of(self, verified: VerifiedClaims) -> Mapping[str, Any]:
        """What the claim tables are about."""
        return verified.claims

    def _parse(self, document: bytes) -> KeySet:
        return KeySet.from_jwks(document, algorithms=self._algorithms)

    async def _read(self) -> bytes:
        return await read_pinned(self.settings)


async def read_pinned(settings: IssuerSettings) -> bytes:
    """The document in ``jwks_file`` or at ``jwks_url``. Raises `OSError`, `FetchFailed`."""
    if settings.jwks_file is not None:
        return await asyncio.to_thread(settings.jwks_file.read_bytes)
    assert settings.jwks_url is not None
    return await fetch(settings.jwks_url, ca_file=settings.jwks_ca_file)


IssuerKinds = Mapping[Kind, Callable[[IssuerSettings], TrustedIssuer]]

PINNED: Final[IssuerKinds] = {"oidc": TrustedIssuer}


class TrustedIssuers:
    """All issuers of a program, by exact ``iss``; ``kinds`` are those that the program reads."""

    def __init__(self, issuers: tuple[IssuerSettings, ...], *, kinds: IssuerKinds = PINNED) -> None:
        if not issuers:
            raise ConfigError("issuers is empty: nobody could ever authenticate")
        self._by_name: dict[str, TrustedIssuer] = {}
        for settings in issuers:
            if settings.issuer in self._by_name:
                raise ConfigError("an issuer is listed twice")
            if settings.kind not in kinds:
                raise ConfigError(
                    f"issuer {settings.issuer}: kind {settings.kind} is for the broker alone"
                )
            self._by_name[settings.issuer] = kinds[settings.kind](settings)

    def find(self, token: jose.UnverifiedToken) -> TrustedIssuer:
        """The issuer that the token *claims*; nothing is verified yet. Raises `TokenInvalid`.

        A JWT-SVID need not have ``iss``: what it claims is the trust domain of its subject.
        """
        issuer = self._by_name.get(token.unverified_issuer)
        if issuer is None:
            issuer = self._by_name.get(_trust_domain(token.unverified_claims.get("sub")))
            if issuer is not None and issuer.settings.kind != "spiffe":
                issuer = None
        if issuer is None:
            raise TokenInvalid("issuer is not trusted")
        return issuer


def _trust_domain(subject: Any) -> str:
    """``spiffe://NAME`` of a SPIFFE ID, or empty."""
    try:
        return SpiffeId.parse(subject).trust_domain if isinstance(subject, str) else ""
    except SpiffeIdInvalid:
        return ""

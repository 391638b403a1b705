"""Kubernetes service account tokens: by the cluster's keys, or by asking its API server.

- The subject is ``system:serviceaccount:NAMESPACE:NAME`` and nothing else; what the token says of
  namespace and account elsewhere must agree.
- Offline, the cluster's JWK Set verifies the token. A pod that was deleted goes on counting until
  the token's expiry.
- With a TokenReview the API server says. A token is asked about only after all that can be judged
  here held, and both the answer's ``audiences`` and ``authenticated`` are checked: an API server
  that does not know the audience would answer for its own. Refusals are remembered for a moment,
  so that a stranger's token is not asked about again and again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

import msgspec
from cachetools import TTLCache

from valetkey.contracts import codes, jose
from valetkey.contracts.errors import CallerError
from valetkey.contracts.fetch import FetchFailed, exchange
from valetkey.contracts.issuer import IssuerSettings, ReviewSettings, TrustedIssuer
from valetkey.contracts.jose import KeySet, TokenInvalid, VerifiedClaims
from valetkey.contracts.logs import Log

_API: Final = "authentication.k8s.io/v1"
_PATH: Final = f"/apis/{_API}/tokenreviews"
# RFC 1123: a namespace is a label of at most 63 characters, an account's name a subdomain of 253.
_LABEL: Final = r"[a-z0-9](?:[a-z0-9-]*[a-z0-9])?"
_SUBJECT: Final = re.compile(
    rf"system:serviceaccount:(?P<ns>(?=.{{1,63}}:){_LABEL}):"
    rf"(?P<name>(?=.{{1,253}}\Z){_LABEL}(?:\.{_LABEL})*)"
)
_CLAIM: Final = "kubernetes.io"
_OBJECTS: Final = {"serviceaccount": "service_account", "pod": "pod", "node": "node"}
# user.extra of a TokenReview: which key stands for which attribute
_EXTRA: Final = {
    "authentication.kubernetes.io/pod-name": "pod",
    "authentication.kubernetes.io/pod-uid": "pod_uid",
    "authentication.kubernetes.io/node-name": "node",
    "authentication.kubernetes.io/node-uid": "node_uid",
}
_REFUSED_FOR: Final = 10.0
_REFUSED_MOST: Final = 4096
# An API server has other things to do than to answer strangers' tokens.
_AT_ONCE: Final = 8


class KubernetesIssuer(TrustedIssuer):
    """The service accounts of one cluster."""

    def __init__(self, settings: IssuerSettings) -> None:
        super().__init__(settings)
        self._checks["sub"] = is_service_account
        self._reviewer: Reviewer | None = None
        if settings.review is not None:
            self._reviewer = Reviewer(settings.review, settings.audience, issuer=settings.issuer)
            self.remember = float(settings.review.remember)

    async def verify(self, token: jose.UnverifiedToken, *, now: float) -> VerifiedClaims:
        """Raises `TokenInvalid`, or `CallerError` when the API server can't be asked."""
        if self._reviewer is None:
            return await super().verify(token, now=now)
        claims = token.unverified_claims
        if token.unverified_header["alg"] not in self._algorithms:
            raise TokenInvalid("algorithm not allowed for this issuer")
        jose.check_claims(claims, self._checks, now=now)
        user = await self._reviewer.review(token.compact)
        if user.username != claims["sub"]:
            raise TokenInvalid("the API server names another subject")
        # The API server authenticated this very string, and so what its payload says.
        verified = VerifiedClaims(
            self.settings.issuer, user.username, claims, token.unverified_header
        )
        stated = attributes_of(verified)
        verified = replace(verified, attributes=stated | _attributes_of_user(user))
        self._admit(verified)
        return verified

    def _verify_with(self, keys: KeySet, token: jose.UnverifiedToken, now: float) -> VerifiedClaims:
        verified = super()._verify_with(keys, token, now)
        return replace(verified, attributes=attributes_of(verified))

    def _claims_of(self, verified: VerifiedClaims) -> Mapping[str, Any]:
        return verified.attributes


class ReviewedUser(msgspec.Struct, frozen=True):
    """``status.user``: of a token that is not authenticated it is there, and empty.

    ``extra`` is bound to pod and node where the token is.
    """

    username: str = ""
    uid: str = ""
    extra: dict[str, list[str]] = {}


class ReviewStatus(msgspec.Struct, frozen=True):
    """``status``. ``authenticated`` is left out by the API server where it is false."""

    authenticated: bool = False
    audiences: list[str] = []
    user: ReviewedUser | None = None
    error: str = ""


class TokenReview(msgspec.Struct, frozen=True, rename="camel"):
    """The answer, as far as it is read."""

    api_version: str
    kind: str
    status: ReviewStatus


_REVIEW: Final = msgspec.json.Decoder(TokenReview)


class Reviewer:
    """Asks one API server about tokens for one audience."""

    def __init__(self, settings: ReviewSettings, audience: str, *, issuer: str) -> None:
        self._settings = settings
        self._url = settings.url.removesuffix("/") + _PATH
        self._audience = audience
        self._issuer = issuer
        self._refused: TTLCache[bytes, str] = TTLCache(_REFUSED_MOST, _REFUSED_FOR)
        self._turn = asyncio.Semaphore(_AT_ONCE)
        self._log = Log("issuer")

    async def review(self, compact: str) -> ReviewedUser:
        """Whom the API server says the token is of. Raises `TokenInvalid`, `CallerError`."""
        digest = hashlib.sha256(compact.encode()).digest()
        refused = self._refused.get(digest)
        if refused is not None:
            raise TokenInvalid(refused)
        async with self._turn:
            answer = await self._ask(compact)
        try:
            return self._accept(answer)
        except TokenInvalid as error:
            self._refused[digest] = str(error)
            raise

    async def _ask(self, compact: str) -> bytes:
        document = {
            "apiVersion": _API,
            "kind": "TokenReview",
            "spec": {"token": compact, "audiences": [self._audience]},
        }
        try:
            own = await asyncio.to_thread(self._settings.token_file.read_text, "ascii")
            status, body = await exchange(
                "POST",
                self._url,
                ca_file=self._settings.ca_file,
                headers={
                    "Authorization": f"Bearer {own.strip()}",
                    "Content-Type": "application/json",
                    "Accept": "application/json",
                },
                body=msgspec.json.encode(document),
            )
        except (OSError, UnicodeDecodeError, FetchFailed) as error:
            raise self._unavailable(type(error).__name__) from error
        if status not in {200, 201}:
            raise self._unavailable(f"status {status}")
        return body

    def _accept(self, body: bytes) -> ReviewedUser:
        try:
            review = _REVIEW.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise self._unavailable("the answer is no TokenReview") from error
        if (review.api_version, review.kind) != (_API, "TokenReview"):
            raise self._unavailable("the answer is no TokenReview")
        status = review.status
        user = status.user
        if status.authenticated is not True or status.error or user is None or not user.username:
            raise TokenInvalid("the API server does not authenticate the token")
        # An authenticator that knows no audiences leaves them out: then it is not for us.
        if self._audience not in status.audiences:
            raise TokenInvalid("the API server says that the token is for another audience")
        return user

    def _unavailable(self, reason: str) -> CallerError:
        self._log.warning("review_unavailable", issuer=self._issuer, reason=reason)
        return CallerError(codes.SERVICE_UNAVAILABLE, f"TokenReview: {reason}")


def is_service_account(value: Any, _now: float) -> None:
    """The claim check for ``sub``."""
    if not isinstance(value, str) or not _SUBJECT.fullmatch(value):
        raise TokenInvalid("sub is not system:serviceaccount:NAMESPACE:NAME")


def attributes_of(verified: VerifiedClaims) -> dict[str, str]:
    """Namespace, account, and the pod and node that the token is bound to (KEP-4193).

    Raises `TokenInvalid` where the token contradicts itself.
    """
    subject = _SUBJECT.fullmatch(verified.subject)
    assert subject is not None  # the claim check held
    attributes = {"namespace": subject["ns"], "service_account": subject["name"]}
    stated = verified.claims.get(_CLAIM, {})
    if not isinstance(stated, dict):
        raise TokenInvalid(f"the claim {_CLAIM} is not an object")
    found: dict[str, Any] = {}
    if "namespace" in stated:
        found["namespace"] = stated["namespace"]
    for member, name in _OBJECTS.items():
        bound = stated.get(member)
        if bound is None:
            continue
        if not isinstance(bound, dict):
            raise TokenInvalid(f"{member} in {_CLAIM} is not an object")
        found |= {name: bound.get("name"), f"{name}_uid": bound.get("uid")}
    for name, value in found.items():
        if value is None and name.endswith("_uid"):
            continue
        if not isinstance(value, str) or attributes.setdefault(name, value) != value:
            raise TokenInvalid(f"{name} in {_CLAIM} is not what the subject says, or no text")
    return attributes


def _attributes_of_user(user: ReviewedUser) -> dict[str, str]:
    """What the API server knows beyond the token: the account's uid, the pod, its node."""
    found = {
        name: values[0]
        for key, name in _EXTRA.items()
        if len(values := user.extra.get(key, [])) == 1
    }
    return found | ({"service_account_uid": user.uid} if user.uid else {})

"""Who calls: a workload's token as client assertion, and the DPoP proof beside it.

Rules (docs/adr/0004):

- A self-signed assertion lives at most 60 s, has one string as ``aud``, and its ``jti`` is used
  once, also over a restart (the store remembers it).
- A token of an issuer marked ``reusable`` is presented many times; it counts only with a DPoP
  proof, whose fresh nonce and single-use ``jti`` make each request one of its own.
- A JWT-SVID comes as ``jwt-spiffe``, any other token as ``jwt-bearer``: the type says by which
  rules the sender means it, and a token under the other's rules is refused.
- A client certificate authenticates by itself, with its SPIFFE ID as ``client_id`` (RFC 8705 §2),
  or stands beside the assertion of the same workload.
- A proof is used up where its nonce says (`core.nonces`): in this process's memory, or in the store
  for all replicas.
- Nothing is used up before everything that can be checked without using it up held: a client that
  is told ``use_dpop_nonce`` may repeat the request with the same assertion.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import urlsplit

from aiohttp import web

from valetkey.broker.core.form import Form
from valetkey.broker.core.nonces import Nonces
from valetkey.broker.core.replay import ReplayMemory, Use
from valetkey.broker.trust.mtls import Certificates, ClientCertificate
from valetkey.broker.trust.tokens import Clock, TokenVerifier, VerifiedToken
from valetkey.contracts import codes, dpop, jose
from valetkey.contracts.binding import check_binding
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import TokenInvalid
from valetkey.contracts.oauth import ASSERTION_JWT_BEARER, ASSERTION_JWT_SPIFFE

# RFC 7523bis and standards §1
ASSERTION_LIFETIME: Final = 60
_MAX_JTI: Final = 256
# By how much the clocks of replicas may differ, seconds: one must not forget a proof that is still
# good for another.
_CLOCKS: Final = 60.0
ASSERTION_TYPES: Final = frozenset({ASSERTION_JWT_BEARER, ASSERTION_JWT_SPIFFE})


class AssertionMemory(Protocol):
    """Remembers a ``jti`` durably, for all replicas: of assertions, and of proofs."""

    async def use(self, issuer: str, jti: str, *, expires: float) -> bool:
        """Whether this is the first use. ``issuer`` is whose ``jti`` it is."""


@dataclass(frozen=True, slots=True)
class Client:
    """An authenticated client. ``proof`` is the proof key's thumbprint, or empty.

    ``assertion`` is the verified token, so that the same string needs no second verification; of a
    client that authenticated by its certificate alone it says the same, and ``compact`` is empty.
    ``certificate`` is the thumbprint of the certificate with which it came, or empty.
    """

    assertion: VerifiedToken
    compact: str
    proof: str
    certificate: str = ""

    def __repr__(self) -> str:
        return f"Client({self.assertion.claims.issuer}, {self.assertion.claims.subject})"


class ClientAuthenticator:
    """Authenticates the callers of every endpoint that needs it."""

    def __init__(
        self,
        tokens: TokenVerifier,
        assertions: AssertionMemory,
        proofs: ReplayMemory,
        nonces: Nonces,
        certificates: Certificates | None = None,
        *,
        clock: Clock,
    ) -> None:
        self._certificates = certificates
        self._tokens = tokens
        self._assertions = assertions
        self._proofs = proofs
        self._nonces = nonces
        self._clock = clock
        self._proof_keys = dpop.KnownKeys()

    def nonce(self, proofs: Sequence[str], code: Code | None = None) -> str:
        """The nonce to send with an answer, or nothing where DPoP plays no part in it.

        ``proofs`` are all values of the DPoP header, ``code`` is why the request was refused.
        """
        if not proofs and (code is None or code.family != "dpop"):
            return ""
        shown = dpop.unverified_nonce(proofs[0]) if len(proofs) == 1 else ""
        refused = code is codes.DPOP_NONCE
        return self._nonces.next(shown, self._clock(), refused=refused)  # RFC 9449 §8.2

    def standby_nonce(self) -> str:
        """A nonce for when this replica is gone, or nothing where there is no other."""
        return self._nonces.standby(self._clock())

    async def authenticate(
        self,
        form: Form,
        proofs: Sequence[str],
        *,
        url: str,
        request: web.Request | None = None,
    ) -> Client:
        """By a form (RFC 7523 §2.2), by a certificate (RFC 8705 §2), or by both.

        ``proofs`` are all values of the DPoP header, ``url`` is this endpoint's own URL,
        ``request`` is what may have come with a client certificate. Raises `CallerError`.
        """
        certificate = None
        if request is not None and self._certificates is not None:
            certificate = await self._certificates.of(request, now=self._clock())
        if certificate is None:
            return await self._by_assertion(form, proofs, url, None)
        url = certificate.base + urlsplit(url).path  # RFC 8705 §5: it came to the alias
        if form.get("client_assertion") or form.get("client_assertion_type"):
            return await self._by_assertion(form, proofs, url, certificate)
        return await self._by_certificate(form, proofs, url, certificate)

    async def _by_certificate(
        self, form: Form, proofs: Sequence[str], url: str, certificate: ClientCertificate
    ) -> Client:
        if form.get("client_secret"):
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, "two ways to authenticate at once")
        if form.get("client_id") != certificate.subject:  # RFC 8705 §2: required
            raise CallerError(codes.ACTOR_INVALID, "client_id is not the certificate's SPIFFE ID")
        proof = self._check_proof(proofs, "POST", url)
        if proof is not None:
            await self._use_up(proof)
        return Client(
            certificate.as_token(),
            "",
            proof.thumbprint if proof else "",
            certificate.thumbprint,
        )

    async def _by_assertion(
        self,
        form: Form,
        proofs: Sequence[str],
        url: str,
        certificate: ClientCertificate | None,
    ) -> Client:
        compact = form.get("client_assertion")
        assertion_type = form.get("client_assertion_type")
        if not compact or assertion_type not in ASSERTION_TYPES:
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, "no client assertion of our type")
        if form.get("client_secret"):  # RFC 6749 §2.3: one method per request
            raise CallerError(codes.SERVICE_UNAUTHENTICATED, "two ways to authenticate at once")
        try:
            assertion = await self._tokens.verify(compact, use="workload")
            _check_type(assertion, assertion_type)
            _check_certificate(assertion, certificate)
            jti = "" if assertion.issuer.reusable else self._single_use(assertion)
        except TokenInvalid as error:
            raise CallerError(codes.ACTOR_INVALID, str(error)) from error
        # RFC 7521 §4.2: client_id may be left out, but must not contradict.
        if form.get("client_id") not in {"", assertion.claims.subject}:
            raise CallerError(codes.ACTOR_INVALID, "client_id is not the assertion's subject")
        proof = self._check_proof(proofs, "POST", url)
        return await self._authenticated(assertion, compact, jti, proof, certificate)

    async def authenticate_bearer(
        self,
        compact: str,
        proofs: Sequence[str],
        *,
        method: str,
        url: str,
        unbound: Callable[[str, str], bool],
    ) -> Client:
        """By the token alone (RFC 6750 §2.1), for endpoints that take no forms; the same rules.

        ``unbound`` says of an issuer and a subject whether settings let it go without a proof.
        Raises `CallerError`.
        """
        try:
            assertion = await self._tokens.verify(compact, use="workload")
            jti = "" if assertion.issuer.reusable else self._single_use(assertion)
        except TokenInvalid as error:
            raise CallerError(codes.ACTOR_INVALID, str(error)) from error
        proof = self._check_proof(proofs, method, url)
        claims = assertion.claims
        return await self._authenticated(
            assertion, compact, jti, proof, unbound=unbound(claims.issuer, claims.subject)
        )

    async def _authenticated(
        self,
        assertion: VerifiedToken,
        compact: str,
        jti: str,
        proof: dpop.VerifiedProof | None,
        certificate: ClientCertificate | None = None,
        *,
        unbound: bool = False,
    ) -> Client:
        """Use up what can be used once; nothing is left that could still be refused."""
        # The workload's certificate proves possession too, of a key that its issuer knows.
        proved = proof is not None or certificate is not None
        if assertion.issuer.reusable and not proved and not unbound:
            raise CallerError(codes.DPOP_MISSING, "a reusable token without a proof")
        _check_binding(assertion, proof, certificate)
        if proof is not None:
            await self._use_up(proof)
        if jti and not await self._assertions.use(
            assertion.claims.issuer, jti, expires=assertion.expires + jose.LEEWAY
        ):
            raise CallerError(codes.ACTOR_REPLAYED, "assertion replayed")
        return Client(
            assertion,
            compact,
            proof.thumbprint if proof else "",
            certificate.thumbprint if certificate else "",
        )

    def _single_use(self, assertion: VerifiedToken) -> str:
        """The checks that only a self-signed assertion has to pass; gives its ``jti``."""
        claims = assertion.claims.claims
        now = self._clock()
        begins = claims.get("iat", now)
        if not jose.is_time(begins) or assertion.expires - begins > ASSERTION_LIFETIME:
            raise TokenInvalid("the assertion lives longer than 60 s")
        if assertion.expires - now > ASSERTION_LIFETIME + jose.LEEWAY:
            raise TokenInvalid("the assertion expires too far from now")
        jti: Any = claims.get("jti")
        if not isinstance(jti, str) or not 1 <= len(jti) <= _MAX_JTI:
            raise TokenInvalid("jti is missing or too long")
        return jti

    def _check_proof(
        self, proofs: Sequence[str], method: str, url: str
    ) -> dpop.VerifiedProof | None:
        if not proofs:
            return None
        if len(proofs) > 1:  # RFC 9449 §4.3 check 1
            raise CallerError(codes.DPOP_INVALID, "more than one DPoP header")
        now = self._clock()
        try:
            return dpop.verify_proof(
                proofs[0],
                method=method,
                url=url,
                now=now,
                nonce_is_ours=lambda nonce: self._nonces.kind(nonce, now) is not None,
                known=self._proof_keys,
            )
        except dpop.NonceRequired as error:
            raise CallerError(codes.DPOP_NONCE, str(error)) from error
        except TokenInvalid as error:
            raise CallerError(codes.DPOP_INVALID, str(error)) from error

    async def _use_up(self, proof: dpop.VerifiedProof) -> None:
        """RFC 9449 §11.1: each proof once, within the time in which its ``iat`` is acceptable."""
        now, expires = self._clock(), proof.issued_at + dpop.PROOF_LIFETIME
        if self._nonces.is_shared(proof.nonce):
            # Not in the memory too: a proof that another replica knows is not in ours.
            if not await self._assertions.use(
                f"dpop {proof.thumbprint}", proof.jti, expires=expires + _CLOCKS
            ):
                raise CallerError(codes.DPOP_REPLAYED, "proof replayed")
            return
        use = self._proofs.use(proof.thumbprint, proof.jti, expires=expires, now=now)
        if use is Use.REPLAYED:
            raise CallerError(codes.DPOP_REPLAYED, "proof replayed")
        if use is Use.NO_ROOM:
            raise CallerError(codes.SERVICE_UNAVAILABLE, "the replay memory is full")


def _check_certificate(assertion: VerifiedToken, certificate: ClientCertificate | None) -> None:
    """Whether both are of one workload. Raises `TokenInvalid`."""
    if certificate is not None and not assertion.is_same_party(certificate.as_token()):
        raise TokenInvalid("the client certificate is another workload's")


def _check_binding(
    assertion: VerifiedToken,
    proof: dpop.VerifiedProof | None,
    certificate: ClientCertificate | None,
) -> None:
    """Whether who presents the assertion holds what it is bound to, if it is. `CallerError`."""
    try:
        check_binding(
            assertion.claims.claims,
            certificate.thumbprint if certificate else "",
            proof=proof.thumbprint if proof else "",
        )
    except CallerError as error:
        raise CallerError(codes.ACTOR_INVALID, error.reason) from error


def _check_type(assertion: VerifiedToken, stated: str) -> None:
    """Whether it came as what it is. Raises `TokenInvalid`."""
    meant = ASSERTION_JWT_SPIFFE if assertion.issuer.kind == "spiffe" else ASSERTION_JWT_BEARER
    if stated != meant:
        raise TokenInvalid("client_assertion_type is not the one for this kind of token")

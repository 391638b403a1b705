"""Access tokens as JWTs (RFC 9068), and transaction tokens, signed with ES256."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from valetkey.broker.core.exchange import Issue
from valetkey.broker.core.status_list import Place
from valetkey.broker.issuers import found_by as found
from valetkey.broker.issuers.found_by import FoundBy
from valetkey.broker.issuers.keyring import KeyRing
from valetkey.broker.issuers.signer import Signer
from valetkey.contracts import jose
from valetkey.contracts.binding import CONFIRMATION
from valetkey.contracts.jose import TokenInvalid, VerifiedClaims
from valetkey.contracts.secret import Secret

TYP: Final = "at+jwt"  # RFC 9068 §2.1
TXN_TYP: Final = "txntoken+jwt"  # draft-ietf-oauth-transaction-tokens, "JWT Header"
_ALGORITHMS: Final = frozenset({"ES256"})


@dataclass(frozen=True, slots=True)
class MintedToken:
    """A token with what the answer says about it."""

    compact: Secret
    jti: str
    txn: str


@dataclass(frozen=True, slots=True)
class OwnToken:
    """A token of ours whose signature, issuer, type and times held; revocation is not checked.

    ``client_issuer`` and ``client_id`` are the client that it was issued to, ``subject_issuer``
    and ``subject`` whom it speaks for, each with its epoch of then. ``typ`` is its header's: access
    token or transaction token. ``kid`` is the key that signed it, ``bound_to`` those that it is
    bound to. Times are in seconds since the epoch.
    """

    client_issuer: str
    client_id: str
    client_epoch: int
    subject_issuer: str
    subject: str
    epoch: int
    jti: str
    txn: str
    audience: str
    grants: tuple[str, ...]
    kid: str
    typ: str
    bound_to: tuple[str, ...]
    issued: float
    expires: float
    claims: Mapping[str, Any] = field(repr=False)

    @classmethod
    def of(cls, verified: VerifiedClaims) -> OwnToken:
        """Read what `JwtIssuer.mint` wrote. Raises `TokenInvalid` where something is missing."""
        claims, issued = verified.claims, verified.claims.get("iat")
        jti, txn, grants = claims.get("jti"), claims.get("txn"), claims.get("grants", [])
        cnf, client_epoch = claims.get("cnf", {}), claims.get("client_epoch")
        if (
            not isinstance(jti, str)
            or not isinstance(txn, str)
            or not jose.is_time(issued)
            or not isinstance(grants, list)
            or not isinstance(cnf, dict)
        ):
            raise TokenInvalid("not a token as we mint them")
        client = (str(claims.get("client_iss", "")), str(claims.get("client_id", "")))
        subject = (str(claims.get("sub_iss", client[0])), verified.subject)
        epoch = _count(claims.get("epoch"))
        return cls(
            *client,
            epoch if subject == client else _count(client_epoch),
            *subject,
            epoch,
            jti=jti,
            txn=txn,
            audience=str(claims.get("aud", "")),
            grants=tuple(str(grant) for grant in grants),
            kid=str(verified.header.get("kid", "")),
            typ=str(verified.header.get("typ", "")),
            bound_to=tuple(str(thumbprint) for thumbprint in cnf.values()),
            issued=float(issued),
            expires=float(claims["exp"]),
            claims=claims,
        )


class JwtIssuer:
    """Mints, and recognises its own. ``random_id`` gives at least 128 bits as URL-safe text.

    ``carries_roles`` puts the subject's roles and groups into tokens, and what directories found it
    by: for installations that accept the broker's own tokens as those of users.
    """

    def __init__(
        self,
        ring: KeyRing,
        *,
        issuer: str,
        clock: Callable[[], float],
        random_id: Callable[[], str],
        found_by: FoundBy,
        carries_roles: bool = False,
    ) -> None:
        self._found_by = found_by
        self._carries_roles = carries_roles
        self._ring = ring
        self._issuer = issuer
        self._clock = clock
        self._random_id = random_id
        self._signer = Signer(ring, TYP)
        self._txn_signer = Signer(ring, TXN_TYP)
        self._checks = {"iss": jose.equals(issuer), "jti": jose.present, "txn": jose.present}

    def mint(self, issue: Issue, *, place: Place | None = None) -> MintedToken:
        """The token of that decision, with its ``place`` in a status list, if it has one.

        It lives from the decision on, however long a use took to claim: what bounds it in time was
        measured then.
        """
        now = int(issue.decided_at)
        jti = self._random_id()
        txn = issue.txn or self._random_id()
        claims: dict[str, Any] = {
            "iss": self._issuer,
            "sub": issue.subject,
            "aud": issue.audience,
            "client_id": issue.client.subject,
            # Ours: a client is known by issuer and subject, and RFC 9068 has no claim for the first
            "client_iss": issue.client.issuer,
            "iat": now,
            "exp": now + issue.expires_in,
            "jti": jti,
            "txn": txn,
            "scope": " ".join(issue.scopes),
            "policy_digest": issue.policy_digest,
            "policies": issue.policy_ids,
            # Ours: what the token rests on, and ends with.
            "grants": list(issue.rests_on),
        }
        if issue.act is not None:
            claims["act"] = issue.act
            # Ours, too: a user is known by issuer and subject.
            claims["sub_iss"] = issue.subject_issuer
            if issue.client_epoch:
                claims["client_epoch"] = issue.client_epoch
        if issue.epoch:
            claims["epoch"] = issue.epoch
        if self._carries_roles or issue.transaction is not None:
            # RFC 9068 §2.2.3.1. Whoever acts on with this token acts for somebody whose roles and
            # groups still count.
            claims |= {"roles": issue.roles, "groups": issue.groups}
            if issue.found_by:
                # Ours, and for us alone: what a directory is asked by for whoever acts on.
                claims[found.CLAIM] = self._found_by.sealed(
                    issue.subject_issuer, issue.subject, issue.found_by
                )
        if issue.thumbprint:
            claims["cnf"] = {"jkt": issue.thumbprint}  # RFC 9449 §6.1
        if issue.approval:
            claims["approval"] = issue.approval  # ours: who said yes is on record under this id
        if issue.certificate:
            claims["cnf"] = {CONFIRMATION: issue.certificate}  # RFC 8705 §3.1
        if issue.details:
            claims["authorization_details"] = issue.details  # RFC 9396 §9.1
        if place is not None:
            # draft-ietf-oauth-status-list §6.1
            uri = f"{self._issuer}/status/{place.list}"
            claims["status"] = {"status_list": {"idx": place.index, "uri": uri}}
        signer = self._signer
        if issue.transaction is not None:
            signer = self._txn_signer
            claims["req_wl"] = issue.client.subject
            claims["rctx"], claims["tctx"] = issue.transaction.request, issue.transaction.details
        return MintedToken(Secret(signer.sign(claims)), jti, txn)

    def recognise(self, compact: str, *, expired: bool = False) -> OwnToken | None:
        """One of our own tokens that has not expired (or also one that has), or ``None``."""
        now = self._clock()
        try:
            token = jose.parse(compact)
            if expired:
                now = _within(token, now)
            verified = jose.verify(
                token,
                self._ring.published().keys,
                algorithms=_ALGORITHMS,
                checks=self._checks,
                now=now,
            )
            own = OwnToken.of(verified)
        except TokenInvalid:
            return None
        # Our own clock made `exp`: no leeway here.
        return own if own.typ in {TYP, TXN_TYP} and own.expires > now else None


def _within(token: jose.UnverifiedToken, now: float) -> float:
    """Now, or the last second in which the token held, if that is over."""
    expires = token.unverified_claims.get("exp")
    return min(now, expires - 1) if jose.is_time(expires) else now


def _count(value: Any) -> int:
    """An epoch as a claim has it; what is none is no epoch that any subject has."""
    if value is None:
        return 0
    return value if isinstance(value, int) and not isinstance(value, bool) else -1

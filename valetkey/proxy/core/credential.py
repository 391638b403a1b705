"""A credential as the sidecar holds it: for one cache key, until one moment, ready to inject."""

from __future__ import annotations

import hashlib

from valetkey.contracts.jose import b64url
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.cache_policy import CacheKey
from valetkey.proxy.core.scrub import needles_of


class Credential:
    """A token from the broker. ``line`` is the rendered header line, where one line is enough."""

    __slots__ = (
        "_token_hash", "actor", "approval", "claimed", "ended", "expires_at", "grants", "jti",
        "key", "line", "minted_at", "near_until", "needles", "policies", "policy_digest",
        "refresh_at", "rendered", "revoked", "single_use", "subject", "token", "txn", "used",
    )  # fmt: skip

    def __init__(
        self,
        key: CacheKey,
        token: Secret,
        line: bytes,
        *,
        expires_at: float,
        refresh_at: float,
        subject: str,
        actor: str,
        jti: str,
        txn: str,
        policy_digest: str,
        policies: tuple[str, ...] = (),
        approval: str = "",
        single_use: bool = False,
        grants: tuple[str, ...] = (),
        minted_at: float = 0.0,
    ) -> None:
        self.key = key
        self.token = token
        self.needles = needles_of(token.reveal())
        """What of it must not come back to the workload."""
        self.line = line
        self.expires_at = expires_at
        self.refresh_at = refresh_at
        self.subject = subject
        self.actor = actor
        self.jti = jti
        self.txn = txn
        self.policy_digest = policy_digest
        self.policies = policies
        """Those of the broker that permitted it, by id."""
        self.approval = approval
        """The id of the approval that it rests on; empty: nobody was asked."""
        self.single_use = single_use
        """Whether it is for one call: then it is in no cache, and `claim` gives it once."""
        self.claimed = False
        self.grants = grants
        """Those that it rests on, by id."""
        self.minted_at = minted_at
        """When it came from the broker, on the same clock as ``expires_at``."""
        self.revoked = False
        """Whether it has ended before its time, or may have: it must not go out (again)."""
        self.ended = False
        """Whether that is certain; else it is for the broker to say (`confirm`)."""
        self.near_until = 0.0
        """Until when the cache may find it without looking (`credentials.cache`)."""
        self.used = False
        """Whether it went out since it was last asked about (`credentials.revalidation`)."""
        self.rendered: tuple[bytes, bytes, bytes] | None = None
        """Its parts of events, rendered by the recorder at first use."""
        self._token_hash = ""

    def claim(self) -> bool:
        """Take it for a call. False: it is for one, and that is another one."""
        if self.single_use and self.claimed:
            return False
        self.claimed = True
        return True

    @property
    def approved(self) -> bool:
        """Whether people said yes to it: another one may take another yes."""
        return self.single_use or bool(self.approval)

    def end(self, *, certain: bool) -> None:
        """It has ended, or may have."""
        self.revoked = True
        self.ended = self.ended or certain

    def confirm(self) -> None:
        """The broker stands by it, and was asked after all that may have ended it."""
        self.revoked = self.ended

    def token_hash(self) -> str:
        """SHA-256 of the token, base64url, as signals name it; computed at first use."""
        if not self._token_hash:
            self._token_hash = b64url(hashlib.sha256(self.token.reveal().encode()).digest())
        return self._token_hash

    def __repr__(self) -> str:
        return f"Credential(jti={self.jti!r})"


class Succession:
    """The credentials of a call that had to take another one after its decision.

    ``decided`` is the one that the decision names.
    """

    __slots__ = ("_attempts", "decided", "refused", "sent")

    def __init__(self, decided: Credential) -> None:
        self.decided = decided
        self.sent: list[Credential] = []
        """Those that went to the target, in order."""
        self.refused = False
        """Whether the target refused one of them: then it is not asked to take a third."""
        self._attempts = 0

    def note(self, credential: Credential, attempts: int) -> None:
        """It is done with, after so many attempts in all: it went out if any of them was its own.

        To be told again of the same one changes nothing.
        """
        if attempts > self._attempts:
            self._attempts = attempts
            self.sent.append(credential)

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
        "_token_hash", "actor", "approval", "claimed", "expires_at", "grants", "jti", "key", "line",
        "minted_at", "near_until", "needles", "policies", "policy_digest", "refresh_at", "rendered",
        "revoked", "single_use", "subject", "token", "txn", "used",
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
        """Whether it was ended before its time: it must not go out again."""
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

    def token_hash(self) -> str:
        """SHA-256 of the token, base64url, as signals name it; computed at first use."""
        if not self._token_hash:
            self._token_hash = b64url(hashlib.sha256(self.token.reveal().encode()).digest())
        return self._token_hash

    def __repr__(self) -> str:
        return f"Credential(jti={self.jti!r})"

"""Asking the broker for a credential: RFC 8693 token exchange over aiohttp.

The workload's token authenticates the client (RFC 7523 §2.2) and is subject or actor; a proof of
possession (RFC 9449 §5) goes with every request, with the broker's last nonce in it. What comes
back is believed only as far as it fits what was asked.
"""

from __future__ import annotations

import re
import secrets
import time
from pathlib import Path
from typing import Final

import aiohttp
import msgspec

from valetkey.contracts import codes, oauth
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import (
    ApprovalError,
    BrokerError,
    CallerError,
    PolicyError,
    ValetkeyError,
)
from valetkey.contracts.jose import TokenInvalid, is_time, parse
from valetkey.contracts.secret import Secret
from valetkey.contracts.signals import SIGNAL_HEADER
from valetkey.contracts.trusted_roots import TrustedRoots
from valetkey.proxy.core.cache_policy import CacheKey, lifetime
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.credentials.held import Deferred
from valetkey.proxy.credentials.injector import Injector
from valetkey.proxy.identity.source import Identity

_MAX_ANSWER: Final = 64 << 10
# How often a request is repeated for the nonce: once is enough, but where a window ends just then,
# or replicas of an earlier version have a nonce each.
NONCE_RETRIES: Final = 7
# RFC 6750 §2.1 b64token: nothing in it can end a header line or begin another.
_TOKEN: Final = re.compile(r"[A-Za-z0-9\-._~+/]{1,16384}=*")
# RFC 6749 appendix A: 1*VSCHAR; ours is base64url.
_CODE: Final = re.compile(r"[\x20-\x7e]{1,1024}")
_APPROVAL: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_WORD: Final = re.compile(r"[a-z0-9_]{1,64}")
_POLICY: Final = re.compile(r"[a-z0-9._-]{1,64}")
_MAX_POLICIES: Final = 8
_RESPONSE: Final = msgspec.json.Decoder(oauth.TokenResponse)
_INTROSPECTION: Final = msgspec.json.Decoder(oauth.Introspection)
_ERROR: Final = msgspec.json.Decoder(oauth.TokenError)
# What every sidecar enforces on what it gets (`oauth.Capability`).
_CAPABILITIES: Final = ("dpop", "mcp_filter", "single_use", "txn_token")
# Whose refusals the workload may be told by their own code.
_PASSED_ON: Final = frozenset({"grant", "policy", "subject", "actor"})


class ExchangeClient:
    """Exchanges at one broker."""

    def __init__(
        self,
        endpoint: str,
        identity: Identity,
        key: ProofKey,
        *,
        ca_file: Path | None,
        timeout: float,
        follows_feed: bool = False,
    ) -> None:
        self._endpoint = endpoint
        self._introspection = endpoint.removesuffix("/token") + "/introspect"
        self._identity = identity
        self._key = key
        able = (*_CAPABILITIES, "feed") if follows_feed else _CAPABILITIES
        self._capabilities = " ".join(able)
        self._nonce = ""
        https = endpoint.startswith("https:")
        self.roots = TrustedRoots("broker.ca_file", ca_file) if https else None
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._session: aiohttp.ClientSession | None = None
        self.told = ""
        """The last signal that is in force here: a replica that is behind it catches up first."""

    async def close(self) -> None:
        """Close the connections to the broker."""
        if self._session is not None:
            await self._session.close()

    async def exchange(
        self,
        key: CacheKey,
        injector: Injector,
        subject_token: Secret | None,
        *,
        deferred: bool = False,
        purpose: str = "",
    ) -> Credential:
        """One credential for ``key``. Raises a `ValetkeyError`: the broker's no, or no broker.

        ``deferred``: a deferral is an answer too (`Deferred`). ``purpose`` is what the workload
        says that it wants it for.
        """
        actor_token, actor_left = self._identity.token()
        form = {
            "grant_type": oauth.GRANT_TOKEN_EXCHANGE,
            "client_assertion_type": self._identity.assertion_type,
            "client_assertion": actor_token.reveal(),
            "requested_token_type": injector.requested,
            "capabilities": self._capabilities,
            "audience": key.audience,
            "scope": key.scopes,
            "authorization_details": key.details,
        }
        if deferred:
            form["completion_mode"] = oauth.COMPLETION_DEFERRED
        if purpose:
            form["purpose"] = purpose
        subject_left = actor_left
        if subject_token is None:
            form["subject_token"] = actor_token.reveal()
            form["subject_token_type"] = oauth.TOKEN_TYPE_JWT
        else:
            subject_left = _seconds_left(subject_token)
            form["subject_token"] = subject_token.reveal()
            form["subject_token_type"] = oauth.TOKEN_TYPE_JWT
            form["actor_token"] = actor_token.reveal()
            form["actor_token_type"] = oauth.TOKEN_TYPE_JWT
        asked = time.monotonic()
        status, body = await self._post(self._endpoint, form)
        if status != 200:
            raise _refusal(status, body)
        return self._accept(key, injector, body, asked, actor_left, subject_left)

    async def redeem(
        self, key: CacheKey, injector: Injector, subject_token: Secret | None, deferral: Secret
    ) -> Credential:
        """What a deferral has come to. Raises `Deferred`, or another `ValetkeyError`."""
        actor_token, actor_left = self._identity.token()
        form = {
            "grant_type": oauth.GRANT_DEFERRED,
            "client_assertion_type": self._identity.assertion_type,
            "client_assertion": actor_token.reveal(),
            "deferral_code": deferral.reveal(),
        }
        subject_left = actor_left if subject_token is None else _seconds_left(subject_token)
        asked = time.monotonic()
        status, body = await self._post(self._endpoint, form)
        if status != 200:
            raise _refusal(status, body)
        return self._accept(key, injector, body, asked, actor_left, subject_left)

    async def is_active(self, credential: Credential) -> bool:
        """Whether the broker still stands by a credential (RFC 7662). Raises `ValetkeyError`."""
        actor_token, _ = self._identity.token()
        form = {
            "client_assertion_type": self._identity.assertion_type,
            "client_assertion": actor_token.reveal(),
            "token": credential.token.reveal(),
            "token_type_hint": "access_token",
        }
        status, body = await self._post(self._introspection, form)
        if status != 200:
            raise _refusal(status, body)
        try:
            return _INTROSPECTION.decode(body).active
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _unusable("the answer is not an introspection response") from error

    async def _post(self, url: str, form: dict[str, str]) -> tuple[int, bytes]:
        status, body, asked = await self._post_once(url, form, self._nonce)
        for _ in range(NONCE_RETRIES):
            if status != 400 or not asked or _error(body).error != "use_dpop_nonce":
                break
            # RFC 9449 §8: once more, with the nonce that came with the refusal, which all replicas
            # take. If it is of one that has its own, it is repeated until it is the turn of that
            # one again: answers of others, also to other requests, change nothing about it.
            status, body, given = await self._post_once(url, form, asked)
            if given == asked:
                break  # whose nonce it is does not want it
        return status, body

    async def _post_once(
        self, url: str, form: dict[str, str], nonce: str
    ) -> tuple[int, bytes, str]:
        certificate = self._identity.client_context()
        if self._session is None:
            self._session = aiohttp.ClientSession(
                timeout=self._timeout, trust_env=False, cookie_jar=aiohttp.DummyCookieJar()
            )
        proof = self._key.proof(
            method="POST",
            url=url,
            jti=secrets.token_urlsafe(16),
            now=int(time.time()),
            nonce=nonce,
        )
        try:
            async with self._session.post(
                url,
                data=form,
                headers={"DPoP": proof, "Accept": "application/json", SIGNAL_HEADER: self.told},
                ssl=certificate or (self.roots.context if self.roots is not None else True),
                allow_redirects=False,
            ) as response:
                body = await response.content.read(_MAX_ANSWER + 1)
                while len(body) <= _MAX_ANSWER and not response.content.at_eof():
                    body += await response.content.read(_MAX_ANSWER + 1 - len(body))
                given = response.headers.get("DPoP-Nonce", "")
                if given:
                    self._nonce = given
                return response.status, body, given
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise BrokerError(codes.BROKER_UNAVAILABLE, type(error).__name__) from error

    def _accept(
        self,
        key: CacheKey,
        injector: Injector,
        body: bytes,
        asked: float,
        actor_left: float,
        subject_left: float,
    ) -> Credential:
        if len(body) > _MAX_ANSWER:
            raise _unusable("the answer is too large")
        try:
            answer = _RESPONSE.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise _unusable("the answer is not a token response") from error
        if not _TOKEN.fullmatch(answer.access_token):
            raise _unusable("the token holds characters that no token has")
        if answer.token_type.lower() != injector.token_type.lower():
            # A bound token must not be sent as a bearer, nor an unbound one called bound.
            raise _unusable(f"token_type is not {injector.token_type}")
        if answer.issued_token_type != injector.requested:
            raise _unusable(f"issued_token_type is not {injector.requested}")
        if answer.expires_in <= 0:
            raise _unusable("expires_in is not positive")
        # RFC 6749 §5.1: no scope in the answer means the scope that was asked for.
        granted = set((answer.scope or key.scopes).split())
        needed = set(key.scopes.split())
        if granted - needed:
            raise _unusable("more scopes than were asked for")
        if needed - granted:
            raise PolicyError(codes.GRANT_SCOPE, "the broker granted fewer scopes than needed")
        # Our own, as the broker knows it: after an incident, what was cached before it is void.
        self._identity.raise_epoch(answer.client_epoch)
        # From the question on: when the answer was given is not known, only that it was later.
        life = lifetime(
            now=asked,
            expires_in=answer.expires_in,
            actor_expires_in=actor_left,
            subject_expires_in=subject_left,
        )
        token = Secret(answer.access_token)
        return Credential(
            key,
            token,
            injector.line(token),
            expires_at=life.expires_at,
            refresh_at=life.refresh_at,
            subject=answer.sub or key.subject,
            actor=str(answer.act.get("sub", "")) or (key.actors[0] if key.actors else key.subject),
            jti=answer.jti,
            txn=answer.txn,
            policy_digest=answer.policy_digest,
            policies=tuple(answer.policies),
            approval=answer.approval,
            single_use=answer.single_use,
            grants=tuple(answer.grants),
            minted_at=time.monotonic(),
        )


def _seconds_left(token: Secret) -> float:
    """How long a user's token says that it is good for; the broker verifies it."""
    try:
        expires = parse(token.reveal()).unverified_claims.get("exp")
    except TokenInvalid as error:
        raise CallerError(codes.SUBJECT_INVALID, str(error)) from error
    if not is_time(expires):
        raise CallerError(codes.SUBJECT_INVALID, "exp is missing")
    left = expires - time.time()
    if left <= 0:
        raise CallerError(codes.SUBJECT_INVALID, "expired")
    return left


def _error(body: bytes) -> oauth.TokenError:
    try:
        return _ERROR.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return oauth.TokenError(error="")


def _refusal(status: int, body: bytes) -> ValetkeyError:
    """What a refused exchange means for the call. RFC 6749 §5.2."""
    error = _error(body)
    # An error is a word; anything else might be something that must not be repeated.
    word = error.error if _WORD.fullmatch(error.error) else ""
    reason = f"the broker answered {status} {word or 'without an OAuth error'}"
    if status >= 500 or status == 429:
        return BrokerError(codes.BROKER_UNAVAILABLE, reason)
    code = codes.by_name(error.code)
    approval = error.approval_id if _APPROVAL.fullmatch(error.approval_id) else ""
    if code in {codes.APPROVAL_PENDING, codes.APPROVAL_SLOW_DOWN}:
        deferral = Secret(error.deferral_code) if _CODE.fullmatch(error.deferral_code) else None
        return Deferred(reason, approval=approval, deferral=deferral, interval=error.interval)
    if code is not None and code.family == "approval":
        return ApprovalError(code, reason, approval=approval)
    if code is not None and code.family in _PASSED_ON:
        names = [name for name in error.policies[:_MAX_POLICIES] if _POLICY.fullmatch(name)]
        if names:
            reason += f"; policies {', '.join(names)}"
        return PolicyError(code, reason)
    if not word or word == "use_dpop_nonce":
        # Not a policy's no: later proofs had the nonce that came with the first refusal.
        return _unusable(reason)
    return PolicyError(codes.BROKER_REFUSED, reason)


def _unusable(reason: str) -> BrokerError:
    return BrokerError(codes.BROKER_BAD_RESPONSE, reason)

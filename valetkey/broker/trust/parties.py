"""Subject and actor of an exchange: whose tokens they are, and whether they still count.

The actor is always the authenticated client itself. The subject is a user (then an actor token of
the client must stand beside it, RFC 8693 §2.1) or the client itself (then none may).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from valetkey.broker.core.exchange import Party, User
from valetkey.broker.core.request import ExchangeRequest
from valetkey.broker.core.transactions import Earlier
from valetkey.broker.issuers.jwt import TXN_TYP, TYP, OwnToken
from valetkey.broker.trust.clients import Client
from valetkey.broker.trust.tokens import TokenVerifier, VerifiedToken
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.jose import TokenInvalid


class OwnTokens(Protocol):
    """Answers whether one of our own tokens still counts (`trust.standing`)."""

    def token_counts(self, token: OwnToken, compact: str) -> bool: ...


class PartyResolver:
    """``issuer`` is the broker's own identifier: only its own tokens can be revoked here.

    ``recognise`` gives a token of ours that holds, of whatever type.
    """

    def __init__(
        self,
        tokens: TokenVerifier,
        own: OwnTokens,
        *,
        issuer: str,
        recognise: Callable[[str], OwnToken | None],
    ) -> None:
        self._recognise = recognise
        self._tokens = tokens
        self._own = own
        self._issuer = issuer

    async def resolve(self, request: ExchangeRequest, client: Client) -> tuple[Party, User | None]:
        """The acting client, and the user it acts for. Raises `CallerError`."""
        own = client.assertion
        if request.replaces:
            return await self._replace(request, client)
        subject = await self._subject(request.subject_token.reveal(), client)
        actor_token = request.actor_token.reveal()
        if subject.issuer.use == "user":
            expires = await self._check_actor(actor_token, client)
            acting = Party(own.claims.issuer, own.claims.subject, expires)
            return acting, self._user(subject, request.subject_token.reveal())
        if not subject.is_same_party(own):
            raise CallerError(codes.SUBJECT_INVALID, "the subject is another workload")
        if actor_token:
            raise CallerError(codes.ACTOR_MISMATCH, "an actor for a workload's own token")
        expires = min(own.expires, subject.expires)
        return Party(own.claims.issuer, own.claims.subject, expires), None

    async def _replace(self, request: ExchangeRequest, client: Client) -> tuple[Party, User]:
        """A transaction token as subject: for whoever it says, and whoever presents it acts."""
        compact = request.subject_token.reveal()
        expires = client.assertion.expires
        if request.actor_token.reveal():
            expires = await self._check_actor(request.actor_token.reveal(), client)
        own = self._recognise(compact)
        earlier = Earlier.of(own.claims) if own is not None and own.typ == TXN_TYP else None
        if own is None or earlier is None:
            raise CallerError(codes.SUBJECT_INVALID, "no transaction token of ours that holds")
        if not self._own.token_counts(own, compact):
            raise CallerError(codes.SUBJECT_REVOKED, "the transaction token no longer counts")
        claims = client.assertion.claims
        user = User(
            self._issuer,
            own.subject,
            own.expires,
            own.claims,
            txn=own.txn,
            origin=own.subject_issuer,
            earlier=earlier,
        )
        return Party(claims.issuer, claims.subject, expires), user

    async def _subject(self, compact: str, client: Client) -> VerifiedToken:
        if compact and compact == client.compact:
            return client.assertion
        try:
            return await self._tokens.verify(compact, use=None)
        except TokenInvalid as error:
            # RFC 8693 §2.2.2: an unacceptable subject or actor token is an invalid_request.
            raise CallerError(codes.SUBJECT_INVALID, str(error)) from error

    async def _check_actor(self, compact: str, client: Client) -> float:
        """The earlier expiry of assertion and actor token."""
        if not compact and not client.compact:
            # It came by certificate, and may have no token: RFC 8693 §2.1 leaves the actor's out.
            return client.assertion.expires
        if not compact:
            raise CallerError(codes.ACTOR_MISMATCH, "a user's token without an actor")
        if compact == client.compact:
            return client.assertion.expires
        try:
            actor = await self._tokens.verify(compact, use="workload")
        except TokenInvalid as error:
            raise CallerError(codes.ACTOR_MISMATCH, str(error)) from error
        if not actor.is_same_party(client.assertion):
            raise CallerError(codes.ACTOR_MISMATCH, "the actor is not the client")
        return min(actor.expires, client.assertion.expires)

    def _user(self, token: VerifiedToken, compact: str) -> User:
        claims = token.claims
        if claims.issuer != self._issuer:
            return User(claims.issuer, claims.subject, token.expires, claims.claims)
        try:
            own = OwnToken.of(claims)
        except TokenInvalid as error:
            raise CallerError(codes.SUBJECT_INVALID, str(error)) from error
        if own.typ != TYP:
            # RFC 8725 §3.11: what is no access token is not taken for one.
            raise CallerError(codes.SUBJECT_INVALID, f"a token of ours of type {own.typ}")
        if not self._own.token_counts(own, compact):
            raise CallerError(codes.SUBJECT_REVOKED, "the subject token no longer counts")
        return User(
            claims.issuer,
            claims.subject,
            token.expires,
            claims.claims,
            txn=own.txn,
            origin=own.subject_issuer,
        )

"""What policies know of the parties: their roles and groups, and which workloads are agents."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal

from valetkey.broker.core.attributes import Attributes, AttributesInvalid, Directory, Known
from valetkey.broker.core.exchange import Party, User
from valetkey.broker.core.patterns import WorkloadPattern
from valetkey.broker.trust.clients import Client
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

FoundBy = Callable[[str, str, Mapping[str, Any]], Mapping[str, str]]
"""The claims that directories found an issuer's subject by, from those of a token of our own."""


def _by_sub(_issuer: str, _subject: str, _claims: Mapping[str, Any]) -> Mapping[str, str]:
    return {}


class People:
    """``agents`` are patterns of workloads by their issuer, ``issuers`` those of workloads.

    ``found_by`` reads what our own tokens carry (`issuers.found_by`).
    """

    def __init__(
        self,
        directory: Directory,
        agents: Mapping[str, tuple[WorkloadPattern, ...]],
        *,
        issuers: frozenset[str] = frozenset(),
        found_by: FoundBy = _by_sub,
    ) -> None:
        self._found_by = found_by
        self._directory = directory
        self._agents = agents
        self._issuers = issuers

    async def of(self, client: Client, user: User | None) -> Known:
        """What is known of both. Raises `CallerError` for a token whose claims are malformed."""
        claims = client.assertion.claims
        said = claims.claims
        if claims.attributes:
            # What a kind of issuer says of its own (namespace, node, …), under one name each.
            said = {**said, **claims.attributes}
        try:
            actor = await self._directory.attributes(claims.issuer, claims.subject, said)
        except AttributesInvalid as error:
            raise CallerError(codes.ACTOR_INVALID, str(error)) from error
        try:
            found = await self._of_user(user)
        except AttributesInvalid as error:
            raise CallerError(codes.SUBJECT_INVALID, str(error)) from error
        agent = self.is_agent(claims.issuer, claims.subject)
        return Known(actor, agent, found, self._kind(user))

    async def known(self, client: Party, claims: Mapping[str, Any], user: User | None) -> Known:
        """The same of parties that somebody else has verified. Raises `AttributesInvalid`."""
        actor = await self._directory.attributes(client.issuer, client.subject, claims)
        agent = self.is_agent(client.issuer, client.subject)
        return Known(actor, agent, await self._of_user(user), self._kind(user))

    async def of_approver(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> Attributes:
        """What the directory knows of somebody who decides. Raises `CallerError`."""
        try:
            return await self._directory.attributes(issuer, subject, claims)
        except AttributesInvalid as error:
            raise CallerError(codes.SERVICE_FORBIDDEN, str(error)) from error

    async def _of_user(self, user: User | None) -> Attributes:
        if user is None:
            return Attributes()
        if not user.origin:
            return await self._directory.attributes(user.home, user.subject, user.claims)
        # A token of our own: it carries names of ours, which no table for others' values may read.
        # Its own claims are not those of the token that it was made from, but for what we sealed.
        carried = Attributes(_names(user.claims, "roles"), _names(user.claims, "groups"))
        found_by = self._found_by(user.home, user.subject, user.claims)
        return carried | await self._directory.attributes(user.home, user.subject, found_by)

    def _kind(self, user: User | None) -> Literal["User", "Workload", "Agent"]:
        """A token of our own speaks for a workload where a workload got it for itself."""
        if user is None or user.home not in self._issuers:
            return "User"
        return "Agent" if self.is_agent(user.home, user.subject) else "Workload"

    def is_agent(self, issuer: str, subject: str) -> bool:
        return any(pattern.matches(subject) for pattern in self._agents.get(issuer, ()))


def _names(claims: Mapping[str, Any], claim: str) -> frozenset[str]:
    """RFC 9068 §2.2.3.1, as `JwtIssuer` writes it. What is missing could have forbidden something.

    Raises `AttributesInvalid`.
    """
    names = claims.get(claim)
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise AttributesInvalid(f"{claim} is missing from a token of our own")
    return frozenset(names)

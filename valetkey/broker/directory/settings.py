"""Settings of the directories. Left out, none has a say in anything."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from valetkey.contracts.settings import Settings


class ScimUserSettings(Settings, frozen=True, kw_only=True):
    """How the subject of a token of ``issuer`` is found among the users.

    ``claim`` of the token must be exactly the user's ``match``: ``external_id``, ``user_name`` (as
    written, case counts) or ``id``. A subject that is not found counts as inactive.
    """

    issuer: str
    match: Literal["external_id", "user_name", "id"]
    claim: str = "sub"

    def __post_init__(self) -> None:
        if not self.issuer or not self.claim:
            raise ValueError("issuer and claim must not be empty")


class ScimSettings(Settings, frozen=True, kw_only=True):
    """Users and groups that a provisioning client writes through ``/scim/v2``.

    ``users`` says whose tokens they are looked up for; ``remembered`` is how many of them are kept
    in memory.
    """

    users: tuple[ScimUserSettings, ...]
    remembered: int = 10_000

    def __post_init__(self) -> None:
        if not self.users:
            raise ValueError("users is empty: what is provisioned would decide about nobody")
        _check_once("users", (rule.issuer for rule in self.users))
        if self.remembered < 1:
            raise ValueError("remembered must be positive")


class DirectorySettings(Settings, frozen=True, kw_only=True):
    """Where roles, groups and the state of users come from, besides the tokens themselves."""

    scim: ScimSettings | None = None

    def __post_init__(self) -> None:
        if self.scim is None:
            raise ValueError("name a directory, or leave directory out")

    def issuers(self) -> frozenset[str]:
        """Those whose subjects are looked up."""
        rules = self.scim.users if self.scim else ()
        return frozenset(rule.issuer for rule in rules)


def _check_once(name: str, issuers: Iterable[str]) -> None:
    listed = list(issuers)
    if len(set(listed)) != len(listed):
        raise ValueError(f"{name}: an issuer is listed twice")

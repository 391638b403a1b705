"""Settings of the directories. Left out, none has a say in anything."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Final, Literal
from urllib.parse import urlsplit

from valetkey.contracts.settings import Duration, Settings, duration

# RFC 4512 §2.5: a short name with options.
_ATTRIBUTE: Final = re.compile(r"[A-Za-z][A-Za-z0-9-]{0,127}(;[A-Za-z0-9-]{1,32}){0,4}")


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


class LdapSubjectSettings(Settings, frozen=True, kw_only=True):
    """How the subject of a token of ``issuer`` is found: users' tokens, or workloads'.

    Beneath ``base``, ``claim`` of the token must be the entry's ``attribute`` exactly, case and
    all, and ``filter`` (RFC 4515) must match: say there what a deactivated entry lacks. A subject
    for which no entry does, or several, counts as inactive.
    """

    issuer: str
    base: str
    attribute: str
    claim: str = "sub"
    filter: str = "(objectClass=*)"

    def __post_init__(self) -> None:
        if not self.issuer or not self.base or not self.claim:
            raise ValueError("issuer, base and claim must not be empty")
        if not _ATTRIBUTE.fullmatch(self.attribute):
            raise ValueError("attribute must be the name of an attribute")
        if not (self.filter.startswith("(") and self.filter.endswith(")")):
            raise ValueError("filter must be in parentheses")


class LdapGroupSettings(Settings, frozen=True, kw_only=True):
    """How the groups of an entry are found: its name takes the place of ``{}`` in ``filter``.

    ``name`` is the attribute that policies know a group by. ``nested`` looks for the groups of
    groups too, up to 8 deep.
    """

    base: str
    filter: str = "(member={})"
    name: str = "cn"
    nested: bool = True

    def __post_init__(self) -> None:
        if not self.base or not _ATTRIBUTE.fullmatch(self.name):
            raise ValueError("base must not be empty, name must be the name of an attribute")
        if self.filter.count("{}") != 1 or not (
            self.filter.startswith("(") and self.filter.endswith(")")
        ):
            raise ValueError("filter must be in parentheses and have {} once")


class LdapSettings(Settings, frozen=True, kw_only=True):
    """Groups that an LDAP server knows.

    ``url`` is ``ldaps://…``, or ``ldap://…`` with ``start_tls``; ``ca_file`` is the CA of its
    certificate (default: the system's). The broker binds as ``bind_dn`` with the password of the
    file. ``timeout`` is for each operation; ``remember`` is how long an answer counts, and so how
    long a change there may take to count here. ``connections`` are open at a time.
    """

    url: str
    bind_dn: str
    password_file: Path
    subjects: tuple[LdapSubjectSettings, ...]
    groups: LdapGroupSettings
    start_tls: bool = False
    ca_file: Path | None = None
    timeout: Duration = duration(3)
    remember: Duration = duration(30)
    connections: int = 4

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in {"ldap", "ldaps"} or not parts.hostname or parts.path or parts.query:
            raise ValueError("url must be ldaps://HOST:PORT or ldap://HOST:PORT")
        if (parts.scheme == "ldaps") == self.start_tls:
            raise ValueError("url must be ldaps://, or ldap:// with start_tls: true")
        if not self.bind_dn or not self.subjects:
            raise ValueError("bind_dn and subjects must not be empty")
        _check_once("subjects", (rule.issuer for rule in self.subjects))
        if not 0 < self.timeout <= 30 or not 0 < self.remember <= 600:
            raise ValueError("timeout is at most 30s, remember at most 10m; neither is 0")
        if not 1 <= self.connections <= 64:
            raise ValueError("connections must be between 1 and 64")


class DirectorySettings(Settings, frozen=True, kw_only=True):
    """Where roles, groups and the state of users come from, besides the tokens themselves."""

    scim: ScimSettings | None = None
    ldap: LdapSettings | None = None

    def __post_init__(self) -> None:
        if self.scim is None and self.ldap is None:
            raise ValueError("name a directory, or leave directory out")

    def issuers(self) -> frozenset[str]:
        """Those whose subjects are looked up."""
        users = {rule.issuer for rule in self.scim.users} if self.scim else set()
        subjects = {rule.issuer for rule in self.ldap.subjects} if self.ldap else set()
        return frozenset(users | subjects)


def _check_once(name: str, issuers: Iterable[str]) -> None:
    listed = list(issuers)
    if len(set(listed)) != len(listed):
        raise ValueError(f"{name}: an issuer is listed twice")

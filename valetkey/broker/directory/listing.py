"""The users that a directory can name by issuer and ``sub``, one after the other.

Only what is provisioned can be listed, and only where ``sub`` is what is stored: of all others
the directory learns who they are when they come.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from typing import Final, NamedTuple

from valetkey.broker.directory.scim import name_of
from valetkey.broker.directory.settings import ScimUserSettings
from valetkey.broker.store.scim import ScimStore

_BATCH: Final = 100


class Listed(NamedTuple):
    """``id`` is the directory's own: it stays, whatever the user is called."""

    issuer: str
    id: str
    subject: str


class UserListing:
    """``issuers`` are those whose users are all listed."""

    def __init__(self, store: ScimStore | None, rules: Iterable[ScimUserSettings]) -> None:
        self._store = store
        by_sub = (rule for rule in rules if store is not None and rule.claim == "sub")
        self._rules = sorted(by_sub, key=lambda rule: rule.issuer)
        self.issuers = frozenset(rule.issuer for rule in self._rules)

    async def active(self, issuer: str = "", id_: str = "") -> AsyncIterator[Listed]:
        """Those who are active, by issuer and id, from this one on. Raises `StoreError`."""
        for rule in self._rules:
            if self._store is None or rule.issuer < issuer:
                continue
            since = id_ if rule.issuer == issuer else ""
            batch = await self._store.active_users(since=since, limit=_BATCH)
            while batch:
                for user in batch:
                    subject = name_of(user, rule)
                    if subject:
                        yield Listed(rule.issuer, user.id, subject)
                batch = await self._store.active_users(after=batch[-1].id, limit=_BATCH)

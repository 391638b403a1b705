"""What provisioned users and groups say of a token's subject, from memory where it is current.

Invariants:

- What is remembered counts only while this replica has lately seen that it knows of every change
  (`CURRENT_FOR`); else the database is asked, and where it does not answer, nothing is granted.
- A change forgets what it could have touched before its writer is answered. What was being read
  meanwhile is not remembered.
- Nobody unknown is remembered: who has just been provisioned is known with the next call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final

from cachetools import LRUCache
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.attributes import Attributes
from valetkey.broker.core.scim_keys import Column, Pinned
from valetkey.broker.directory.settings import ScimUserSettings
from valetkey.broker.store.changes import CURRENT_FOR, Changes
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.scim import TOPIC, Record, ScimStore, Subject

_UNKNOWN: Final = Attributes(active=False)
_NO_SAY: Final = Attributes()
_COLUMNS: Final[Mapping[str, Column]] = {
    "external_id": "external_id",
    "user_name": "name",
    "id": "id",
}


@dataclass(frozen=True, slots=True)
class _Known:
    id: str
    attributes: Attributes


class Ender:
    """Ends the tokens of users who are deactivated or deleted: of all subjects that they are."""

    def __init__(
        self,
        epochs: Epochs,
        rules: Iterable[ScimUserSettings],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._epochs = epochs
        self._rules = [rule for rule in rules if rule.claim == "sub"]
        self._clock = clock

    async def __call__(
        self,
        connection: AsyncConnection,
        user: Record,
        seen: frozenset[Subject],
        reason: str,
    ) -> None:
        own = {"external_id": user.external_id, "user_name": user.name, "id": user.id}
        subjects = seen | {(rule.issuer, own[rule.match] or "") for rule in self._rules}
        for issuer, subject in sorted(subjects):
            if subject:
                await self._epochs.bump(
                    connection,
                    issuer,
                    subject,
                    at=self._clock(),
                    reason=f"directory: {reason}",
                    attest=False,
                )


class ScimDirectory:
    """``capacity`` users are remembered. ``monotonic`` gives seconds of the clock of `Changes`."""

    def __init__(
        self,
        store: ScimStore,
        changes: Changes,
        rules: Iterable[ScimUserSettings],
        *,
        capacity: int,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._changes = changes
        self._rules = {rule.issuer: rule for rule in rules}
        self._known: LRUCache[tuple[str, str, str], _Known] = LRUCache(capacity)
        self._changed = 0
        self._monotonic = monotonic
        changes.subscribe(TOPIC, self._forget)

    def __len__(self) -> int:
        return len(self._known)

    async def attributes(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> Attributes:
        """Raises `StoreError`."""
        rule = self._rules.get(issuer)
        if rule is None:
            return _NO_SAY
        value = subject if rule.claim == "sub" else claims.get(rule.claim, "")
        if not isinstance(value, str):
            return _UNKNOWN
        key = (issuer, subject, value)
        known = self._known.get(key)
        if known is not None and self._is_current():
            return known.attributes
        seen = self._changed
        if value:
            user = await self._find(_COLUMNS[rule.match], value)
        else:
            # A token of our own, made from one that had the claim: the subject is remembered.
            user = await self._store.seen_as((issuer, subject))
        if user is None:
            return _UNKNOWN
        if user.active and value and rule.claim != "sub":
            await self._store.saw(user.id, (issuer, subject))
        found = await self._attributes_of(user)
        if self._changed == seen:
            self._known[key] = _Known(user.id, found)
        return found

    def _is_current(self) -> bool:
        return self._monotonic() - self._changes.applied_at <= CURRENT_FOR

    async def _find(self, column: Column, value: str) -> Record | None:
        for user in await self._store.find("User", Pinned(column, value)):
            # Names are unique in whatever case they are written, but a token must match one as it
            # is written: who else writes it otherwise is somebody else.
            if column != "name" or user.name == value:
                return user
        return None

    async def _attributes_of(self, user: Record) -> Attributes:
        if not user.active:
            return _UNKNOWN
        roles = (role.get("value") for role in user.document.get("roles", ()))
        return Attributes(
            roles=frozenset(role for role in roles if role),
            groups=await self._store.all_groups(user.id),
        )

    async def _forget(self, key: str) -> None:
        self._changed += 1
        kind, _, id_ = key.partition(":")
        if kind == "user":
            for entry in [entry for entry, known in self._known.items() if known.id == id_]:
                del self._known[entry]
        else:
            self._known.clear()

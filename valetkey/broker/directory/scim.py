"""What provisioned users and groups say of a token's subject, from memory where it is current.

Invariants:

- What is remembered counts only while this replica has lately seen that it knows of every change
  (`CURRENT_FOR`); else the database is asked, and where it does not answer, nothing is granted.
- A change forgets what it could have touched before its writer is answered. What was being read
  meanwhile is not remembered.
- Nobody unknown is remembered: who has just been provisioned is known with the next call.
- Where users are found by another claim than ``sub``, their subject is noted before it is answered
  (`store.scim_subjects`), so that it ends with them.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from cachetools import LRUCache
from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.attributes import Attributes
from valetkey.broker.core.scim_keys import Column, Pinned
from valetkey.broker.directory.settings import ScimUserSettings
from valetkey.broker.store.changes import CURRENT_FOR, Changes
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.scim import TOPIC, Record, ScimStore
from valetkey.broker.store.scim_subjects import NOTED_FOR, Crowded, Seen, Subject
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.logs import Log

_UNKNOWN: Final = Attributes(active=False)
_NO_SAY: Final = Attributes()
_COLUMNS: Final[Mapping[str, Column]] = {
    "external_id": "external_id",
    "user_name": "name",
    "id": "id",
}
# Each is one in which the user was changed meanwhile.
_ROUNDS: Final = 5


@dataclass(frozen=True, slots=True)
class _Known:
    """``until`` (seconds since the epoch) is how long the note of its subject may be relied on."""

    id: str
    attributes: Attributes
    until: float


class Ender:
    """Ends the tokens of subjects that a user no longer is.

    So it is of all of them where the user is deactivated or deleted, and where it is renamed of
    those that named it as it was: the user does not answer to that any more, and nobody else may
    come into what was issued under it.
    """

    def __init__(
        self,
        epochs: Epochs,
        rules: Iterable[ScimUserSettings],
        *,
        clock: Callable[[], float],
    ) -> None:
        self._epochs = epochs
        self._rules = {rule.issuer: rule for rule in rules}
        self._clock = clock

    async def __call__(
        self,
        connection: AsyncConnection,
        before: Record,
        after: Record | None,
        seen: Collection[Seen],
    ) -> frozenset[Subject]:
        by_sub = (
            Seen(rule.issuer, name, name)
            for rule in self._rules.values()
            if rule.claim == "sub" and (name := name_of(before, rule))
        )
        lost = frozenset(
            (one.issuer, one.subject)
            for one in (*seen, *by_sub)
            if after is None or not self._answers(after, one)
        )
        reason = "deleted" if after is None else "renamed" if after.active else "deactivated"
        for issuer, subject in sorted(lost):
            await self._epochs.bump(
                connection,
                issuer,
                subject,
                at=self._clock(),
                reason=f"directory: {reason}",
                attest=False,
            )
        return lost

    def _answers(self, user: Record, seen: Seen) -> bool:
        """Whether tokens of a subject that named the user so would find it still."""
        rule = self._rules.get(seen.issuer)
        if rule is None or not user.active:
            return False
        return name_of(user, rule) == (seen.subject if rule.claim == "sub" else seen.value)


def name_of(user: Record, rule: ScimUserSettings) -> str:
    """What the claim must be, exactly; empty: there is nothing that it could be."""
    own = {"external_id": user.external_id, "user_name": user.name, "id": user.id}
    return own[rule.match] or ""


class ScimDirectory:
    """``capacity`` users are remembered.

    ``clock`` gives seconds since the epoch, ``monotonic`` those of the clock of `Changes`.
    """

    def __init__(
        self,
        store: ScimStore,
        changes: Changes,
        rules: Iterable[ScimUserSettings],
        *,
        capacity: int,
        clock: Callable[[], float],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = store
        self._changes = changes
        self._rules = {rule.issuer: rule for rule in rules}
        self._known: LRUCache[tuple[str, str, str], _Known] = LRUCache(capacity)
        self._changed = 0
        self._clock = clock
        self._monotonic = monotonic
        self._log = Log("broker.scim")
        changes.subscribe(TOPIC, self._forget)

    def __len__(self) -> int:
        return len(self._known)

    async def attributes(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> Attributes:
        """Raises `StoreError`, `CallerError`."""
        rule = self._rules.get(issuer)
        if rule is None:
            return _NO_SAY
        value = subject if rule.claim == "sub" else claims.get(rule.claim)
        if not isinstance(value, str) or not value:
            return _UNKNOWN
        key = (issuer, subject, value)
        known = self._known.get(key)
        if known is not None and self._is_current() and self._clock() < known.until:
            return known.attributes
        by_sub = rule.claim == "sub"
        for _ in range(_ROUNDS):
            seen, asked_at = self._changed, self._clock()
            user = await self._find(_COLUMNS[rule.match], value)
            if user is None:
                return _UNKNOWN
            noted = by_sub or not user.active
            try:
                if not noted and not await self._store.subjects.note(
                    user.id, user.version, Seen(issuer, subject, value)
                ):
                    continue
            except Crowded:
                self._log.warning("directory_ambiguous", issuer=issuer)
                return _UNKNOWN
            found = await self._attributes_of(user)
            if not by_sub:
                found = replace(found, found_by=frozenset({(rule.claim, value)}))
            if self._changed == seen:
                until = math.inf if by_sub else asked_at + NOTED_FOR
                self._known[key] = _Known(user.id, found, until)
            return found
        raise CallerError(codes.SERVICE_UNAVAILABLE, "the user kept changing")

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

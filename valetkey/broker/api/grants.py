"""``/v1/grants``: administrators make, list and revoke grants. Those of the file are listed too."""

from __future__ import annotations

from collections.abc import Callable
from heapq import merge
from typing import Annotated, Any, Final, get_args

import msgspec
from aiohttp import web

from valetkey.broker.api.admin import ContentInvalid, answer, page_answer, read_json, read_page
from valetkey.broker.core.grants import GrantSettings, PolicyInvalid
from valetkey.broker.core.grants.form import document_of
from valetkey.broker.core.grants.state import State, state_of
from valetkey.broker.core.patterns import patterns_of
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.grants import GrantFilter, GrantStore, StoredGrant
from valetkey.broker.store.uses import GrantUses
from valetkey.broker.trust.admins import Admin
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.times import rfc3339

_FILTERS: Final = ("workload", "target", "state")
_STATES: Final[dict[str, State]] = {state: state for state in get_args(State)}


class Reason(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of a request that ends something: why."""

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=1024)]

    def __post_init__(self) -> None:
        if not self.reason.strip() or not self.reason.isprintable():
            raise ValueError("reason must be one line that says why")


class GrantsApi:
    """``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        store: GrantStore,
        uses: GrantUses,
        policies: PolicyFile,
        changes: Changes,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._uses = uses
        self._policies = policies
        self._changes = changes
        self._clock = clock

    async def create(self, request: web.Request, admin: Admin) -> web.Response:
        """201 for a new grant, 200 for the same one again, 409 for another of its id."""
        written = await read_json(request, GrantSettings)
        self._check(written)
        if written.id in self._policies.current.written:
            raise CallerError(codes.GRANT_CONFLICT, f"the grants file has {written.id}")
        stored, created = await self._store.create(written, admin)
        if not created and document_of(stored.written) != document_of(written):
            raise CallerError(codes.GRANT_CONFLICT, f"{written.id} is another grant")
        await self._changes.catch_up()
        response = answer(self._made(stored), status=201 if created else 200)
        response.headers["Location"] = f"/v1/grants/{written.id}"
        return response

    async def page(self, request: web.Request, _admin: Admin) -> web.Response:
        """In the order of ids. ``workload`` also finds the patterns that mean this workload."""
        page = read_page(request, known=_FILTERS)
        wanted = _filter(request)
        # One more than is shown says whether there are more.
        stored = await self._store.page(wanted, after=page.after, limit=page.limit + 1)
        of_file = self._of_file(wanted, page.after, page.limit + 1)
        counts = await self._uses.counts([written.id for written in of_file])
        documents = merge(
            (self._filed(written, counts.get(written.id, 0)) for written in of_file),
            map(self._made, stored),
            key=lambda document: str(document["id"]),
        )
        items = [document for document, _ in zip(documents, range(page.limit + 1), strict=False)]
        more = len(items) > page.limit
        items = items[: page.limit]
        return page_answer(items, str(items[-1]["id"]) if more else "")

    async def show(self, request: web.Request, _admin: Admin) -> web.Response:
        grant_id = request.match_info["id"]
        written = self._policies.current.written.get(grant_id)
        if written is not None:
            counts = await self._uses.counts([grant_id])
            return answer(self._filed(written, counts.get(grant_id, 0)))
        stored = await self._store.get(grant_id)
        if stored is None:
            raise CallerError(codes.GRANT_UNKNOWN, grant_id)
        return answer(self._made(stored))

    async def revoke(self, request: web.Request, admin: Admin) -> web.Response:
        """200, also for one that is revoked already."""
        grant_id = request.match_info["id"]
        why = await read_json(request, Reason)
        stored = await self._store.end(grant_id, admin, why.reason)
        if stored is None:
            of_file = grant_id in self._policies.current.written
            raise CallerError(codes.GRANT_OF_FILE if of_file else codes.GRANT_UNKNOWN, grant_id)
        await self._changes.catch_up()
        return answer(self._made(stored))

    def _check(self, written: GrantSettings) -> None:
        if not written.reason.strip():
            raise ContentInvalid("reason is missing: say why the grant is needed")
        if written.not_after is not None and written.not_after.timestamp() <= self._clock():
            raise ContentInvalid("not_after is in the past")
        try:
            self._policies.current.rules.compile(written)
        except PolicyInvalid as error:
            raise ContentInvalid(str(error)) from error

    def _of_file(self, wanted: GrantFilter, after: str, limit: int) -> list[GrantSettings]:
        live, now = self._policies.live, self._clock()
        found = [
            written
            for written in self._policies.current.written.values()
            if written.id > after
            and (wanted.workloads is None or written.workload in wanted.workloads)
            and (wanted.target is None or written.target == wanted.target)
            and wanted.state
            in {None, state_of(written, uses=live.uses(written.id), revoked=False, now=now)}
        ]
        return sorted(found, key=lambda written: written.id)[:limit]

    def _filed(self, written: GrantSettings, uses: int) -> dict[str, Any]:
        return self._document(written, source="file", uses=uses, revoked=False)

    def _made(self, stored: StoredGrant) -> dict[str, Any]:
        ended = stored.ended
        document = self._document(
            stored.written, source="api", uses=stored.uses, revoked=ended is not None
        )
        document |= {
            "created_at": rfc3339(stored.created_at),
            "created_by": stored.created_by,
            "created_by_issuer": stored.created_by_issuer,
        }
        if ended is not None:
            document |= {
                "revoked_at": rfc3339(ended.at),
                "revoked_by": ended.by,
                "revoked_by_issuer": ended.by_issuer,
                "revoked_reason": ended.reason,
            }
        return document

    def _document(
        self, written: GrantSettings, *, source: str, uses: int, revoked: bool
    ) -> dict[str, Any]:
        state = state_of(written, uses=uses, revoked=revoked, now=self._clock())
        document = {"source": source, "state": state, **document_of(written)}
        if written.max_uses is not None:
            document["uses"] = uses
        try:
            self._policies.current.rules.compile(written)
        except PolicyInvalid as error:
            document["unusable"] = str(error)
        return document


def _filter(request: web.Request) -> GrantFilter:
    query = request.query
    state = query.get("state")
    if state is not None and state not in _STATES:
        raise ContentInvalid(f"state must be one of {', '.join(_STATES)}")
    workload = query.get("workload")
    return GrantFilter(
        # A pattern is asked for by its own text.
        workloads=None if workload is None else [*patterns_of(workload)] or [workload],
        target=query.get("target"),
        state=None if state is None else _STATES[state],
    )

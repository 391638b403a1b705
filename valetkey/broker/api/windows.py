"""``/v1/windows``: deployments open and close them, administrators look and close."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

import msgspec
from aiohttp import web

from valetkey.broker.api.admin import ContentInvalid, answer, page_answer, read_json, read_page
from valetkey.broker.api.grants import Reason
from valetkey.broker.core.grants import Grant
from valetkey.broker.core.grants.compiled import Opening
from valetkey.broker.core.rate_limit import RateLimit, whole_seconds
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.windows import StoredWindow, WindowStore
from valetkey.broker.trust.admins import Admin
from valetkey.broker.trust.deployments import Deployment, Deployments
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError, PolicyError
from valetkey.contracts.service import Handler, problem_response
from valetkey.contracts.settings import Duration
from valetkey.contracts.times import rfc3339

DeploymentHandler = Callable[[web.Request, Deployment], Awaitable[web.StreamResponse]]
_STATES: Final = ("open", "closed")


class Announcement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The body of ``POST /v1/windows``. ``duration``: at most the grant's ``longest`` (default)."""

    grant: str
    duration: Duration | None = None


class WindowsApi:
    """``limit`` is how often a deployment may ask, ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        store: WindowStore,
        policies: PolicyFile,
        changes: Changes,
        deployments: Deployments,
        limit: RateLimit,
        *,
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._policies = policies
        self._changes = changes
        self._deployments = deployments
        self._limit = limit
        self._clock = clock

    def guard(self, handler: DeploymentHandler) -> Handler:
        """``handler``, for deployments that authenticate."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                deployment = await self._deployments.authenticate(request)
            except CallerError as error:
                # RFC 6750 §3: a 401 names the scheme.
                return problem_response(error.code, headers={"WWW-Authenticate": "Bearer"})
            wait = self._limit.take((deployment.issuer, deployment.subject))
            if wait:
                return problem_response(
                    codes.SERVICE_RATE_LIMITED, headers={"Retry-After": str(whole_seconds(wait))}
                )
            return await handler(request, deployment)

        return guarded

    # --- for deployments ------------------------------------------------------------------------

    async def open(self, request: web.Request, deployment: Deployment) -> web.Response:
        """201 for a new window; 200 for the one that this token opened before."""
        announced = await read_json(request, Announcement)
        grant, opening = self._grant(announced.grant, deployment)
        now = self._clock()
        refusal = self._policies.live.refusal(grant, now)
        if refusal is not None:
            raise PolicyError(refusal, f"window of {grant.id}")
        window, opened = await self._store.open(
            grant.id,
            deployment,
            announcement=deployment.announcement(grant.id),
            now=now,
            deadline=min(now + _duration(announced, opening), grant.not_after),
        )
        if not window.is_open(now):
            raise CallerError(codes.WINDOW_ENDED, window.id)
        await self._changes.catch_up()
        response = answer(_document(window, now), status=201 if opened else 200)
        response.headers["Location"] = f"/v1/windows/{window.id}"
        return response

    async def close(self, request: web.Request, deployment: Deployment) -> web.Response:
        """By the identity that opened it; 200, also for one that is closed already."""
        window_id = request.match_info["id"]
        window = await self._store.get(window_id)
        if window is None or (window.opened_by_issuer, window.opened_by) != (
            deployment.issuer,
            deployment.subject,
        ):
            # Not told apart: who did not open it has no business with it.
            raise CallerError(codes.WINDOW_DENIED, f"{deployment.subject} closes {window_id}")
        return await self._close(window_id, deployment, "the deployment ended")

    # --- for administrators ---------------------------------------------------------------------

    async def page(self, request: web.Request, _admin: Admin) -> web.Response:
        page = read_page(request, known=("grant", "state"))
        state = request.query.get("state")
        if state is not None and state not in _STATES:
            raise ContentInvalid(f"state must be one of {', '.join(_STATES)}")
        windows = await self._store.page(
            grant_id=request.query.get("grant"),
            is_open=None if state is None else state == "open",
            after=page.after,
            limit=page.limit + 1,
        )
        more, windows = len(windows) > page.limit, windows[: page.limit]
        now = self._clock()
        return page_answer(
            [_document(window, now) for window in windows], windows[-1].id if more else ""
        )

    async def show(self, request: web.Request, _admin: Admin) -> web.Response:
        window = await self._store.get(request.match_info["id"])
        if window is None:
            raise CallerError(codes.WINDOW_UNKNOWN, request.match_info["id"])
        return answer(_document(window, self._clock()))

    async def revoke(self, request: web.Request, admin: Admin) -> web.Response:
        """200, also for one that is closed already."""
        why = await read_json(request, Reason)
        return await self._close(request.match_info["id"], admin, why.reason)

    async def _close(self, window_id: str, actor: Admin | Deployment, reason: str) -> web.Response:
        window = await self._store.close(window_id, actor, reason)
        if window is None:
            raise CallerError(codes.WINDOW_UNKNOWN, window_id)
        await self._changes.catch_up()
        return answer(_document(window, self._clock()))

    def _grant(self, grant_id: str, deployment: Deployment) -> tuple[Grant, Opening]:
        """The grant, if this identity may open windows of it."""
        grant = self._policies.current.find(grant_id)
        if (
            grant is None
            or grant.opening is None
            or not grant.opening.admits(deployment.issuer, deployment.subject, deployment.claims)
        ):
            # Not told apart: which grants there are is nobody's business.
            raise CallerError(
                codes.WINDOW_DENIED,
                f"{deployment.subject} of {deployment.issuer} opens {grant_id[:128]!r}",
            )
        return grant, grant.opening


def _duration(announced: Announcement, opening: Opening) -> float:
    if announced.duration is None:
        return opening.longest
    if not 1 <= announced.duration <= opening.longest:
        raise ContentInvalid(f"duration is between 1s and {opening.longest:g}s for this grant")
    return announced.duration


def _document(window: StoredWindow, now: float) -> dict[str, Any]:
    document: dict[str, Any] = {
        "id": window.id,
        "grant": window.grant_id,
        "state": "open" if window.is_open(now) else "closed",
        "opened_at": rfc3339(window.opened_at),
        "deadline": rfc3339(window.deadline),
        "opened_by": window.opened_by,
        "opened_by_issuer": window.opened_by_issuer,
    }
    if window.closed_at is not None:
        document |= {
            # Written down some time after the deadline, it was closed since the deadline.
            "closed_at": rfc3339(min(window.closed_at, window.deadline)),
            "closed_by": window.closed_by,
            "closed_by_issuer": window.closed_by_issuer,
            "closed_reason": window.closed_reason,
        }
    return document

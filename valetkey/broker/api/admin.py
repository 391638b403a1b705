"""What every endpoint of the admin API shares: who calls, how often, JSON in and out, pages.

Answers that refuse are ``application/problem+json``, made by `contracts.service.problems` from the
error that is raised here or in a handler.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import msgspec
from aiohttp import web

from valetkey.broker.core.rate_limit import RateLimit, whole_seconds
from valetkey.broker.core.roles import Role
from valetkey.broker.trust.admins import Admin, Admins
from valetkey.contracts import codes, problem, settings
from valetkey.contracts.errors import CallerError
from valetkey.contracts.service import Handler, problem_response

T = TypeVar("T")
AdminHandler = Callable[[web.Request, Admin], Awaitable[web.StreamResponse]]

MAX_PAGE: Final = 500
_DEFAULT_PAGE: Final = 100
_LIMIT_DIGITS: Final = len(str(MAX_PAGE))
_MAX_CURSOR: Final = 512


class AdminApi:
    """``limit`` is how often each administrator may ask."""

    def __init__(self, admins: Admins, limit: RateLimit) -> None:
        self._admins = admins
        self._limit = limit

    @property
    def admins(self) -> Admins:
        """Who authenticates administrators."""
        return self._admins

    def guard(self, role: Role, handler: AdminHandler) -> Handler:
        """``handler``, for administrators who have ``role`` only."""

        async def guarded(request: web.Request) -> web.StreamResponse:
            try:
                admin = await self._admins.authenticate(request)
            except CallerError as error:
                if error.code is not codes.SERVICE_UNAUTHENTICATED:
                    raise
                # RFC 6750 §3: a 401 names the scheme.
                return problem_response(error.code, headers={"WWW-Authenticate": "Bearer"})
            wait = self._limit.take((admin.issuer, admin.subject))
            if wait:
                return problem_response(
                    codes.SERVICE_RATE_LIMITED, headers={"Retry-After": str(whole_seconds(wait))}
                )
            if role not in admin.roles:
                raise CallerError(
                    codes.SERVICE_FORBIDDEN, f"{admin.subject} of {admin.issuer} is no {role}"
                )
            return await handler(request, admin)

        return guarded


async def read_json(request: web.Request, kind: type[T]) -> T:
    """The body as one ``kind`` (a msgspec struct that forbids unknown fields).

    Raises `CallerError`; its reason says which field is wrong and is shown to the administrator.
    """
    if request.content_type != "application/json":
        raise CallerError(codes.SERVICE_MEDIA_TYPE, "the body must be application/json")
    try:
        body = await request.read()
        return settings.convert(kind, msgspec.json.decode(body))
    except web.HTTPRequestEntityTooLarge as error:
        raise CallerError(codes.SERVICE_TOO_LARGE, "body over the cap") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ContentInvalid(str(error)) from error


class ContentInvalid(CallerError):  # noqa: N818 - reads as what it is
    """A body or query of an administrator that can't be used; the reason is told."""

    def __init__(self, reason: str) -> None:
        super().__init__(codes.SERVICE_BAD_REQUEST, reason)


@web.middleware
async def told_why(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Administrators are told what is wrong with what they sent, besides the code."""
    try:
        return await handler(request)
    except ContentInvalid as error:
        return web.Response(
            status=error.code.status,
            body=problem.render(error.code, reason=error.reason),
            headers={"Cache-Control": "no-store"},
            content_type=problem.CONTENT_TYPE,
        )


def answer(document: object, *, status: int = 200) -> web.Response:
    """JSON that nobody caches."""
    return web.Response(
        status=status,
        body=msgspec.json.encode(document),
        headers={"Cache-Control": "no-store"},
        content_type="application/json",
    )


@dataclass(frozen=True, slots=True)
class Page:
    """``?limit=`` and ``?after=``, where ``after`` is the ``next`` of the page before."""

    limit: int
    after: str


def read_page(request: web.Request, *, known: Iterable[str] = ()) -> Page:
    """The page that the query asks for. ``known`` are the handler's own parameters.

    Raises `ContentInvalid` for any other parameter, and for one that is given twice.
    """
    query = request.query
    allowed = {"limit", "after", *known}
    for name in query:
        if name not in allowed:
            raise ContentInvalid(f"unknown parameter {name!r}")
        if len(query.getall(name)) > 1:
            raise ContentInvalid(f"parameter {name!r} is given twice")
    limit = whole_number(query.get("limit", str(_DEFAULT_PAGE)), digits=_LIMIT_DIGITS)
    if limit is None or not 1 <= limit <= MAX_PAGE:
        raise ContentInvalid(f"limit must be between 1 and {MAX_PAGE}")
    after = query.get("after", "")
    if len(after) > _MAX_CURSOR or "\0" in after:
        raise ContentInvalid("after is not the next of a page")
    return Page(limit, after)


def whole_number(text: str, *, digits: int) -> int | None:
    """``text`` in full as a number of at most so many ASCII digits, or ``None``."""
    if not 1 <= len(text) <= digits or not text.isascii() or not text.isdigit():
        return None
    return int(text)


def page_answer(
    items: Iterable[object], next_: str = "", *, more: Mapping[str, Any] | None = None
) -> web.Response:
    """``{"items": […], "next": "…"}``; without ``next`` this was the last page."""
    document: dict[str, Any] = {**(more or {}), "items": list(items)}
    if next_:
        document["next"] = next_
    return answer(document)

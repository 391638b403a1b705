"""``GET /v1/events``, ``/v1/sources``, ``/v1/gaps``: for readers that the settings name.

``/v1/events`` takes filters (`core.filters.Filters`) and pages by ``after`` (a cursor, the order of
arrival) and ``limit``. ``last=N`` gives the newest N in their order instead. With
``order=sequence``, ``source`` and ``boot`` the page follows the chain and ``after`` is a sequence
number. ``raw=1`` gives each event as the exact text that is on record, for verification;
``outcomes=1`` puts the outcome beside each decision. An unknown parameter is refused: a misspelt
filter would answer another question than was asked.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec
from aiohttp import web
from sqlalchemy import Row, Select

from valetkey.collector.api.authenticate import Authenticator
from valetkey.collector.core.filters import Filters
from valetkey.collector.store import queries
from valetkey.collector.store.database import FAILED, Database, unavailable
from valetkey.collector.store.queries import MAX_PAGE
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

_DEFAULT_PAGE: Final = 100
EVENTS: Final = Filters.names() | {"after", "limit", "last", "order", "raw", "outcomes"}
"""The parameters of ``/v1/events``."""
_DECISIONS: Final = ("", "allowed", "denied")


class Read:
    """The reading half of the API."""

    def __init__(self, authenticator: Authenticator, database: Database) -> None:
        self._authenticator = authenticator
        self._engine = database.reader

    async def events(self, request: web.Request) -> web.Response:
        await self._authenticator.reader(request)
        query = _parameters(request, EVENTS)
        filters = _filters(query)
        limit = _number(query, "limit", _DEFAULT_PAGE, low=1, high=MAX_PAGE)
        after = _number(query, "after", 0)
        by_sequence = _choice(query, "order", ("arrival", "sequence")) == "sequence"
        if "last" in query:
            if by_sequence or "after" in query or "limit" in query:
                raise _bad("last stands alone")
            last = _number(query, "last", _DEFAULT_PAGE, low=1, high=MAX_PAGE)
            rows = (await self._all(queries.newest(filters, limit=last)))[::-1]
        elif by_sequence:
            wanted = Filters(source=filters.source, boot=filters.boot)
            if filters != wanted or not filters.source or not filters.boot:
                raise _bad("order=sequence takes source and boot, and no other filter")
            statement = queries.chain(filters.source, filters.boot, after=after, limit=limit)
            rows = await self._all(statement)
        else:
            rows = await self._all(queries.page(filters, after=after, limit=limit))
        raw = _choice(query, "raw", ("0", "1")) == "1"
        outcomes: dict[int, bytes] = {}
        if _choice(query, "outcomes", ("0", "1")) == "1" and rows:
            for outcome in await self._all(queries.outcomes([row.cursor for row in rows])):
                outcomes.setdefault(outcome.cursor, outcome.raw)
        items = [_item(row, raw, outcomes.get(row.cursor)) for row in rows]
        position = (rows[-1].seq if by_sequence else rows[-1].cursor) if rows else after
        return _json({"events": items, "next": position})

    async def sources(self, request: web.Request) -> web.Response:
        await self._authenticator.reader(request)
        query = _parameters(request, frozenset({"after", "limit"}))
        after = _number(query, "after", 0)
        limit = _number(query, "limit", MAX_PAGE, low=1, high=MAX_PAGE)
        rows = await self._all(queries.sources(after=after, limit=limit))
        return _json(
            {
                "sources": [row._asdict() for row in rows],
                "next": rows[-1].id if rows else after,
            }
        )

    async def gaps(self, request: web.Request) -> web.Response:
        await self._authenticator.reader(request)
        filters = _filters(_parameters(request, frozenset({"source", "boot"})))
        answer = {}
        for name in ("gaps", "declarations", "breaks", "conflicts"):
            rows = await self._all(getattr(queries, name)(filters))
            answer[name] = [row._asdict() for row in rows]
        return _json(answer)

    async def _all(self, statement: Select[Any]) -> list[Row[Any]]:
        try:
            async with self._engine.connect() as connection:
                return list((await connection.execute(statement)).all())
        except FAILED as error:
            raise unavailable(error) from error


def _item(row: Row[Any], raw: bool, outcome: bytes | None) -> dict[str, Any]:
    item: dict[str, Any] = {
        "cursor": row.cursor,
        "source": row.source,
        "boot": row.boot,
        "seq": row.seq,
        "hash": row.hash,
        "received": row.received,
    }
    if raw:
        item["raw"] = row.raw.decode()
    else:
        item["event"] = msgspec.Raw(row.raw)
    if outcome is not None:
        item["outcome"] = outcome.decode() if raw else msgspec.Raw(outcome)
    return item


def _parameters(request: web.Request, known: frozenset[str]) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise _bad("unknown parameter")
        if name in query:
            raise _bad(f"{name} is given twice")
        if "\0" in value:  # no text of PostgreSQL's, and in no event's name
            raise _bad(f"{name} has a null character")
        query[name] = value
    return query


def _filters(query: dict[str, str]) -> Filters:
    _choice(query, "decision", _DECISIONS)
    try:
        return Filters(**{name: query[name] for name in Filters.names() & query.keys()})
    except ValueError as error:
        raise _bad(f"since or until: {error}") from error


def _choice(query: dict[str, str], name: str, choices: tuple[str, ...]) -> str:
    value = query.get(name, choices[0])
    if value not in choices:
        raise _bad(f"{name} is none of {choices}")
    return value


def _number(
    query: dict[str, str], name: str, default: int, *, low: int = 0, high: int = 2**63 - 1
) -> int:
    text = query.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or len(text) > 19 or not low <= int(text) <= high:
        raise _bad(f"{name} is not a number between {low} and {high}")
    return int(text)


def _bad(reason: str) -> CallerError:
    return CallerError(codes.SERVICE_BAD_REQUEST, reason)


def _json(value: Any) -> web.Response:
    return web.Response(
        body=msgspec.json.encode(value),
        content_type="application/json",
        headers={"Cache-Control": "no-store"},
    )

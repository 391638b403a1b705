"""What can be asked of the record, as statements: for the service, and offline for the command.

Every list is paged or capped, so that no question can make the collector hold the whole log.
"""

from __future__ import annotations

from typing import Any, Final

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Select,
    and_,
    case,
    cast,
    func,
    literal,
    select,
    text,
    union,
)

from valetkey.collector.core import columns
from valetkey.collector.core.filters import EQUAL, OF_CALL, Filters
from valetkey.collector.store.dialects import contains, members_of, unlikely
from valetkey.collector.store.schema import (
    BOOTS,
    BREAKS,
    CONFLICTS,
    DECLARATIONS,
    EVENTS,
    GAPS,
    HOLES,
    SOURCES,
)

MAX_PAGE: Final = 1000


_DENIED: Final = text("events.decision = 'denied'")
_PARTIAL: Final = {
    "code": text("events.code <> ''"),
    "workload": text("events.workload <> ''"),
}

_EVENT: Final = (
    EVENTS.c.cursor,
    EVENTS.c.boot_id,
    SOURCES.c.source,
    BOOTS.c.boot,
    EVENTS.c.seq,
    EVENTS.c.hash,
    EVENTS.c.received,
    EVENTS.c.raw,
)


def page(filters: Filters, *, after: int, limit: int) -> Select[Any]:
    """Events in order of arrival behind the cursor ``after``."""
    return _matching(filters).where(EVENTS.c.cursor > after).order_by(EVENTS.c.cursor).limit(limit)


def newest(filters: Filters, *, limit: int) -> Select[Any]:
    """The last events that match, newest first."""
    return _matching(filters).order_by(EVENTS.c.cursor.desc()).limit(limit)


def chain(source: str, boot: str, *, after: int, limit: int) -> Select[Any]:
    """Events of one boot in order of the chain behind the sequence number ``after``."""
    return (
        _matching(Filters(source=source, boot=boot))
        .where(EVENTS.c.seq > after)
        .order_by(EVENTS.c.seq)
        .limit(limit)
    )


def outcomes(cursors: list[int]) -> Select[Any]:
    """The outcomes of the decisions at these cursors: ``cursor`` of the decision, ``raw``."""
    decision, outcome = EVENTS.alias("decision"), EVENTS.alias("outcome")
    return (
        select(decision.c.cursor, outcome.c.raw)
        .join(
            outcome,
            _answering(outcome, decision.c.boot_id, decision.c.seq) & text("outcome.answers > 0"),
        )
        .where(decision.c.cursor.in_(members_of(cursors)))
        .order_by(outcome.c.cursor)
    )


def sources(*, after: int, limit: int) -> Select[Any]:
    """Boots in order of first sight behind the key ``after``, with what is known of each."""

    def count(table: Any, *conditions: Any) -> Any:
        return (
            select(func.count())
            .select_from(table)
            .where(table.c.boot_id == BOOTS.c.id, *conditions)
            .scalar_subquery()
        )

    lost = (
        select(_total(DECLARATIONS.c.lost))
        .where(DECLARATIONS.c.boot_id == BOOTS.c.id)
        .scalar_subquery()
    )
    return (
        select(
            BOOTS.c.id,
            SOURCES.c.source,
            SOURCES.c.issuer,
            SOURCES.c.subject,
            BOOTS.c.boot,
            BOOTS.c.count,
            BOOTS.c.acked,
            BOOTS.c.high,
            BOOTS.c.head_seq,
            BOOTS.c.head_hash,
            BOOTS.c.first_seen,
            BOOTS.c.last_seen,
            BOOTS.c.last_time,
            count(GAPS, GAPS.c.closed.is_(None)).label("gaps"),
            count(BREAKS).label("breaks"),
            lost.label("lost"),
        )
        .join(SOURCES, SOURCES.c.id == BOOTS.c.source_id)
        .where(BOOTS.c.id > literal(after, BigInteger))
        .order_by(BOOTS.c.id)
        .limit(limit)
    )


def gaps(filters: Filters) -> Select[Any]:
    """Gaps, open ones first. ``missing`` is what of the gap is still awaited."""
    missing = (
        select(_total(HOLES.c.last - HOLES.c.first + 1))
        .where(HOLES.c.gap_id == GAPS.c.id)
        .scalar_subquery()
    )
    state = case(
        (GAPS.c.closed.is_(None), literal("open")),
        (GAPS.c.lost > 0, literal("declared")),
        else_=literal("filled"),
    )
    columns = (
        GAPS.c.first,
        GAPS.c.last,
        GAPS.c.opened,
        GAPS.c.closed,
        GAPS.c.lost,
        missing.label("missing"),
        state.label("state"),
    )
    return _of_boots(GAPS, columns, filters).order_by(GAPS.c.closed.is_not(None), GAPS.c.id.desc())


def declarations(filters: Filters) -> Select[Any]:
    table = DECLARATIONS.c
    columns = (table.first, table.last, table.lost, table.reason, table.event, table.seen)
    return _of_boots(DECLARATIONS, columns, filters).order_by(table.id.desc())


def breaks(filters: Filters) -> Select[Any]:
    table = BREAKS.c
    columns = (table.seq, table.reason, table.seen)
    return _of_boots(BREAKS, columns, filters).order_by(table.id.desc())


def conflicts(filters: Filters) -> Select[Any]:
    query = select(*(column for column in CONFLICTS.c if column.name != "id"))
    if filters.source:
        query = query.where(CONFLICTS.c.source == filters.source)
    if filters.boot:
        query = query.where(CONFLICTS.c.boot == filters.boot)
    return query.order_by(CONFLICTS.c.id.desc()).limit(MAX_PAGE)


def _total(number: ColumnElement[int]) -> ColumnElement[int]:
    """Their sum, 0 of none; PostgreSQL's of large integers would be of another type."""
    return cast(func.coalesce(func.sum(number), 0), BigInteger)


def open_gaps() -> Select[Any]:
    return select(func.count()).select_from(GAPS).where(GAPS.c.closed.is_(None))


def all_breaks() -> Select[Any]:
    return select(func.count()).select_from(BREAKS)


def _matching(filters: Filters) -> Select[Any]:
    query = (
        select(*_EVENT)
        .join(BOOTS, BOOTS.c.id == EVENTS.c.boot_id)
        .join(SOURCES, SOURCES.c.id == BOOTS.c.source_id)
    )
    for name in EQUAL:
        value = getattr(filters, name)
        if value:
            query = query.where(EVENTS.c[name] == value)
            # SQLite uses a partial index only where the statement's text implies its condition.
            if name in _PARTIAL:
                query = query.where(_PARTIAL[name])
    if filters.decision == "denied":
        query = query.where(_DENIED)
    for name in OF_CALL:
        value = getattr(filters, name)
        if value:
            query = query.where(_of_calls(name, value))
    return _of(query.where(*_in_span(*filters.span)), filters)


def _answering(outcome: Any, boot: Any, decision: Any) -> ColumnElement[bool]:
    """The outcome of a decision, by the index of outcomes.

    Told nothing, SQLite takes "answers > 0", which the index is limited to, for the better way into
    it, and reads every outcome of the boot for each decision.
    """
    return and_(outcome.c.boot_id == boot, unlikely(outcome.c.answers == decision))


def _of_calls(kind: str, value: str) -> ColumnElement[bool]:
    """Both events of each call that has to do with the token, transaction or approval."""
    named, decision, outcome = (EVENTS.alias(each) for each in ("named", "decision", "outcome"))
    by_decision = (named.c[kind] == value, text(f"named.{kind} <> ''"))
    by_outcome = (
        contains(named.c.more, columns.named(kind, value)),
        text("named.more <> ''"),
    )
    its_outcome = (
        select(outcome.c.cursor)
        .join(named, _answering(outcome, named.c.boot_id, named.c.seq))
        .where(*by_decision, text("outcome.answers > 0"))
    )
    its_decision = (
        select(decision.c.cursor)
        .join(named, (decision.c.boot_id == named.c.boot_id) & (decision.c.seq == named.c.answers))
        .where(*by_outcome)
    )
    itself = (select(named.c.cursor).where(*names_it) for names_it in (by_decision, by_outcome))
    return EVENTS.c.cursor.in_(union(*itself, its_outcome, its_decision))


def _in_span(since: int | None, until: int | None) -> list[ColumnElement[bool]]:
    """The time, and the part of the log in which such times are.

    What a sidecar kept for a while arrives late, so times do not ascend; but with the first and
    the last of them known by the index, no more than what lies between is read.
    """
    times = []
    if since is not None:
        times.append(EVENTS.c.time >= since)
    if until is not None:
        times.append(EVENTS.c.time < until)
    if not times:
        return []
    # Of a sum, not of the key: else SQLite would go through the log for the first one that matches.
    place = EVENTS.c.cursor + 0
    first, last = (
        select(function(place)).where(*times).scalar_subquery() for function in (func.min, func.max)
    )
    return [*times, EVENTS.c.cursor >= first, EVENTS.c.cursor <= last]


def _of(query: Select[Any], filters: Filters) -> Select[Any]:
    if filters.source:
        query = query.where(SOURCES.c.source == filters.source)
    if filters.boot:
        query = query.where(BOOTS.c.boot == filters.boot)
    return query


def _of_boots(table: Any, columns: tuple[Any, ...], filters: Filters) -> Select[Any]:
    query = (
        select(SOURCES.c.source, BOOTS.c.boot, *columns)
        .select_from(table)
        .join(BOOTS, BOOTS.c.id == table.c.boot_id)
        .join(SOURCES, SOURCES.c.id == BOOTS.c.source_id)
    )
    return _of(query, filters).limit(MAX_PAGE)

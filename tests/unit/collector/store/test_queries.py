from __future__ import annotations

import re

import pytest
from sqlalchemy import text
from sqlalchemy.dialects import sqlite

from valetkey.collector.core.filters import Filters
from valetkey.collector.store import queries, writer

OUTCOME = "INDEX ix_events_boot_id_answers (boot_id=? AND answers=?)"
PLANS = {
    "by code": (queries.newest(Filters(code="route.no_match"), limit=5), "ix_events_code"),
    "by workload": (queries.newest(Filters(workload="w"), limit=5), "ix_events_workload"),
    "denials": (queries.newest(Filters(decision="denied"), limit=5), "ix_events_decision"),
    "by token": (queries.newest(Filters(jti="t"), limit=5), "ix_events_jti"),
    "by transaction": (queries.page(Filters(txn="t"), after=5, limit=5), "ix_events_txn"),
    "by approval": (queries.newest(Filters(approval="a"), limit=5), "ix_events_approval"),
    "since then": (
        queries.newest(Filters(since="2026-11-24T10:00:00Z"), limit=5),
        "USING COVERING INDEX ix_events_time",
    ),
    "in a span": (
        queries.page(
            Filters(since="2026-11-24T10:00:00Z", until="2026-11-24T11:00:00Z", jti="t"),
            after=0,
            limit=5,
        ),
        "ix_events_jti",
    ),
    "by cursor": (queries.page(Filters(), after=5, limit=5), "INTEGER PRIMARY KEY"),
    "a chain": (
        queries.chain("urn:valetkey:sidecar:a", "00000000000000a1", after=5, limit=5),
        "USING INDEX sqlite_autoindex_events_1 (boot_id=? AND seq>?)",
    ),
    "outcomes": (queries.outcomes([2, 4]), OUTCOME),
    "outcomes of a token's calls": (queries.newest(Filters(jti="t"), limit=5), OUTCOME),
}


@pytest.mark.parametrize(("statement", "index"), PLANS.values(), ids=PLANS)
async def test_no_question_reads_the_whole_log(database, statement, index):
    compiled = statement.compile(
        dialect=sqlite.dialect(),
        compile_kwargs={"literal_binds": False, "render_postcompile": True},
    )
    values = tuple(compiled.params[name] for name in compiled.positiontup)
    async with database.reader.connect() as connection:
        rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {compiled}", values)
        plan = [row[3] for row in rows]
    assert any(index in step for step in plan), plan
    assert not [
        step
        for step in plan
        if re.match("SCAN (events|decision|outcome|named)", step)
        and "ix_events_more" not in step  # the few that are in it
    ], plan


async def test_the_last_of_a_kind_needs_no_sorting(database):
    for wanted in (Filters(decision="denied"), Filters(since="2026-11-24T10:00:00Z")):
        statement = queries.newest(wanted, limit=5)
        assert not [step for step in await plan_of(database, statement) if "TEMP B-TREE" in step]


async def plan_of(database, statement):
    async with database.reader.connect() as connection:
        sql = str(
            statement.compile(dialect=sqlite.dialect(), compile_kwargs={"literal_binds": True})
        )
        return [row[3] for row in await connection.execute(text(f"EXPLAIN QUERY PLAN {sql}"))]


@pytest.mark.parametrize("statement", [writer._HASHES, writer._LINKS])
async def test_looking_up_a_batch_reads_no_more_than_the_batch(database, statement):
    sql = str(statement.compile(dialect=sqlite.dialect()))
    async with database.reader.connect() as connection:
        rows = await connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", (1, "[1,2]"))
        plan = [row[3] for row in rows]
    assert any("(boot_id=? AND seq=?)" in step for step in plan), plan


AS_IF_LARGE = ("SET LOCAL enable_seqscan = off", "SET LOCAL enable_sort = off")


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
@pytest.mark.parametrize("statement", [case[0] for case in PLANS.values()], ids=PLANS)
async def test_no_question_reads_the_whole_log_of_postgresql(database, statement):
    """On a table that is empty, and so told what a planner finds out for itself on a large one."""
    async with database.reader.connect() as connection:
        for told in AS_IF_LARGE:
            await connection.exec_driver_sql(told)
        sql = statement.compile(dialect=connection.dialect, compile_kwargs={"literal_binds": True})
        rows = await connection.exec_driver_sql(f"EXPLAIN {sql}")
        plan = [row[0] for row in rows]
    assert any("Index" in step for step in plan), plan
    assert not [step for step in plan if "Seq Scan on events" in step], plan

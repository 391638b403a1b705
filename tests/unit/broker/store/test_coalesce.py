"""Many questions, one query; and no answer older than its question."""

from __future__ import annotations

import asyncio

import pytest

from valetkey.broker.store.coalesce import Coalesced


class Table:
    """Rows that are read when a query is let go, as in a database."""

    def __init__(self):
        self.rows = {}
        self.queries = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.error = None

    async def ask(self, keys):
        self.queries.append(keys)
        rows = dict(self.rows)
        await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {key: rows[key] for key in keys if key in rows}


@pytest.fixture
def table():
    return Table()


async def test_those_who_come_together_share_a_query(table):
    table.rows = {"a": 1, "b": 2}
    found = Coalesced(table.ask)
    assert await asyncio.gather(*map(found.find, "abca")) == [1, 2, None, 1]
    assert table.queries == [["a", "b", "c"]]


async def test_who_comes_while_a_query_runs_gets_the_next(table):
    found = Coalesced(table.ask)
    table.gate.clear()
    early = asyncio.ensure_future(found.find("a"))
    while not table.queries:
        await asyncio.sleep(0)
    table.rows["a"] = 1  # the first query has read its rows already
    late = [asyncio.ensure_future(found.find("a")) for _ in range(3)]
    await asyncio.sleep(0)
    table.gate.set()
    assert await early is None
    assert await asyncio.gather(*late) == [1, 1, 1]
    assert table.queries == [["a"], ["a"]]


async def test_an_error_is_for_those_who_asked_then(table):
    found = Coalesced(table.ask)
    table.error = OSError("away")
    asked = await asyncio.gather(*map(found.find, "ab"), return_exceptions=True)
    assert [type(one) for one in asked] == [OSError, OSError]
    table.error = None
    assert await found.find("a") is None


async def test_one_who_leaves_takes_nobody_along(table):
    table.rows = {"a": 1}
    found = Coalesced(table.ask)
    table.gate.clear()
    leaver, stayer = (asyncio.ensure_future(found.find("a")) for _ in range(2))
    await asyncio.sleep(0)
    leaver.cancel()
    await asyncio.sleep(0)
    table.gate.set()
    assert await stayer == 1
    assert leaver.cancelled()
    assert await found.find("a") == 1

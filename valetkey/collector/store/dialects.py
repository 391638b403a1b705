"""What SQLite and PostgreSQL say differently, so that all else is one statement for both."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import msgspec
from sqlalchemy import (
    BigInteger,
    BindParameter,
    ColumnElement,
    Connection,
    Integer,
    Select,
    Table,
    bindparam,
    literal_column,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

# 2^31 events are two days of 10,000 a second. SQLite's key is as large, under this name alone.
CURSOR: Final = BigInteger().with_variant(Integer, "sqlite")


def members(name: str) -> Select[Any]:
    """The integers of a list that goes in as one parameter, made by `listed`.

    SQLite takes 32,766 parameters, PostgreSQL 65,535.
    """
    return _members(bindparam(name))


def members_of(sequences: Iterable[int]) -> Select[Any]:
    """`members` of a list that is at hand."""
    return _members(bindparam(None, listed(sequences)))


def listed(sequences: Iterable[int]) -> str:
    return msgspec.json.encode(list(sequences)).decode()


def _members(parameter: BindParameter[Any]) -> Select[Any]:
    value: ColumnElement[int] = literal_column("CAST(value AS BIGINT)", BigInteger)
    return select(value).select_from(_Elements(parameter))


def unlikely(condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """The condition, and for SQLite's planner that it holds for few rows."""
    return _Unlikely(condition)


def contains(text: ColumnElement[str], part: str) -> ColumnElement[bool]:
    return _Position(text, part) > 0


def upsert(connection: Connection, table: Table) -> Any:
    """An insert that knows ``on_conflict_do_update`` and ``on_conflict_do_nothing``."""
    dialect = postgresql if is_postgres(connection) else sqlite
    return dialect.insert(table)


def is_postgres(connection: Connection) -> bool:
    return connection.dialect.name == "postgresql"


class _Elements(FunctionElement[Any]):
    inherit_cache = True


class _Unlikely(FunctionElement[bool]):
    # Of no type: of a truth value SQLAlchemy would ask SQLite whether it is 1.
    inherit_cache = True


class _Position(FunctionElement[int]):
    type = Integer()
    inherit_cache = True


@compiles(_Elements, "sqlite")
def _elements_sqlite(element: _Elements, compiler: SQLCompiler, **more: Any) -> str:
    return f"json_each({compiler.process(element.clauses, **more)})"


@compiles(_Elements, "postgresql")
def _elements_postgres(element: _Elements, compiler: SQLCompiler, **more: Any) -> str:
    return f"json_array_elements_text(CAST({compiler.process(element.clauses, **more)} AS JSON))"


@compiles(_Unlikely, "sqlite")
def _unlikely_sqlite(element: _Unlikely, compiler: SQLCompiler, **more: Any) -> str:
    return f"unlikely({compiler.process(element.clauses, **more)})"


@compiles(_Unlikely, "postgresql")
def _unlikely_postgres(element: _Unlikely, compiler: SQLCompiler, **more: Any) -> str:
    return f"({compiler.process(element.clauses, **more)})"


@compiles(_Position, "sqlite")
def _position_sqlite(element: _Position, compiler: SQLCompiler, **more: Any) -> str:
    return f"instr({compiler.process(element.clauses, **more)})"


@compiles(_Position, "postgresql")
def _position_postgres(element: _Position, compiler: SQLCompiler, **more: Any) -> str:
    return f"strpos({compiler.process(element.clauses, **more)})"

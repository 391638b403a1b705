"""When an event happened, and the tokens, transactions and approvals that it names.

What is on record already is filled in from the events themselves, a thousand at a time, before the
indexes are made.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

_BATCH = 1000
_MAX_TEXT = 256
_MAX_CREDENTIALS = 32
_KINDS = ("jti", "txn", "approval")
_NAMES = (*_KINDS, "more")


def upgrade() -> None:
    op.add_column(
        "events", sa.Column("time", sa.BigInteger, nullable=False, server_default="0")
    )
    for name in _NAMES:
        op.add_column("events", sa.Column(name, sa.Text, nullable=False, server_default=""))
    _fill(op.get_bind())
    op.create_index("ix_events_time", "events", ["time"], postgresql_include=["cursor"])
    for name in _NAMES:
        indexed = _indexed(name)
        where = sa.text(f"{name} <> ''")
        op.create_index(
            f"ix_events_{indexed}",
            "events",
            [indexed],
            sqlite_where=where,
            postgresql_where=where,
        )


def downgrade() -> None:
    for name in (*_NAMES[::-1], "time"):
        op.drop_index(f"ix_events_{_indexed(name)}", "events")
        op.drop_column("events", name)


def _indexed(name: str) -> str:
    """PostgreSQL takes no text into an index that is as long as this one may be."""
    if name == "more" and op.get_bind().dialect.name == "postgresql":
        return "cursor"
    return name


def _fill(connection: sa.Connection) -> None:
    events = sa.table("events", *map(sa.column, ("cursor", "raw", "time", *_NAMES)))
    page = (
        sa.select(events.c.cursor, events.c.raw)
        .where(events.c.cursor > sa.bindparam("after"))
        .order_by(events.c.cursor)
        .limit(_BATCH)
    )
    change = (
        sa.update(events)
        .where(events.c.cursor == sa.bindparam("row"))
        .values({name: sa.bindparam(f"new_{name}") for name in ("time", *_NAMES)})
    )
    after = 0
    while rows := connection.execute(page, {"after": after}).all():
        connection.execute(change, [{"row": row.cursor, **_named(row.raw)} for row in rows])
        after = rows[-1].cursor


def _named(raw: Any) -> dict[str, Any]:
    """What `collector.core.columns` takes from an event at this revision.

    Of bytes that are no event (somebody changed the file) nothing: verification names them.
    """
    try:
        event = msgspec.json.decode(raw, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError, TypeError):
        event = {}
    unmapped = _object(_object(event, "data"), "unmapped")
    return {
        "new_time": _milliseconds(event.get("time")),
        **{f"new_{kind}": _text(unmapped, kind) for kind in _KINDS},
        "new_more": _more(unmapped),
    }


def _more(unmapped: dict[str, Any]) -> str:
    listed = unmapped.get("credentials")
    credentials = listed[:_MAX_CREDENTIALS] if isinstance(listed, list) else []
    credentials.append(_object(unmapped, "stream"))
    found = {
        f"{kind} {value}": None
        for credential in credentials
        if isinstance(credential, dict)
        for kind in _KINDS
        if (value := _text(credential, kind)) and "\n" not in value
    }
    return "\n" + "\n".join(found) + "\n" if found else ""


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _text(parent: dict[str, Any], name: str) -> str:
    value = parent.get(name)
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _milliseconds(time: object) -> int:
    if not isinstance(time, str) or not time.isascii() or "T" not in time.upper():
        return 0
    try:
        moment = datetime.fromisoformat(time)
    except ValueError:
        return 0
    return 0 if moment.tzinfo is None else round(moment.timestamp() * 1000)

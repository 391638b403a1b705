"""``valetkey audit tail``: the record as a table, a call per row.

A call leaves a decision and an outcome; they are one row here. A decision without an outcome says
so: the call is going on, or a crash cut it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, Literal

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from valetkey.cli.audit.record import Found, Tailed
from valetkey.contracts import events
from valetkey.contracts.plain_text import plain

# How long a followed decision is held back for its outcome, so that both come as one row.
_PATIENCE: Final = 3.0
_POLL: Final = 0.5
_PAGE: Final = 200

# A person's terminal says how wide it is; a pipe gets room for whole rows.
_PIPE_WIDTH: Final = 200

_COLUMNS: Final = (
    ("time", 12),
    ("workload", 36),
    ("call", 36),
    ("target/route", 24),
    ("decision", 22),
    ("status", 6),
    ("ms", 8),
    ("notes", None),
)

Printer = Callable[[Iterable[Found]], None]


def table_printer(console: Console, *, fixed: bool, dated: bool = False) -> Printer:
    """Prints rows under a header that is printed once.

    ``fixed`` columns line up with rows that are yet to come; others fit what is there. ``dated``
    shows the day with the time.
    """
    pending_header = True

    def show(found: Iterable[Found]) -> None:
        nonlocal pending_header
        table = _table(header=pending_header, fixed=fixed, dated=dated)
        for event in found:
            table.add_row(*_row(event, dated=dated))
        if table.row_count or pending_header:
            console.print(table)
            pending_header = False

    return show


def json_printer(write: Callable[[str], None]) -> Printer:
    """Prints a JSON object per line: ``event``, and ``outcome`` (``null`` where none is known)."""

    def show(found: Iterable[Found]) -> None:
        for event in found:
            line = {
                "cursor": event.cursor,
                "event": msgspec.Raw(event.raw),
                "outcome": msgspec.Raw(event.outcome) if event.outcome is not None else None,
            }
            write(msgspec.json.encode(line).decode())

    return show


def show_all(record: Tailed, filters: Mapping[str, str], show: Printer) -> int:
    """Print all that match, in order of arrival; the cursor of the last one."""
    cursor = 0
    for found in record.every(filters):
        show(found)
        cursor = found[-1].cursor if found else cursor
    if not cursor:
        show([])
    return cursor


def follow(
    record: Tailed,
    filters: Mapping[str, str],
    cursor: int,
    show: Printer,
    *,
    clock: Callable[[], float] = time.time,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Print what arrives behind ``cursor``, in order, until interrupted."""
    while True:
        found = record.after(filters, cursor, _PAGE)
        ready = settled(found, clock())
        if ready:
            show(ready)
            cursor = ready[-1].cursor
        if len(ready) < _PAGE:
            sleep(_POLL)


def settled(found: list[Found], now: float) -> list[Found]:
    """The longest beginning of ``found`` that needs no more waiting for outcomes."""
    for index, event in enumerate(found):
        waits = event.outcome is None and _type(event.raw) == events.TYPE_DECISION
        if waits and now - event.received / 1000 < _PATIENCE:
            return found[:index]
    return found


def make_console(*, terminal_width: int | None = None) -> Console:
    """A console on standard output; ``terminal_width`` is for tests."""
    console = Console(highlight=False, width=terminal_width)
    if terminal_width is None and not console.is_terminal and "COLUMNS" not in console._environ:
        return Console(highlight=False, width=_PIPE_WIDTH)
    return console


def _table(*, header: bool, fixed: bool, dated: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", show_header=header)
    widths = dict(_COLUMNS) | ({"time": 23} if dated else {})
    for name, width in widths.items():
        justify: Literal["left", "right"] = "right" if name in {"status", "ms"} else "left"
        table.add_column(name, width=width if fixed else None, justify=justify, overflow="fold")
    return table


def _row(found: Found, *, dated: bool) -> list[Text]:
    event = _object(_decoded(found.raw))
    data = _object(event.get("data"))
    unmapped = _object(data.get("unmapped"))
    outcome = _object(_object(_decoded(found.outcome or b"{}")).get("data"))
    kind = event.get("type")
    is_call = kind in {events.TYPE_DECISION, events.TYPE_OUTCOME}
    answer = data if kind == events.TYPE_OUTCOME else outcome
    return [
        _cell(_text(event, "time")[0 if dated else 11 : 23].replace("T", " ")),
        _cell(_who(found, data)),
        _cell(_call(data) if is_call else _text(event, "type")),
        _cell(_where(data)),
        _decision(data, unmapped, is_call=is_call),
        _cell(_scalar(_object(answer.get("http_response")).get("code"))),
        _cell(_milliseconds(_object(answer.get("unmapped")).get("duration_us"))),
        _notes(found, kind, unmapped, _object(answer.get("unmapped"))),
    ]


def _who(found: Found, data: dict[str, Any]) -> str:
    actor = _object(data.get("actor"))
    workload, user = _text(actor, "app_uid"), _text(_object(actor.get("user")), "uid")
    if user and workload and user != workload:
        return f"{workload} for {user}"
    return workload or user or found.source.removeprefix(events.SOURCE_PREFIX)


def _call(data: dict[str, Any]) -> str:
    request = _object(data.get("http_request"))
    method = _text(request, "http_method") or _text(_object(data.get("api")), "operation")
    message = _object(_object(data.get("unmapped")).get("mcp"))
    parts = (
        method,
        _text(_object(request.get("url")), "path"),
        _text(message, "method"),
        _text(message, "tool"),
    )
    return " ".join(filter(None, parts))


def _where(data: dict[str, Any]) -> str:
    target = _text(_object(_object(data.get("api")).get("service")), "name")
    route = _text(_object(data.get("policy")), "uid")
    if target or route:
        return f"{target}/{route}"
    # Refused before there was a target: where it wanted to go.
    url = _object(_object(data.get("http_request")).get("url"))
    host, port = _text(url, "hostname"), url.get("port")
    return f"({host}:{port})" if host and type(port) is int else f"({host})" if host else ""


def _decision(data: dict[str, Any], unmapped: dict[str, Any], *, is_call: bool) -> Text:
    if not is_call:
        return Text("")
    code = _text(unmapped, "code")
    if data.get("action_id") == events.OCSF_ACTION_ALLOWED:
        return Text("allowed", style="green")
    if data.get("action_id") == events.OCSF_ACTION_DENIED:
        return Text(plain(f"denied {code}".strip()), style="red")
    return Text(plain(code))


def _notes(found: Found, kind: object, unmapped: dict[str, Any], answer: dict[str, Any]) -> Text:
    notes = Text()
    dropped = unmapped.get("dropped")
    if isinstance(dropped, list) and dropped:
        names = ", ".join(name for name in dropped if isinstance(name, str))
        notes.append(plain(f"dropped {names} "), style="yellow")
    if kind == events.TYPE_DECISION and found.outcome is None:
        notes.append("no outcome ", style="bold red")
    ended = _text(answer, "outcome")
    if ended and ended not in {"completed", "denied"}:
        notes.append(plain(" ".join(filter(None, (ended, _text(answer, "code"))))), style="red")
    if kind == events.TYPE_GAP:
        lost, reason = _scalar(unmapped.get("lost")), _text(unmapped, "reason")
        notes.append(plain(f"{lost} events lost: {reason}"), style="bold red")
    return notes


def _decoded(raw: bytes) -> Any:
    try:
        return msgspec.json.decode(raw)
    except msgspec.DecodeError:
        return {}  # a damaged event has an empty row; `audit verify` names it


def _type(raw: bytes) -> str:
    return _text(_object(_decoded(raw)), "type")


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(parent: dict[str, Any], name: str) -> str:
    value = parent.get(name)
    return value if isinstance(value, str) else ""


def _scalar(value: Any) -> str:
    return str(value) if isinstance(value, str | int | float) else ""


def _milliseconds(value: Any) -> str:
    return f"{value / 1000:.1f}" if isinstance(value, int | float) else ""


def _cell(text: str) -> Text:
    return Text(plain(text))

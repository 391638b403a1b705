"""Structured logs: one JSON object per line, fields from an allow-list, nothing else.

A log call names an event and passes fields by keyword. A field that is not on the list raises
at once (in tests and in production alike: it is a programming error), so that nobody logs a
header, a query or a token by passing along whatever is at hand.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Final, TextIO

import msgspec

FIELDS: Final = frozenset({
    "action", "address", "approval", "attempt", "audience", "boot", "bytes", "channel", "code",
    "config", "count", "error", "error_type", "events", "file", "grant", "hash", "instance",
    "issuer", "jti", "key", "kid", "layer", "line", "listener", "method", "path", "pid", "policy",
    "port", "program", "reason", "route", "seconds", "segment", "seq", "signal", "size", "status",
    "subject", "target", "url", "version", "workload",
})  # fmt: skip

_MAX_VALUE: Final = 512


class Log:
    """A named source of log lines. ``info``, ``warning``, ``error`` take an event and fields."""

    __slots__ = ("_logger",)

    def __init__(self, name: str) -> None:
        self._logger = logging.getLogger(f"valetkey.{name}")

    def info(self, event: str, **fields: Any) -> None:
        self._emit(logging.INFO, event, fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._emit(logging.WARNING, event, fields)

    def error(self, event: str, **fields: Any) -> None:
        self._emit(logging.ERROR, event, fields)

    def _emit(self, level: int, event: str, fields: dict[str, Any]) -> None:
        unknown = fields.keys() - FIELDS
        if unknown:
            raise ValueError(f"log fields not on the allow-list: {sorted(unknown)}")
        self._logger.log(level, event, extra={"fields": fields})


class _JsonFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
            + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        for name, value in getattr(record, "fields", {}).items():
            line[name] = value if isinstance(value, int | float | bool) else str(value)[:_MAX_VALUE]
        if record.exc_info and record.exc_info[0]:
            # The type and place only: exception texts of libraries can carry what they parsed.
            line["error_type"] = record.exc_info[0].__name__
            line["line"] = place_of(record.exc_info[1])
        return msgspec.json.encode(line).decode()


def place_of(error: BaseException | None) -> str:
    """``file:line`` where an exception was raised: what a log may say of it besides its type."""
    trace = error.__traceback__ if error is not None else None
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""


def configure(level: str = "info", stream: TextIO | None = None) -> None:
    """Send all logs of the process through the JSON formatter. Called once, by a ``__main__``."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(_JsonFormatter())
    logging.basicConfig(handlers=[handler], level=level.upper(), force=True)
    # aiohttp's access log repeats request lines (queries included); our own events replace it.
    logging.getLogger("aiohttp.access").disabled = True

"""Logs: one JSON object per line, and no field that is not on the list."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from valetkey.contracts import logs
from valetkey.contracts.logs import Log


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    access = logging.getLogger("aiohttp.access")
    disabled = access.disabled
    out = io.StringIO()
    logs.configure("info", out)
    yield out
    root.handlers[:], root.level = handlers, level
    access.disabled = disabled


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_a_line_is_one_object(stream: io.StringIO) -> None:
    Log("broker").info("listening", port=7080, url="http://x\n", seconds=0.5)
    (line,) = lines(stream)
    assert str(line.pop("time")).endswith("Z")
    assert line == {
        "level": "info",
        "logger": "valetkey.broker",
        "event": "listening",
        "port": 7080,
        "url": "http://x\n",
        "seconds": 0.5,
    }


@pytest.mark.parametrize("field", ["authorization", "token", "headers", "query", "body", "msg"])
def test_a_field_off_the_list_raises(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        Log("broker").info("listening", **{field: "x"})
    assert field not in logs.FIELDS


def test_a_long_value_is_cut(stream: io.StringIO) -> None:
    Log("x").warning("refused", reason="r" * 5000)
    assert lines(stream)[0]["reason"] == "r" * 512


def test_an_exception_shows_type_and_place_but_not_its_text(stream: io.StringIO) -> None:
    try:
        int("eyJhbGciOi")  # the message quotes what was parsed
    except ValueError:
        logging.getLogger("aiohttp.server").exception("failed")
    (line,) = lines(stream)
    assert line["error_type"] == "ValueError"
    assert "test_logs.py:" in str(line["line"])
    assert "eyJ" not in stream.getvalue()


def test_levels(stream: io.StringIO) -> None:
    logging.getLogger("valetkey.x").debug("unseen")
    Log("x").error("broken")
    assert [line["level"] for line in lines(stream)] == ["error"]


def test_request_lines_with_queries_are_not_logged(stream: io.StringIO) -> None:
    logging.getLogger("aiohttp.access").info("GET /?token=x")
    assert stream.getvalue() == ""

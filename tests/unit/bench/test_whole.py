"""Only the whole benchmark replaces the published results."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from bench.__main__ import PARTS, parse
from bench.whole import ROUNDS, SECONDS, is_whole

PAGE = Path(__file__).parents[3] / "docs/explanation/performance.md"


@pytest.mark.parametrize(
    "arguments", [[], ["--rounds", str(ROUNDS)], ["--seconds", "4"], ["--output", "elsewhere"]]
)
def test_everything_is_the_whole(arguments: list[str]) -> None:
    assert is_whole(parse(arguments), PARTS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--quick"],
        ["--quick", "--rounds", "4", "--seconds", "4"],
        ["--rounds", "2"],
        ["--rounds", "8"],
        ["--seconds", "2"],
        ["--rounds", "2", "--seconds", "2"],
        ["--rows", "valetkey"],
        ["--parts", "throughput"],
    ],
)
def test_anything_else_is_a_trial(arguments: list[str]) -> None:
    assert not is_whole(parse(arguments), PARTS)


def test_the_page_says_what_the_whole_is() -> None:
    assert (ROUNDS, SECONDS) == (4, 4)
    assert re.search("four rounds of four seconds", PAGE.read_text())


def test_the_page_s_commands_run_in_the_benchmark_s_environment() -> None:
    commands = re.findall(r"^    (\S*python) -m bench", PAGE.read_text(), re.MULTILINE)
    assert commands
    assert set(commands) == {".venv-bench/bin/python"}

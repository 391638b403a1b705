"""Options of the crash tests: ``pytest tests/e2e/test_crash.py --kills 50``."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from tests.integration.broker_support import World
from tests.support.ports import free_url
from tests.support.postgres import Postgres

_KILLS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=_KILLS, help="How often a crash test kills its program."
    )


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often the program is killed; the option is unknown where all tests are collected."""
    return int(request.config.getoption("kills", _KILLS))


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    """What a broker process needs to be killed and started again at one place, on each database."""
    made = World(tmp_path / "world", free_url(), clock=time.time)  # type: ignore[arg-type]
    made.overrides |= {"bind": made.url.removeprefix("http://"), "log_level": "info"}
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        made.overrides["database"] = postgres.database()
    return made

"""Options of the crash tests: ``pytest tests/e2e/test_crash.py --kills 50``."""

from __future__ import annotations

import pytest

_KILLS = 5


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=_KILLS, help="How often a crash test kills its program."
    )


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> int:
    """How often the program is killed; the option is unknown where all tests are collected."""
    return int(request.config.getoption("kills", _KILLS))

"""One control plane per file of tests; what was measured is said at the end."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.kubernetes import Cluster

pytest.register_assert_rewrite("tests.cluster.expected")

FIGURES: list[str] = []


@pytest.fixture(scope="module")
def cluster(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """Its parameter, if there is one: more admission plugins."""
    directory = Path(tmp_path_factory.mktemp("cluster")) / "control-plane"
    cluster = Cluster(directory, plugins=getattr(request, "param", ())).start()
    yield cluster
    cluster.stop()


@pytest.fixture
def figures() -> list[str]:
    """Lines for the end of the run."""
    return FIGURES


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if FIGURES:
        terminalreporter.section("measured")
        for line in FIGURES:
            terminalreporter.line(line)

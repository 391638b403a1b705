"""Fixtures of the wire tests: one world and one upstream per session, sidecars per module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.recording import Recording
from tests.support.sidecar import World


@pytest.fixture(scope="session")
def wire_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A running broker and what it trusts."""
    world = World(tmp_path_factory.mktemp("wire"))
    world.start()
    yield world
    world.broker.kill()


@pytest.fixture(scope="session")
def session_upstream() -> Iterator[Recording]:
    with Recording() as recording:
        yield recording


@pytest.fixture
def upstream(session_upstream: Recording) -> Iterator[Recording]:
    """The upstream of all sidecars; what one test left undone fails that test."""
    session_upstream.forget()
    session_upstream.clear()
    yield session_upstream
    try:
        session_upstream.clear()
    finally:
        session_upstream.forget()

"""As many open files as the process may allow itself."""

from __future__ import annotations

import resource
from typing import Any

import pytest

from valetkey.contracts.descriptors import raise_limit


def test_the_soft_limit_is_raised_to_the_hard_one(monkeypatch: pytest.MonkeyPatch) -> None:
    set_to: list[Any] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (1024, 4096))
    monkeypatch.setattr(resource, "setrlimit", lambda _kind, pair: set_to.append(pair))
    assert raise_limit() == 4096
    assert set_to == [(4096, 4096)]


def test_a_limit_that_can_not_be_raised_is_used_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_kind: int, _pair: Any) -> None:
        raise ValueError("not allowed to raise maximum limit")

    monkeypatch.setattr(resource, "getrlimit", lambda _kind: (1024, resource.RLIM_INFINITY))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    assert raise_limit() == 1024


def test_unlimited_is_a_number_nevertheless(monkeypatch: pytest.MonkeyPatch) -> None:
    both = (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
    monkeypatch.setattr(resource, "getrlimit", lambda _kind: both)
    assert raise_limit() == 1 << 20

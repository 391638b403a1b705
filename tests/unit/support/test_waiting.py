"""Waiting says what it waited for, and what it saw instead."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.fleet import Fleet
from tests.support.waiting import until, until_sync


async def test_the_first_true_value_is_returned() -> None:
    values = iter([0, [], "", "there"])
    assert await until(lambda: next(values), "something") == "there"

    async def found() -> int:
        return 7

    assert await until(found, "a number") == 7
    values = iter([None, "there"])
    assert until_sync(lambda: next(values), "something") == "there"


async def test_it_says_what_it_waited_for_and_what_it_saw_last() -> None:
    counts = iter(range(0, -1000, -1))

    def none() -> list[int]:
        next(counts)
        return []

    with pytest.raises(
        AssertionError, match=r"^not within 0\.05 s: three calls \(last seen: \[\]\)$"
    ):
        await until(none, "three calls", 0.05)
    with pytest.raises(
        AssertionError, match=r"^not within 0\.05 s: three calls \(last seen: \[\]\)$"
    ):
        until_sync(none, "three calls", 0.05)


async def test_what_does_not_come_back_is_named_too() -> None:
    async def stuck() -> bool:
        await asyncio.Event().wait()
        return True

    with pytest.raises(AssertionError, match=r"an answer \(last seen: 'nothing yet'\)"):
        await until(stuck, "an answer", 0.05)


async def test_an_error_of_what_is_asked_is_its_own() -> None:
    async def late() -> bool:
        raise TimeoutError("of its own")

    with pytest.raises(TimeoutError, match="of its own"):
        await until(late, "an answer")


async def test_the_fleet_says_what_it_waited_for(tmp_path: Path) -> None:
    async def never() -> bool:
        return False

    with pytest.raises(AssertionError, match="everything delivered"):
        await Fleet(tmp_path).until(never, "everything delivered", seconds=0.05)

"""The one way to wait: for what is to hold, with a generous deadline, and never in silence.

A deadline here is for a machine that is slow, not a promise of the product; a test of a promise gives
the promised bound and says so.
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

SECONDS: Final = 30.0
_POLL: Final = 0.01
_SHOWN: Final = 500

T = TypeVar("T")


async def until(
    holds: Callable[[], Awaitable[T] | T], what: str, seconds: float = SECONDS, poll: float = _POLL
) -> T:
    """The first true value of ``holds``, asked again and again.

    Raises `AssertionError` after ``seconds``, with ``what`` was waited for and the last value seen,
    also when ``holds`` itself does not come back.
    """
    seen: Any = "nothing yet"
    try:
        async with asyncio.timeout(seconds) as limit:
            while True:
                value = holds()
                seen = await value if inspect.isawaitable(value) else value
                if seen:
                    return seen
                await asyncio.sleep(poll)
    except TimeoutError:
        if not limit.expired():
            raise  # not ours
        raise AssertionError(_message(what, seconds, seen)) from None


def until_sync(
    holds: Callable[[], T], what: str, seconds: float = SECONDS, poll: float = _POLL
) -> T:
    """`until` for tests without an event loop."""
    deadline = time.monotonic() + seconds
    while not (seen := holds()):
        if time.monotonic() > deadline:
            raise AssertionError(_message(what, seconds, seen))
        time.sleep(poll)
    return seen


async def turns(count: int = 50) -> None:
    """Let the loop turn so often: whatever needs no more than that, and waits for nothing, is done.

    To sleep for a moment is not the same: a machine that is busy may take that moment at once.
    """
    for _ in range(count):
        await asyncio.sleep(0)


def _message(what: str, seconds: float, seen: object) -> str:
    return f"not within {seconds:g} s: {what} (last seen: {repr(seen)[:_SHOWN]})"

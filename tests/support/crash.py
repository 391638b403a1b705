"""kill -9 of a program under load, again and again, at moments that are never the same.

What the clients were told stands, and what they were not told is neither done nor undone: each test
remembers what was acknowledged, and looks for it after the last start.
"""

from __future__ import annotations

import asyncio
import random
import time
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Final

import aiohttp

from tests.support.procs import Program
from tests.support.waiting import until

_PATIENCE: Final = 60.0
_POLL: Final = 0.005


class Load(ABC):
    """Clients that never pause."""

    def __init__(self) -> None:
        self._working: list[asyncio.Task[None]] = []
        self._stopped = False

    @property
    @abstractmethod
    def acknowledged(self) -> int:
        """How much was, so far."""

    @abstractmethod
    async def step(self) -> None:
        """What one client does next; over when the program is killed meanwhile."""

    @asynccontextmanager
    async def clients(self, count: int) -> AsyncIterator[None]:
        """So many of them, until the end of the block. What one of them raises ends the test."""
        self._working = [asyncio.create_task(self._client()) for _ in range(count)]
        try:
            yield
        finally:
            self._stopped = True
            await asyncio.gather(*self._working)

    async def more(self, count: int) -> None:
        """Wait until so much more was acknowledged."""
        wanted = self.acknowledged + count

        def there() -> bool:
            for task in self._working:
                if task.done():
                    task.result()
            return self.acknowledged >= wanted

        await until(there, f"{count} more acknowledged", _PATIENCE, _POLL)

    async def _client(self) -> None:
        while not self._stopped:
            try:
                await self.step()
            except (aiohttp.ClientError, ConnectionError):
                await asyncio.sleep(0.01)  # it is being started again


async def kill_again_and_again(
    program: Program,
    load: Load,
    kills: int,
    *,
    after: tuple[int, int],
    within: float,
    ready: Callable[[], Awaitable[Any]],
) -> list[float]:
    """Each time something between ``after`` more was acknowledged, and ``within`` seconds of that.

    At the end it runs, and as much as the least of ``after`` was acknowledged once more. Gives how
    many seconds it took from each start until it was ``ready``.
    """
    took: list[float] = []
    for _ in range(kills):
        await load.more(random.randint(*after))
        await asyncio.sleep(random.uniform(0, within))  # any moment, not always the same one
        program.kill()
        begun = time.monotonic()
        program.start()
        await ready()
        took.append(time.monotonic() - begun)
    await load.more(after[0])
    return took

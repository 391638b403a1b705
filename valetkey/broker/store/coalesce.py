"""Many questions for one row each, asked as one; many rows to store, stored as one.

When a replica ends, all its sidecars come to another one at the same moment, each with a stream
that this one has to look up, and a key to note. One query for all of them costs about as much as
one for one, and one commit as much as another.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")

Ask = Callable[[list[K]], Awaitable[Mapping[K, V]]]


class Coalesced(Generic[K, V]):
    """``ask`` looks many keys up. One query runs at a time; who comes meanwhile shares the next.

    So an answer is never older than its question, as if each had asked for itself.
    """

    def __init__(self, ask: Ask[K, V]) -> None:
        self._ask = ask
        self._waiting: dict[K, asyncio.Future[V | None]] = {}
        self._asking: asyncio.Task[None] | None = None

    async def find(self, key: K) -> V | None:
        """The row, or ``None`` where there is none. Raises what ``ask`` raises."""
        answer = self._waiting.get(key)
        if answer is None:
            answer = self._waiting[key] = asyncio.get_running_loop().create_future()
            answer.add_done_callback(_seen)
        if self._asking is None:
            self._asking = asyncio.ensure_future(self._run())
        # Who leaves must not take along the answer of others who wait for the same key.
        return await asyncio.shield(answer)

    async def _run(self) -> None:
        waiting: dict[K, asyncio.Future[V | None]] = {}
        try:
            while self._waiting:
                waiting, self._waiting = self._waiting, {}
                try:
                    found = await self._ask(list(waiting))
                except Exception as error:  # noqa: BLE001 - it is those who asked that it concerns
                    for answer in waiting.values():
                        answer.set_exception(error)
                else:
                    for key, answer in waiting.items():
                        answer.set_result(found.get(key))
        finally:
            self._asking = None
            for answer in (*waiting.values(), *self._waiting.values()):
                answer.cancel()  # only if this was cancelled: the program ends
            self._waiting = {}


def _seen(answer: asyncio.Future[V | None]) -> None:
    """Mark the outcome as retrieved: whoever asked may have left."""
    if not answer.cancelled():
        answer.exception()

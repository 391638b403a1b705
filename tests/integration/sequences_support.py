"""Sequences of calls that Hypothesis makes to one real broker."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.integration.broker_support import Clock, Served, World, serving
from tests.support.ports import free_url

T = TypeVar("T")
_FAST = {"rate": 1_000_000, "burst": 1_000_000}


class Lab:
    """A broker that all sequences share, each with names of its own, and that can be restarted."""

    def __init__(self, runner: asyncio.Runner, world: World) -> None:
        self.world = world
        self.broker: Served
        self.numbers = itertools.count()
        self._runner = runner
        self._stack = AsyncExitStack()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(work)

    def start(self) -> None:
        self.broker = self.run(self._stack.enter_async_context(serving(self.world)))

    def stop(self) -> None:
        self.run(self._stack.aclose())


class Machine(RuleBasedStateMachine):
    """What is made in a sequence, and an account of what it must lead to."""

    lab: ClassVar[Lab]

    @property
    def world(self) -> World:
        return self.lab.world

    @property
    def now(self) -> float:
        return self.world.clock()


def play(machine: type[Machine], directory: Path, *, examples: int = 15, **overrides: Any) -> None:
    """Make sequences of the machine's rules, with a broker in ``directory``.

    ``overrides`` are settings of the broker.
    """
    limited = ("admin", "exchanges", "introspections", "revocations")
    overrides["limits"] = dict.fromkeys(limited, _FAST)
    world = World(directory, free_url(), Clock(float(int(time.time()))), overrides=overrides)
    with asyncio.Runner() as runner:
        machine.lab = Lab(runner, world)
        machine.lab.start()
        try:
            run_state_machine_as_test(  # type: ignore[no-untyped-call]
                machine,
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=25,
                    # A failure is told at once: to make it shorter takes minutes over HTTP.
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            machine.lab.stop()

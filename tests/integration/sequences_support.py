"""Sequences of calls that Hypothesis makes to one real broker."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Coroutine
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test

from tests.integration.broker_support import Clock, Served, World, serving
from tests.support.ports import free_url

T = TypeVar("T")
_FAST = {"rate": 1_000_000, "burst": 1_000_000}


@dataclass
class Lab:
    """A broker that all sequences share, each with names of its own."""

    runner: asyncio.Runner
    broker: Served
    numbers: itertools.count[int] = field(default_factory=itertools.count)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(work)


class Machine(RuleBasedStateMachine):
    """What is made in a sequence, and an account of what it must lead to."""

    lab: ClassVar[Lab]

    @property
    def world(self) -> World:
        return self.lab.broker.world

    @property
    def now(self) -> float:
        return self.world.clock()


def play(machine: type[Machine], directory: Path) -> None:
    """Make sequences of the machine's rules, with a broker in ``directory``."""
    world = World(directory, free_url(), Clock(float(int(time.time()))))
    limited = ("admin", "exchanges", "introspections", "revocations")
    world.overrides["limits"] = dict.fromkeys(limited, _FAST)
    with asyncio.Runner() as runner:
        stack = AsyncExitStack()
        broker = runner.run(stack.enter_async_context(serving(world)))
        try:
            machine.lab = Lab(runner, broker)
            run_state_machine_as_test(  # type: ignore[no-untyped-call]
                machine,
                settings=settings(
                    max_examples=15,
                    stateful_step_count=25,
                    # A failure is told at once: to make it shorter takes minutes over HTTP.
                    phases=[Phase.generate],
                    suppress_health_check=list(HealthCheck),
                ),
            )
        finally:
            runner.run(stack.aclose())

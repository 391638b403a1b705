"""``python -m tests.fuzz``: new inputs for as long as it is told to; what came of them at the end.

Exit status 1 where two readers disagreed: the input is printed, as short as it could be made.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.answers import STARTS, answers
from tests.fuzz.datapath import ENTRIES, DataPath
from tests.fuzz.nginx import NGINX, Nginx
from tests.fuzz.properties import AnswerTally, Tally, check_answers, check_stream
from tests.fuzz.readers import Reader
from tests.fuzz.requests import cuts, streams

_ROUND = 1000


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default 5)")
    parser.add_argument("--seed", type=int, help="where to begin (default: somewhere)")
    options = parser.parse_args(arguments)
    first = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    until = time.monotonic() + 60 * options.minutes
    requests, given_answers = Tally(), AnswerTally()
    print(f"seed {first}; {'with' if NGINX else 'without'} nginx", flush=True)
    begun = time.monotonic()
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(DataPath())
        more: dict[str, Reader] = {}
        if NGINX is not None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            nginx = stack.enter_context(Nginx(Path(directory)))
            more["nginx"] = Reader(nginx.read, nginx.ignoring)
        number = first
        while time.monotonic() < until:
            _streams(number, until, path, requests, more)
            _answers(number, until, path, given_answers)
            number += 1
            _report(time.monotonic() - begun, requests, given_answers)
    return 0


def _limits(number: int) -> settings:
    return settings(
        max_examples=_ROUND if number % 2 else _ROUND // 2,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def _streams(
    number: int, until: float, path: DataPath, tally: Tally, more: dict[str, Reader]
) -> None:
    @seed(number)
    @_limits(1)
    @given(st.sampled_from(ENTRIES).flatmap(lambda e: st.tuples(st.just(e), streams(e))), cuts())
    def run(stream: tuple[str, bytes], marks: list[int]) -> None:
        entry, raw = stream
        if time.monotonic() < until:
            check_stream(path, raw, marks, entry, tally, more)

    run()


def _answers(number: int, until: float, path: DataPath, tally: AnswerTally) -> None:
    @seed(number)
    @_limits(2)
    @given(st.sampled_from(STARTS), answers(), cuts())
    def run(start: str, answer: tuple[bytes, bool], marks: list[int]) -> None:
        if time.monotonic() < until:
            check_answers(path, start, *answer, marks, tally)

    run()


def _report(seconds: float, requests: Tally, given_answers: AnswerTally) -> None:
    refused = ", ".join(f"{code} {count}" for code, count in requests.refused.most_common())
    print(
        f"{seconds:.0f} s: {requests.inputs} inputs in {requests.plays} plays: of "
        f"{requests.forwarded} something went upstream ({requests.requests} requests in all), "
        f"{sum(requests.refused.values())} were refused, {requests.waiting} never became whole\n"
        f"  refused: {refused}\n"
        f"  {given_answers.inputs} answers in {given_answers.plays} plays: {given_answers.passed} "
        f"passed on, {given_answers.cut} broken off, {given_answers.refused} refused, "
        f"{given_answers.waiting} never became whole",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())

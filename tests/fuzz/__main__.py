"""``python -m tests.fuzz``: new inputs for as long as it is told to; what came of them at the end.

Exit status 1 where two readers disagreed: the input is printed, as short as it could be made, and
the seed of its round. The clock is looked at between rounds only: an input that means nothing any
more once the time is up can't be made shorter, and looks as if it came and went.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st

from tests.fuzz.answers import STARTS, answers
from tests.fuzz.datapath import ENTRIES, DataPath
from tests.fuzz.nginx import NGINX, Nginx
from tests.fuzz.properties import AnswerTally, Tally, check_answers, check_stream
from tests.fuzz.readers import Reader
from tests.fuzz.requests import cuts, streams

STREAMS_PER_ROUND: Final = 250
ANSWERS_PER_ROUND: Final = 125
_REPORT_EVERY: Final = 15.0
"""Seconds."""


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long (default 5)")
    parser.add_argument("--seed", type=int, help="where to begin (default: somewhere)")
    options = parser.parse_args(arguments)
    number = options.seed if options.seed is not None else random.SystemRandom().getrandbits(32)
    requests, given_answers = Tally(), AnswerTally()
    print(f"seed {number}; {'with' if NGINX else 'without'} nginx", flush=True)
    with contextlib.ExitStack() as stack:
        path = stack.enter_context(DataPath())
        more: dict[str, Reader] = {}
        if NGINX is not None:
            directory = stack.enter_context(tempfile.TemporaryDirectory())
            nginx = stack.enter_context(Nginx(Path(directory)))
            more["nginx"] = Reader(nginx.read, nginx.ignoring)
        begun = reported = time.monotonic()
        while (now := time.monotonic()) < begun + 60 * options.minutes:
            if now >= reported + _REPORT_EVERY:
                _report(now - begun, requests, given_answers)
                reported = now
            try:
                _streams(number, path, requests, more)
                _answers(number, path, given_answers)
            except BaseException:
                print(f"in the round of --seed {number}", file=sys.stderr, flush=True)
                raise
            number += 1
        _report(time.monotonic() - begun, requests, given_answers)
    return 0


def _limits(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )


def _streams(number: int, path: DataPath, tally: Tally, more: dict[str, Reader]) -> None:
    @seed(number)
    @_limits(STREAMS_PER_ROUND)
    @given(st.sampled_from(ENTRIES).flatmap(lambda e: st.tuples(st.just(e), streams(e))), cuts())
    def run(stream: tuple[str, bytes], marks: list[int]) -> None:
        entry, raw = stream
        check_stream(path, raw, marks, entry, tally, more)

    run()


def _answers(number: int, path: DataPath, tally: AnswerTally) -> None:
    @seed(number)
    @_limits(ANSWERS_PER_ROUND)
    @given(st.sampled_from(STARTS), answers(), cuts())
    def run(start: str, answer: tuple[bytes, bool], marks: list[int]) -> None:
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

"""Whether a run is the whole benchmark, whose results are published."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Final

ROUNDS: Final = 4
SECONDS: Final = 4.0


def is_whole(options: argparse.Namespace, parts: Collection[str]) -> bool:
    """Every part and row, in as many rounds of as many seconds as the documentation says."""
    return bool(
        not options.quick
        and set(options.parts) == set(parts)
        and options.rows is None
        and options.rounds == ROUNDS
        and options.seconds == SECONDS
    )

"""Which of several levels counts."""

from __future__ import annotations

import itertools

from tests.unit.broker.core.cedar_support import BOT, NOW, OTHER, SCOPE, TICKETS, compiled
from valetkey.broker.core.permission import Asking, Permission, permission
from valetkey.broker.core.risk import Risk, highest, rank

LEVELS: tuple[Risk, ...] = ("unrated", "low", "medium", "high")


def test_the_highest_counts() -> None:
    assert highest() == "unrated"
    for one, other in itertools.product(LEVELS, repeat=2):
        assert highest(one, other) == LEVELS[max(LEVELS.index(one), LEVELS.index(other))]
        assert (rank(one) < rank(other)) == (LEVELS.index(one) < LEVELS.index(other))


def test_policies_see_the_highest_of_target_and_parties() -> None:
    """`TICKETS` is high by itself, `OTHER` is not rated."""
    for target, own in ((TICKETS, "high"), (OTHER, "unrated")):
        for level in LEVELS:
            seen = []
            for expected in LEVELS:
                text = f'@id("a") permit {SCOPE} when {{ context.risk == "{expected}" }};'
                asking = Asking(target.name, BOT, None, ("s",), (), NOW, risk=level)
                if isinstance(permission(compiled(text), asking), Permission):
                    seen.append(expected)
            assert seen == [highest(own, level)]

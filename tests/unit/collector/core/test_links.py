from __future__ import annotations

import pytest

from valetkey.collector.core.links import NOT_GENESIS, NOT_LINKED, Break, Link, check, neighbours
from valetkey.contracts.events import GENESIS

ONE, TWO, THREE = Link(1, "h1", GENESIS), Link(2, "h2", "h1"), Link(3, "h3", "h2")
TABLE = {
    "a whole chain": ([ONE, TWO, THREE], [], []),
    "continues what is stored": ([TWO], [ONE], []),
    "fills a hole": ([TWO], [ONE, THREE], []),
    "behind a hole nothing can be said": ([THREE], [], []),
    "another beginning": ([Link(1, "h1", "x")], [], [Break(1, NOT_GENESIS)]),
    "breaks within": ([ONE, Link(2, "h2", "x")], [], [Break(2, NOT_LINKED)]),
    "breaks with what is before": ([Link(2, "h2", "x")], [ONE], [Break(2, NOT_LINKED)]),
    "breaks with what is behind": ([Link(2, "x", "h1")], [ONE, THREE], [Break(3, NOT_LINKED)]),
    "breaks on both sides": (
        [Link(2, "x", "y")],
        [ONE, THREE],
        [Break(2, NOT_LINKED), Break(3, NOT_LINKED)],
    ),
}


@pytest.mark.parametrize(("new", "stored", "breaks"), TABLE.values(), ids=TABLE)
def test_breaks(new, stored, breaks):
    assert check(new, {link.seq: link for link in stored}) == breaks


@pytest.mark.parametrize(
    ("sequences", "expected"),
    [([1], [2]), ([5], [4, 6]), ([5, 6, 7], [4, 8]), ([1, 3], [2, 4]), ([], [])],
)
def test_neighbours(sequences, expected):
    assert neighbours(sequences) == expected

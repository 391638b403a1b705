"""How the story is told: each step a heading, each check a line with expected and seen."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that a step should show, and what it did show."""

    what: str
    expected: str
    seen: str
    holds: bool


class Checks:
    """The checks of one step, in the order in which they were made."""

    def __init__(self) -> None:
        self.made: list[Check] = []

    def equal(self, what: str, expected: object, seen: object) -> None:
        """The two are equal."""
        self.made.append(Check(what, _shown(expected), _shown(seen), expected == seen))

    def true(self, what: str, expected: str, seen: object, *, holds: bool) -> None:
        """It holds; ``expected`` says it in words."""
        self.made.append(Check(what, expected, _shown(seen), holds))

    @property
    def hold(self) -> bool:
        return bool(self.made) and all(check.holds for check in self.made)


class Screen:
    """Prints to the terminal, or plainly to a pipe."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._number = 0

    def title(self, text: str) -> None:
        self.console.print(Text(text, style="bold"))

    def step(self, title: str, checks: Checks) -> None:
        self._number += 1
        self.console.print()
        self.console.print(Text.assemble(_mark(checks.hold), f" {self._number}. ", (title, "bold")))
        table = Table(
            box=None, show_header=self._number == 1, header_style="dim", padding=(0, 2, 0, 0)
        )
        for name, least in (("", 4), ("", 34), ("expected", 24), ("seen", 24)):
            table.add_column(name, min_width=least, overflow="fold", justify="left")
        for check in checks.made:
            style = "" if check.holds else "red"
            table.add_row(
                Text.assemble("  ", _mark(check.holds)),
                Text(check.what),
                Text(check.expected, style="dim"),
                Text(check.seen, style=style),
            )
        self.console.print(table)

    def line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=True)


def _mark(holds: bool) -> tuple[str, str]:
    return ("✓", "green") if holds else ("✗", "bold red")


def _shown(value: object) -> str:
    if value is None or value == "":
        return "nothing"
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value)) or "nothing"
    return str(value)

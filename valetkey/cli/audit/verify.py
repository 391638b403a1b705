"""``valetkey audit verify``: reads everything, believes the bytes only, and says what holds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from valetkey.cli.audit.record import Record, RecordDamaged
from valetkey.collector.core.verification import BootReport, Verification
from valetkey.contracts import events
from valetkey.contracts.plain_text import plain

_MOST_PROBLEMS: Final = 50


@dataclass(frozen=True, slots=True)
class Verdict:
    """What was verified. ``damage`` and ``notes`` are about the store as a whole."""

    boots: list[BootReport]
    damage: list[str]
    notes: list[str]

    @property
    def holds(self) -> bool:
        return not self.damage and all(boot.holds for boot in self.boots)


def verify_record(record: Record) -> Verdict:
    """Verify a database or a collector's record. Raises `RecordUnavailable`."""
    verification = Verification()
    damage: list[str] = []
    notes: list[str] = []
    try:
        damage += record.damage()
        for entry in record.boots():
            verifier = verification.boot(entry.source, entry.boot, known=entry.known)
            for event in record.chain(entry):
                verifier.feed(event)
        refused = record.conflicts()
        if refused:
            notes.append(f"{refused} times other bytes were offered for an event on record")
    except RecordDamaged as error:
        damage.append(str(error))
    return Verdict(verification.finish(), damage, notes)


def document(verdict: Verdict) -> dict[str, Any]:
    """What was found, as plain data for programs."""
    return {
        "holds": verdict.holds,
        "boots": [
            {
                "source": boot.source,
                "boot": boot.boot,
                "events": boot.count,
                "first": boot.first,
                "last": boot.head.seq,
                "last_hash": boot.head.hash,
                "lost": boot.lost,
                "missing": sum(len(gap) for gap in boot.missing),
                "no_outcome": boot.unanswered,
                "ended_by": boot.ended_by,
                "holds": boot.holds,
                "problems": [
                    {"seq": problem.seq, "reason": problem.reason} for problem in boot.problems
                ],
            }
            for boot in verdict.boots
        ],
        "damage": verdict.damage,
        "notes": verdict.notes,
    }


def show(verdict: Verdict, console: Console) -> None:
    """The boots as a table, then everything that does not hold, then the verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("source", "boot"):
        table.add_column(name, overflow="fold")
    for name in ("events", "first", "last", "lost", "missing", "no outcome"):
        table.add_column(name, justify="right")
    table.add_column("end stated by")
    table.add_column("verdict")
    for boot in verdict.boots:
        table.add_row(*_row(boot))
    console.print(table)
    for line in _problems(verdict):
        console.print(Text(line, style="red"), soft_wrap=True)
    for note in verdict.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    console.print(_summary(verdict), soft_wrap=True)


def _row(boot: BootReport) -> list[Text]:
    missing = sum(len(gap) for gap in boot.missing)
    cells = (
        boot.source.removeprefix(events.SOURCE_PREFIX),
        boot.boot,
        str(boot.count),
        str(boot.first),
        str(boot.head.seq),
        str(boot.lost),
        str(missing),
        str(boot.unanswered),
        boot.ended_by or "-",
    )
    verdict = Text("holds", style="green") if boot.holds else Text("BROKEN", style="bold red")
    return [*(Text(plain(cell)) for cell in cells), verdict]


def _problems(verdict: Verdict) -> list[str]:
    lines = [plain(damage) for damage in verdict.damage]
    for boot in verdict.boots:
        for problem in boot.problems:
            place = f"{problem.source} boot {problem.boot}"
            if problem.seq:
                place += f" event {problem.seq}"
            lines.append(plain(f"{place}: {problem.reason}"))
    if len(lines) > _MOST_PROBLEMS:
        more = len(lines) - _MOST_PROBLEMS
        return [*lines[:_MOST_PROBLEMS], f"… and {more} more"]
    return lines


def _summary(verdict: Verdict) -> Text:
    count = sum(boot.count for boot in verdict.boots)
    lost = sum(boot.lost for boot in verdict.boots)
    what = f"{count} events of {len(verdict.boots)} boots"
    if not verdict.holds:
        return Text(f"the record does not hold ({what})", style="bold red")
    declared = f"; {lost} were declared lost by their sidecar" if lost else ""
    return Text(f"the record holds: {what}{declared}", style="bold green")

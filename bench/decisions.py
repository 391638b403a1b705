"""``python -m bench.decisions``: what grants of other workloads cost a decision.

One workload with a few grants of its own, exact and by pattern, among 10, 1,000 and 10,000 of other
workloads: exact ones, or patterns. Measured are `Policy.grant` (finding the grants and deciding on
them, without Cedar), putting one grant made by API among them, and compiling the file. Results go
to bench/results/decisions.md. Exit status 1 if a decision among 10,000 takes more than `AIM` times
as long as among 10.
"""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NamedTuple

from valetkey.broker.core.grants import (
    Call,
    Grant,
    Granted,
    GrantSettings,
    GrantsFile,
    Policy,
    Target,
)
from valetkey.contracts.oauth import HttpCallDetails
from valetkey.contracts.settings import convert

AIM: Final = 1.5
_RESULTS: Final = Path(__file__).parent / "results" / "decisions.md"
_COUNTS: Final = (10, 1_000, 10_000)
_ISSUER: Final = "https://idp.example"
_BOT: Final = "spiffe://acme.example/ns/agents/sa/bot"
_TARGET: Final = Target("tickets", "https://t.example", "https://t.example", "bearer", 120.0)
_ASKED: Final = Call.all_of(
    HttpCallDetails("t", ("l",), ("GET",), "r", "/api/tickets/7", exact=True)
)
_ROUNDS: Final = 25
_CALLS: Final = 500
_NOW: Final = 1_800_000_000.0


class Row(NamedTuple):
    """Microseconds, but ``compile_ms``."""

    others: int
    kind: str
    decision: float
    put: float
    compile_ms: float


def main() -> int:
    kinds = ("exact", "pattern")
    measured = measure([(count, kind) for kind in kinds for count in _COUNTS])
    text = report(measured)
    _RESULTS.write_text(text, encoding="utf-8")
    print(text)
    worst = max(_growth(measured, kind) for kind in kinds)
    return 0 if worst <= AIM else 1


def measure(among: list[tuple[int, str]]) -> list[Row]:
    """All of them in turn, round by round: what disturbs one disturbs the others too."""
    made = [_policy(others, kind) for others, kind in among]
    decisions: list[list[float]] = [[] for _ in made]
    puts: list[list[float]] = [[] for _ in made]
    for _ in range(_ROUNDS):
        for number, (policy, new, _) in enumerate(made):
            decisions[number].append(_each(lambda policy=policy: _decide(policy)))
            puts[number].append(_each(lambda policy=policy, new=new: policy.live.made.put(new)))
    return [
        Row(others, kind, min(decision), min(put), compiled)
        for (others, kind), decision, put, (_, _, compiled) in zip(
            among, decisions, puts, made, strict=True
        )
    ]


def _policy(others: int, kind: str) -> tuple[Policy, Grant, float]:
    """A policy, one grant more, and the milliseconds that compiling its file took."""
    file = GrantsFile(grants=(*_own(), *(_other(number, kind) for number in range(others))))
    began = time.process_time()
    policy = Policy.compile(file, [_TARGET], issuers=frozenset({_ISSUER}))
    compiled = (time.process_time() - began) * 1e3
    for number in range(others):  # as many again by API: both are looked through
        policy.live.made.put(policy.rules.compile(_other(others + number, kind)))
    return policy, policy.rules.compile(_other(2 * others, kind)), compiled


def _decide(policy: Policy) -> None:
    granted = policy.grant(
        _TARGET,
        issuer=_ISSUER,
        workload=_BOT,
        for_user=False,
        scopes=("tickets:read", "tickets:list"),
        calls=_ASKED,
        now=_NOW,
    )
    assert isinstance(granted, Granted)
    assert granted.grant_ids == ("own-0", "own-1")


def _each(work: Callable[[], None]) -> float:
    """Microseconds of CPU time a call."""
    began = time.process_time()
    for _ in range(_CALLS):
        work()
    return (time.process_time() - began) / _CALLS * 1e6


def _own() -> tuple[GrantSettings, ...]:
    condition = {"methods": ["GET", "HEAD"], "path": "/api/tickets/{id}"}
    workloads = (_BOT, "spiffe://acme.example/ns/*/sa/bot", "spiffe://acme.example/ns/agents/sa/*")
    scopes = (["tickets:read"], ["tickets:list"], ["tickets:write"])
    return tuple(
        _grant(f"own-{number}", workload, granted, conditions=[condition])
        for number, (workload, granted) in enumerate(zip(workloads, scopes, strict=True))
    )


def _other(number: int, kind: str) -> GrantSettings:
    name = f"spiffe://acme.example/ns/team-{number}/sa/bot"
    if kind == "pattern":
        name = f"spiffe://acme.example/ns/*/sa/bot-{number}"
    return _grant(f"other-{number}", name, ["tickets:read", "tickets:list"])


def _grant(name: str, workload: str, scopes: list[str], **more: Any) -> GrantSettings:
    document = {"id": name, "workload": workload, "issuer": _ISSUER, "target": "tickets"}
    return convert(GrantSettings, {**document, "scopes": scopes, **more})


def _growth(rows: list[Row], kind: str) -> float:
    of_kind = [row.decision for row in rows if row.kind == kind]
    return of_kind[-1] / of_kind[0]


def report(rows: list[Row]) -> str:
    """The page."""
    lines = [
        "# Decisions among grants of other workloads",
        "",
        f"Python {platform.python_version()}, one core. Written by `make decisions`.",
        "",
        "The same number again was made by API; a decision looks through both. It is on three",
        "grants of the workload's own, for two scopes and one exact call.",
        "",
        "| Grants of others | Kind | Decision | One grant more by API | Compiling the file |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.others:,} | {row.kind} | {row.decision:.1f} µs | {row.put:.1f} µs | "
        f"{row.compile_ms:.1f} ms |"
        for row in rows
    ]
    for kind in ("exact", "pattern"):
        lines += ["", f"Growth from 10 to 10,000, {kind}: {_growth(rows, kind):.2f}× (aim: {AIM}×)"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())

"""The report as tables for people, or as JSON for programs. Neither holds a token."""

from __future__ import annotations

from typing import Any, Final

from rich.console import Console
from rich.table import Table
from rich.text import Text

from valetkey.cli.doctor.clients import CLIENTS
from valetkey.cli.doctor.examine import Report
from valetkey.cli.doctor.outcome import Judged, Outcome
from valetkey.contracts.plain_text import plain

_WORDS: Final[dict[Outcome, str]] = {
    "through": "through the sidecar",
    "direct": "around the sidecar",
    "untrusted": "certificate not trusted",
    "refused": "refused by the proxy",
    "unreachable": "no proxy there",
    "elsewhere": "answered by something else",
    "timeout": "no answer in time",
    "failed": "failed",
}
_PIPE_WIDTH: Final = 200


def make_console() -> Console:
    """A console on standard output; a pipe gets room for whole rows."""
    console = Console(highlight=False)
    if not console.is_terminal and "COLUMNS" not in console._environ:
        return Console(highlight=False, width=_PIPE_WIDTH)
    return console


def show(report: Report, console: Console, *, clients: bool) -> None:
    """What was looked at, the live calls, the findings, the verdict."""
    console.print(_facts(report))
    if report.calls:
        console.print()
        console.print(_calls(report))
    if report.findings:
        console.print()
        _show_findings(report, console)
    if clients:
        console.print()
        console.print(_clients())
    console.print()
    console.print(_verdict(report), soft_wrap=True)


def as_json(report: Report) -> dict[str, Any]:
    """The report as plain data."""
    authority = report.authority
    return {
        "ok": report.is_good,
        "variables": report.variables.shown(),
        "listeners": [
            {
                "address": str(endpoint),
                "state": listener.state,
                "detail": listener.detail,
                "opens_tls": listener.opens_tls,
                "leaf_verifies": listener.leaf_verifies,
            }
            for endpoint, listener in report.listeners.items()
        ],
        "ca": authority
        and {
            "subject": authority.subject,
            "sha256": authority.fingerprint,
            "not_after": authority.ends.isoformat(),
        },
        "runtimes": [
            {"name": each.name, "executable": each.executable, "version": each.version}
            for each in report.runtimes
        ],
        "calls": [
            {
                "client": each.call.client,
                "url": each.call.url,
                "outcome": each.outcome,
                "detail": each.detail,
            }
            for each in report.calls
        ],
        "findings": [
            {
                "code": finding.kind.name,
                "level": finding.kind.level,
                "subject": finding.subject,
                "detail": finding.detail,
                "action": finding.action,
            }
            for finding in report.findings
        ],
        "clients": [
            {"name": each.name, "proxy": each.proxy, "trust": each.trust, "action": each.action}
            for each in CLIENTS
        ],
    }


def _table(*columns: str, title: str = "") -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    if title:
        table.title = Text(title, style="bold")
    for name in columns:
        table.add_column(name, overflow="fold")
    return table


def _facts(report: Report) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    shown = report.variables.shown()
    for name, value in shown.items():
        table.add_row(Text(name), _cell(value))
    if not shown:
        table.add_row(Text("proxy variables"), _cell("none"))
    for endpoint, listener in report.listeners.items():
        words: str = "a sidecar" if listener.state == "sidecar" else listener.state
        if listener.opens_tls:
            words += ", opens TLS"
        if listener.leaf_verifies:
            words += ", its certificate verifies"
        if listener.detail:
            words += f" ({listener.detail})"
        table.add_row(Text(str(endpoint)), _cell(words))
    if report.authority is not None:
        ca = report.authority
        words = f"{ca.subject}, SHA-256 {ca.fingerprint[:23]}…, until {ca.ends:%Y-%m-%d}"
        table.add_row(Text("interception CA"), _cell(words))
    for runtime in report.runtimes:
        table.add_row(Text(runtime.name), _cell(f"{runtime.version} {runtime.executable}"))
    return table


def _calls(report: Report) -> Table:
    table = _table("client", "URL", "call went", "seen")
    for each in report.calls:
        table.add_row(_cell(each.call.client), _cell(each.call.url), _outcome(each), _seen(each))
    return table


def _outcome(each: Judged) -> Text:
    return Text(_WORDS[each.outcome], style="green" if each.outcome == "through" else "red")


def _seen(each: Judged) -> Text:
    detail = each.detail
    return _cell(detail if len(detail) <= 100 else f"{detail[:99]}…")


def _show_findings(report: Report, console: Console) -> None:
    """Two lines each; what to do stands alone and unbroken, to be copied."""
    for finding in sorted(report.findings, key=lambda each: not each.is_wrong):
        mark, style = ("✗", "bold red") if finding.is_wrong else ("·", "yellow")
        line = Text.assemble(
            (f"{mark} {finding.kind.name}", style),
            plain(f"  {finding.subject}: {finding.detail}"),
        )
        console.print(line, soft_wrap=True)
        console.print(Text(plain(f"    {finding.action}"), style="bold"), soft_wrap=True)


def _clients() -> Table:
    table = _table("client", "proxy variables", "trusts", "what to do")
    for each in CLIENTS:
        table.add_row(_cell(each.name), _cell(each.proxy), _cell(each.trust), _cell(each.action))
    return table


def _verdict(report: Report) -> Text:
    wrong = sum(finding.is_wrong for finding in report.findings)
    through = sum(each.outcome == "through" for each in report.calls)
    calls = f"; {through} of {len(report.calls)} calls went through the sidecar"
    if not report.calls:
        calls = ""
    if wrong:
        noun = "thing is" if wrong == 1 else "things are"
        return Text(f"{wrong} {noun} wrong{calls}", style="bold red")
    return Text(f"nothing is wrong{calls}", style="bold green")


def _cell(text: str) -> Text:
    return Text(plain(text))

"""``valetkey windows``: deployment windows, for CI jobs that open them and people who look."""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

import click

from valetkey.cli.group import Commands
from valetkey.cli.remote import Remote, broker_options

_PATH: Final = "/v1/windows"
_COLUMNS: Final = ("id", "grant", "state", "opened_at", "deadline", "opened_by", "closed_by")
_LINES: Final = (
    "id", "grant", "state", "opened_at", "deadline", "opened_by", "opened_by_issuer", "closed_at",
    "closed_by", "closed_by_issuer", "closed_reason",
)  # fmt: skip


@click.group(cls=Commands)
def windows() -> None:
    """Deployment windows: open and close them (CI jobs), look at them (operators).

    Times are judged by the broker's clock.
    """


@windows.command("open")
@broker_options
@click.argument("grant")
@click.option("--duration", help="As in 10m; without, the grant's longest.")
def open_(remote: Remote, grant: str, duration: str | None) -> None:
    """Announce a deployment: open a window of the deployment GRANT.

    With the OIDC token of the CI job. Repeated with the same token it is the same window. --json
    prints the id that `valetkey windows close` takes.
    """
    document = {"grant": grant} | ({} if duration is None else {"duration": duration})
    remote.show(remote.post(_PATH, document), _LINES)


@windows.command()
@broker_options
@click.argument("window")
def close(remote: Remote, window: str) -> None:
    """Announce the deployment's end: close the WINDOW, as the identity that opened it."""
    remote.show(remote.post(f"{_PATH}/{quote(window, safe='')}/close", {}), _LINES)


@windows.command("list")
@broker_options
@click.option("--grant", help="Only those of this grant.")
@click.option("--state", type=click.Choice(("open", "closed")), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 100_000), help="At most so many.")
def list_(remote: Remote, grant: str | None, state: str | None, limit: int | None) -> None:
    """List windows."""
    remote.show(remote.pages(_PATH, limit=limit, grant=grant, state=state), _COLUMNS)


@windows.command()
@broker_options
@click.argument("window")
def show(remote: Remote, window: str) -> None:
    """Show a WINDOW: who opened it, until when, who closed it."""
    remote.show(remote.get(f"{_PATH}/{quote(window, safe='')}"), _LINES)


@windows.command()
@broker_options
@click.argument("window")
@click.option("--reason", required=True, help="Why: it goes on record.")
def revoke(remote: Remote, window: str, reason: str) -> None:
    """Close a WINDOW as an operator; the tokens that rest on it end too."""
    document = {"reason": reason}
    remote.show(remote.post(f"{_PATH}/{quote(window, safe='')}/revoke", document), _LINES)

"""``valetkey admin``: who you are to a broker, and what its administrators did."""

from __future__ import annotations

import sys

import click

from valetkey.cli.group import Commands
from valetkey.cli.remote import Remote, broker_options


@click.group(cls=Commands)
def admin() -> None:
    """Who you are to a broker, and what its administrators did."""


@admin.command()
@broker_options
def whoami(remote: Remote) -> None:
    """Show who the broker takes you for, and your roles."""
    remote.show(remote.get("/v1/admin/whoami"), ("issuer", "subject", "roles"))


@admin.command()
@broker_options
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="How many of the last.")
def actions(remote: Remote, limit: int) -> None:
    """List what administrators did, the newest first."""
    columns = ("seq", "at", "actor", "action", "subject", "reason")
    remote.show(remote.pages("/v1/admin/actions", limit=limit), columns)


@admin.command()
@broker_options
def verify(remote: Remote) -> None:
    """Verify the chain of administrators' actions; exit 0 only if it holds."""
    verdict = remote.get("/v1/admin/actions/verify")
    remote.show(verdict, ("count", "head", "broken_at"))
    sys.exit(0 if verdict["broken_at"] is None else 1)

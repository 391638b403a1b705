"""``valetkey doctor``: its options."""

from __future__ import annotations

import datetime as dt
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from valetkey.cli.fail import fail
from valetkey.contracts.errors import ConfigError

if TYPE_CHECKING:
    from valetkey.cli.doctor.where import Where

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
# Spelled out: importing what defines them would cost every command its start.
_RUNTIMES: Final = ("curl", "git", "python", "node", "java", "go")


@click.command()
@click.option(
    "--config",
    type=_FILE,
    envvar="VALETKEY_CONFIG",
    help="The sidecar's settings, if they are at hand. [env: VALETKEY_CONFIG]",
)
@click.option(
    "--proxy", "proxies", metavar="URL", multiple=True, help="The sidecar's forward listener."
)
@click.option("--admin", metavar="URL", help="Its admin port. [default: http://127.0.0.1:7071]")
@click.option("--no-admin", is_flag=True, help="Do not ask the admin port.")
@click.option(
    "--ca-file",
    # One that is not there is a finding, not a mistake in usage.
    type=click.Path(readable=False, path_type=Path),
    help="The interception CA's certificate (PEM).",
)
@click.option(
    "--url",
    "urls",
    metavar="URL",
    multiple=True,
    help="Call this instead of a host that the sidecar answers for itself. It may reach a target.",
)
@click.option(
    "--transparent",
    is_flag=True,
    help="Calls are led to the sidecar by the kernel: look for no proxy. Needs --url.",
)
@click.option(
    "--runtime",
    "names",
    type=click.Choice(_RUNTIMES),
    multiple=True,
    help="Only this one. [default: all that are on PATH]",
)
@click.option("--no-calls", is_flag=True, help="Judge settings only.")
@click.option(
    "--timeout", type=click.FloatRange(0.1, 300), default=10.0, help="Seconds for each call."
)
@click.option(
    "--clients/--no-clients",
    default=True,
    help="Show what common clients make of the variables. [default: shown]",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor(
    config: Path | None,
    proxies: tuple[str, ...],
    admin: str | None,
    no_admin: bool,
    ca_file: Path | None,
    urls: tuple[str, ...],
    transparent: bool,
    names: tuple[str, ...],
    no_calls: bool,
    timeout: float,
    clients: bool,
    as_json: bool,
) -> None:
    """Do calls from this environment go through the sidecar? Exit 0 only if nothing is wrong."""
    from valetkey.cli.doctor import examine, show, where

    if admin and no_admin:
        raise click.UsageError("--admin and --no-admin exclude each other")
    if transparent and (proxies or not urls):
        raise click.UsageError("--transparent needs --url, and no --proxy")
    try:
        plan = examine.Plan(
            where=_where(
                config, proxies, "" if no_admin else admin, ca_file, transparent=transparent
            ),
            urls=urls or examine.DEFAULT_URLS,
            names=names or _RUNTIMES,
            make_calls=not no_calls,
            timeout=timeout,
            transparent=transparent,
        )
        for url in plan.urls:
            where.host_of(url)
    except ConfigError as error:
        fail(str(error))
    report = examine.examine(plan, os.environ, dt.datetime.now(dt.UTC))
    if as_json:
        click.echo(json.dumps(show.as_json(report), indent=2, ensure_ascii=False))
    else:
        show.show(report, show.make_console(), clients=clients)
    sys.exit(0 if report.is_good else 1)


def _where(
    config: Path | None,
    proxies: tuple[str, ...],
    admin: str | None,
    ca_file: Path | None,
    *,
    transparent: bool,
) -> Where:
    """Settings, with what options say in place of them."""
    import dataclasses

    from valetkey.cli.doctor import where

    known = where.Where()
    if config:
        known = where.from_settings(config, os.environ, transparent=transparent)
    if proxies:
        listeners = where.listeners_said(proxies)
        known = dataclasses.replace(known, listeners=listeners, stated=True)
    if admin is not None:
        known = dataclasses.replace(known, admin=admin)
    if ca_file is not None:
        known = dataclasses.replace(known, ca_file=ca_file)
    return known

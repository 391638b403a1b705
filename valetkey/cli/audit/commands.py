"""``valetkey audit``: read and verify the record."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    from valetkey.cli.audit.record import Record

F = TypeVar("F", bound=Callable[..., Any])

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_DIRECTORY: Final = click.Path(exists=True, file_okay=False, path_type=Path)
_FILTERS: Final = ("type", "workload", "route", "target", "decision", "code", "source", "boot")


@click.group()
def audit() -> None:
    """Read and verify the record."""


def _where(command: F) -> F:
    """The options that say where the record is."""
    for option in (
        click.option("--ca-file", type=_FILE, help="CA certificates for the collector (PEM)."),
        click.option("--token-file", type=_FILE, help="File with a reader's token."),
        click.option("--collector", metavar="URL", help="A running collector."),
        click.option("--db", type=_FILE, help="A collector's database file."),
    ):
        command = option(command)
    return command


@audit.command()
@_where
@click.option("--limit", type=click.IntRange(1, 1000), default=50, help="How many of the last.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what arrives.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--type", help="Event type; default: decisions, each with its outcome.")
@click.option("--workload", help="Acting workload.")
@click.option("--route", help="Route id.")
@click.option("--target", help="Target name.")
@click.option("--decision", type=click.Choice(["allowed", "denied"]))
@click.option("--code", help="Decision code, such as route.no_match.")
@click.option("--source", help="Source, such as urn:valetkey:sidecar:NAME.")
@click.option("--boot", help="Boot of a source.")
def tail(
    db: Path | None,
    collector: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    limit: int,
    follow: bool,
    as_json: bool,
    **filters: str | None,
) -> None:
    """Show the last calls: decision and outcome in one row."""
    from valetkey.cli.audit import tail as view
    from valetkey.contracts.events import TYPE_DECISION

    wanted = {name: value for name in _FILTERS if (value := filters[name])}
    wanted.setdefault("type", TYPE_DECISION)
    show = (
        view.json_printer(click.echo)
        if as_json
        else view.table_printer(view.make_console(), fixed=follow)
    )
    with _open(db, collector, token_file, ca_file) as record:
        found = record.newest(wanted, limit)
        show(found)
        if not as_json:
            _warn(record)
        if follow:
            cursor = found[-1].cursor if found else 0
            with contextlib.suppress(KeyboardInterrupt):
                view.follow(record, wanted, cursor, show)


@audit.command()
@_where
@click.option("--spool", type=_DIRECTORY, help="A sidecar's spool directory.")
def verify(
    db: Path | None,
    collector: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    spool: Path | None,
) -> None:
    """Verify the record from its exact bytes; exit 0 only if everything holds."""
    from valetkey.cli.audit.record import RecordUnavailable
    from valetkey.cli.audit.tail import make_console
    from valetkey.cli.audit.verify import show, verify_record

    if spool is not None:
        if db or collector or token_file or ca_file:
            raise click.UsageError("--spool stands alone")
        from valetkey.cli.audit.spool import verify_spool

        try:
            verdict = verify_spool(spool)
        except RecordUnavailable as error:
            _fail(str(error))
    else:
        with _open(db, collector, token_file, ca_file) as record:
            verdict = verify_record(record)
    show(verdict, make_console())
    sys.exit(0 if verdict.holds else 1)


@contextlib.contextmanager
def _open(
    db: Path | None, collector: str | None, token_file: Path | None, ca_file: Path | None
) -> Iterator[Record]:
    """The record that the options name; what can't be read ends the command with status 2."""
    from valetkey.cli.audit.record import RecordDamaged, RecordUnavailable

    if (db is None) == (collector is None):
        raise click.UsageError("give one of --db and --collector")
    if collector is not None and token_file is None:
        raise click.UsageError("--collector needs --token-file")
    if db is not None and (token_file or ca_file):
        raise click.UsageError("--token-file and --ca-file are for --collector")
    try:
        with contextlib.closing(_record(db, collector, token_file, ca_file)) as record:
            yield record
    except (RecordUnavailable, RecordDamaged) as error:
        _fail(str(error))


def _record(
    db: Path | None, collector: str | None, token_file: Path | None, ca_file: Path | None
) -> Record:
    if db is not None:
        from valetkey.cli.audit.database import DatabaseRecord

        return DatabaseRecord(db)
    from valetkey.cli.audit.service import ServiceRecord

    assert collector is not None
    assert token_file is not None
    return ServiceRecord(collector, token_file, ca_file)


def _warn(record: Record) -> None:
    boots = record.boots()
    gaps, breaks = sum(boot.open_gaps for boot in boots), sum(boot.breaks for boot in boots)
    if gaps or breaks:
        click.echo(
            f"{gaps} open gaps, {breaks} breaks: `valetkey audit verify` names them", err=True
        )


def _fail(message: str) -> None:
    from valetkey.contracts.plain_text import plain

    click.echo(f"valetkey: {plain(message)}", err=True)
    sys.exit(2)

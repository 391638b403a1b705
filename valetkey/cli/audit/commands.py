"""``valetkey audit``: read and verify the record."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from valetkey.cli.audit.options import Moment, token_id
from valetkey.cli.fail import fail
from valetkey.cli.group import Commands

if TYPE_CHECKING:
    from valetkey.cli.audit.record import Record, Tailed

F = TypeVar("F", bound=Callable[..., Any])

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_TOKEN: Final = click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path)
_DIRECTORY: Final = click.Path(exists=True, file_okay=False, path_type=Path)
_LIMIT: Final = 50
# Whoever asks by one of these wants to know all of it.
_NARROW: Final = ("since", "until", "jti", "txn", "approval")
_FILTERS: Final = (
    "type", "workload", "route", "target", "decision", "code", "source", "boot", *_NARROW,
)  # fmt: skip


@click.group(cls=Commands)
def audit() -> None:
    """Read and verify the record."""


def _where(command: F) -> F:
    """The options that say where the record is."""
    for option in (
        click.option("--spool", type=_DIRECTORY, help="A sidecar's spool directory."),
        click.option("--ca-file", type=_FILE, help="CA certificates for the collector (PEM)."),
        click.option("--token-file", type=_FILE, help="File with a reader's token."),
        click.option("--collector", metavar="URL", help="A running collector."),
        click.option("--db", type=_FILE, help="A collector's database file."),
    ):
        command = option(command)
    return command


@audit.command()
@_where
@click.option("--limit", type=click.IntRange(1, 1000), help="How many of the last. [default: 50]")
@click.option("--all", "everything", is_flag=True, help="All that match, the first one first.")
@click.option("-f", "--follow", is_flag=True, help="Go on printing what arrives.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object per line.")
@click.option("--since", type=Moment(), help="From then on: RFC 3339, or how long ago, as in 2h.")
@click.option("--until", type=Moment(), help="Before then, in the same way.")
@click.option("--jti", metavar="ID", help="What was called with the token of this id.")
@click.option("--token-from", metavar="FILE", type=_TOKEN, help="The same; the token is in a file.")
@click.option("--txn", metavar="ID", help="What was called in this transaction.")
@click.option("--approval", metavar="ID", help="What rests on this approval, or needed it.")
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
    spool: Path | None,
    limit: int | None,
    everything: bool,
    follow: bool,
    as_json: bool,
    token_from: Path | None,
    **filters: str | None,
) -> None:
    """Show the last calls: decision and outcome in one row.

    Of a --spool, those that the collector does not have yet.
    """
    from valetkey.cli.audit import tail as view
    from valetkey.contracts.events import TYPE_DECISION

    if everything and limit is not None:
        raise click.UsageError("--all and --limit exclude each other")
    if follow and (spool is not None or filters["until"]):
        raise click.UsageError("--follow goes with neither --spool nor --until")
    if token_from is not None:
        if filters["jti"]:
            raise click.UsageError("--token-from and --jti say the same: give one of them")
        filters["jti"] = token_id(token_from)
    wanted = {name: value for name in _FILTERS if (value := filters[name])}
    wanted.setdefault("type", TYPE_DECISION)
    dated = everything or not wanted.keys().isdisjoint(("since", "until"))
    show = (
        view.json_printer(click.echo)
        if as_json
        else view.table_printer(view.make_console(), fixed=follow, dated=dated)
    )
    _check_where(db, collector, token_file, ca_file, spool)
    with _told(), contextlib.closing(_tailed(db, collector, token_file, ca_file, spool)) as record:
        if everything:
            cursor = view.show_all(record, wanted, show)
        else:
            found = record.newest(wanted, limit or _LIMIT)
            show(found)
            cursor = found[-1].cursor if found else 0
            if len(found) == (limit or _LIMIT) and not wanted.keys().isdisjoint(_NARROW):
                click.echo(f"these are the last {len(found)}: --all shows every one", err=True)
        if not as_json:
            for line in record.warnings():
                click.echo(line, err=True)
        if follow:
            with contextlib.suppress(KeyboardInterrupt):
                view.follow(record, wanted, cursor, show)


@audit.command()
@_where
@click.option("--stream", type=_FILE, help="A NATS stream: a file with what `nats` is made of.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def verify(
    db: Path | None,
    collector: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    spool: Path | None,
    stream: Path | None,
    as_json: bool,
) -> None:
    """Verify the record from its exact bytes; exit 0 only if everything holds."""
    from valetkey.cli.audit import verify as view
    from valetkey.cli.audit.tail import make_console

    if stream is None:
        _check_where(db, collector, token_file, ca_file, spool)
    elif any((db, collector, token_file, ca_file, spool)):
        raise click.UsageError("--stream stands alone")
    with _told():
        if stream is not None:
            from valetkey.cli.audit.stream import verify_stream

            verdict = verify_stream(stream)
        elif spool is not None:
            from valetkey.cli.audit.spool import verify_spool

            verdict = verify_spool(spool)
        else:
            with contextlib.closing(_record(db, collector, token_file, ca_file)) as record:
                verdict = view.verify_record(record)
    if as_json:
        click.echo(json.dumps(view.document(verdict), indent=2))
    else:
        view.show(verdict, make_console())
    sys.exit(0 if verdict.holds else 1)


def _check_where(
    db: Path | None,
    collector: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    spool: Path | None,
) -> None:
    if sum(place is not None for place in (db, collector, spool)) != 1:
        raise click.UsageError("give one of --db, --collector and --spool")
    if collector is not None and token_file is None:
        raise click.UsageError("--collector needs --token-file")
    if collector is None and (token_file or ca_file):
        raise click.UsageError("--token-file and --ca-file are for --collector")


@contextlib.contextmanager
def _told() -> Iterator[None]:
    """What can't be read ends the command with status 2."""
    from valetkey.cli.audit.record import RecordDamaged, RecordUnavailable

    try:
        yield
    except (RecordUnavailable, RecordDamaged) as error:
        fail(str(error))


def _tailed(
    db: Path | None,
    collector: str | None,
    token_file: Path | None,
    ca_file: Path | None,
    spool: Path | None,
) -> Tailed:
    if spool is None:
        return _record(db, collector, token_file, ca_file)
    from valetkey.cli.audit.spool_tail import SpooledRecord

    return SpooledRecord(spool)


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

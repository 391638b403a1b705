"""``valetkey reseal``: another master key for a broker's database."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Final

import click

from valetkey.cli.fail import fail
from valetkey.contracts import codes, settings
from valetkey.contracts.errors import ConfigError

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "--config",
    type=_FILE,
    envvar="VALETKEY_CONFIG",
    required=True,
    help="The broker's settings file (YAML). [env: VALETKEY_CONFIG]",
)
@click.option("--new-key", type=_FILE, required=True, help="The new master key.")
@click.option("--old-key", type=_FILE, help="The old one; default: the settings' master_key_file.")
@click.option("--dry-run", is_flag=True, help="See that it can be done; brokers may run.")
def reseal(config: Path, new_key: Path, old_key: Path | None, dry_run: bool) -> None:
    """Seal what a broker's database keeps secret under another master key.

    Brokers must be stopped. All of it is one transaction, and may be repeated. Nothing else in the
    database changes: incidents, revocations, grants and the record of administrators stay.
    """
    from valetkey.broker.settings import BrokerSettings
    from valetkey.broker.store.alone import Refused
    from valetkey.broker.store.reseal import reseal as seal_anew
    from valetkey.broker.store.sealing import Sealer

    try:
        loaded = settings.load(BrokerSettings, config, program="broker", environ=os.environ)
        old_file = old_key or loaded.master_key_file
        old, new = Sealer.from_file(old_file), Sealer.from_file(new_key)
        if old_file.read_bytes() == new_key.read_bytes():
            raise Refused(codes.RESEAL_SAME_KEY, f"{old_file} and {new_key} hold one key")
        tables = asyncio.run(
            seal_anew(loaded.database, old, new, dry_run=dry_run, limits=loaded.postgres)
        )
    except ConfigError as error:
        fail(str(error))
    for table in tables:
        there = f", {table.already} were under the new key already" if table.already else ""
        click.echo(f"{table.table}: {table.changed} {'to seal' if dry_run else 'sealed'}{there}")
    click.echo("nothing was changed (dry run)" if dry_run else f"ok: {new_key} is the master key")

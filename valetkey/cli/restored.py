"""``valetkey restored``: a broker's database came out of a backup."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from valetkey.cli.fail import fail
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError

if TYPE_CHECKING:
    from valetkey.broker.store.restored import Kept

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
# `store.restored.KEPT`, which takes SQLAlchemy to import; a test holds the two together.
KINDS: Final = ("grants", "windows", "approvals", "uses", "users")


@click.command()
@click.option(
    "--config",
    type=_FILE,
    envvar="VALETKEY_CONFIG",
    required=True,
    help="The broker's settings file (YAML). [env: VALETKEY_CONFIG]",
)
@click.option("--reason", required=True, help="What happened, for the record of administrators.")
@click.option(
    "--keep",
    multiple=True,
    type=click.Choice(KINDS),
    help="What you know that nobody ended or used since the backup. May be given again.",
)
@click.option(
    "--attest",
    is_flag=True,
    help="Everybody must attest itself anew: where incidents since the backup are not known.",
)
@click.option(
    "--complete",
    is_flag=True,
    help="It was moved, with all that was ever committed: end nothing.",
)
def restored(
    config: Path, reason: str, keep: tuple[Kept, ...], attest: bool, complete: bool
) -> None:
    """End what a restored database may have forgotten the end of.

    Brokers must be stopped, and none may have started on it. All of it is one transaction, and may
    be repeated. Nothing that was issued before counts any more: workloads get new tokens.
    """
    from valetkey.broker.core.grants import GrantsFile
    from valetkey.broker.settings import BrokerSettings
    from valetkey.broker.store.restored import Ending
    from valetkey.broker.store.restored import restored as end_forgotten

    if complete and (keep or attest):
        raise click.UsageError("--complete ends nothing: it goes without --keep and --attest")

    try:
        loaded = settings.load(BrokerSettings, config, program="broker", environ=os.environ)
        file = settings.load(GrantsFile, loaded.grants_file, program="broker", environ={})
        counted = {grant.id: grant.max_uses for grant in file.grants if grant.max_uses is not None}
        found = asyncio.run(
            end_forgotten(
                loaded.database,
                None if complete else Ending(counted, keep, attest),
                reason=reason,
                clock=time.time,
                limits=loaded.postgres,
            )
        )
    except ConfigError as error:
        fail(str(error))
    for ended in found:
        click.echo(f"{ended.kind}: {ended.number} ended")
    for kind in KINDS:
        if kind in keep:
            click.echo(f"{kind}: kept as they were")
    if complete:
        click.echo("nothing was ended")
    else:
        who = "everybody must" if attest else "nobody need"
        click.echo(f"{who} attest itself anew")
    click.echo("ok: brokers may be started")

"""The ``valetkey`` command.

Every import that costs time stands inside the command that needs it: ``valetkey proxy`` loads
nothing of the broker, the collector or SQL.

Exit status: 0 done and good, 1 done and not good (a record that does not hold, a demo step that
failed, a broker that said no), 2 could not be done (usage, settings, files, nobody there).
"""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from typing import Final

import click

from valetkey import __version__
from valetkey.cli.admin import admin
from valetkey.cli.approvals import approvals
from valetkey.cli.audit.commands import audit
from valetkey.cli.check import PROGRAMS, check_file
from valetkey.cli.doctor.command import doctor
from valetkey.cli.fail import fail
from valetkey.cli.grants import grants
from valetkey.cli.group import Commands
from valetkey.cli.incidents import incidents
from valetkey.cli.inject import inject
from valetkey.cli.policy import policy
from valetkey.cli.reseal import reseal
from valetkey.cli.restored import restored
from valetkey.cli.windows import windows
from valetkey.contracts.errors import ConfigError

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(
    cls=Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit status: 0 done and good, 1 done and not good (or a broker said no), 2 could not "
    "be done (usage, settings, files, nobody there).",
)
@click.version_option(__version__, prog_name="valetkey")
def main() -> None:
    """Valetkey: every outbound call leaves with a credential that fits it and nothing else."""


def _program(name: str, help_: str) -> click.Command:
    @click.command(name, help=help_)
    @click.option(
        "--config",
        type=_FILE,
        envvar="VALETKEY_CONFIG",
        required=True,
        help="Settings file (YAML). [env: VALETKEY_CONFIG]",
    )
    def run(config: Path) -> None:
        program = importlib.import_module(f"valetkey.{name}.__main__")
        sys.exit(program.main(["--config", str(config)]))

    return run


main.add_command(_program("proxy", "Run the sidecar."))
main.add_command(_program("broker", "Run the broker."))
main.add_command(_program("collector", "Run the collector."))
main.add_command(_program("injector", "Run the injector's webhook."))
main.add_command(admin)
main.add_command(approvals)
main.add_command(audit)
main.add_command(doctor)
main.add_command(grants)
main.add_command(incidents)
main.add_command(inject)
main.add_command(policy)
main.add_command(reseal)
main.add_command(restored)
main.add_command(windows)


@main.command()
@click.argument("program", type=click.Choice(PROGRAMS))
@click.argument("file", type=_FILE)
@click.option("--owner", type=_FILE, help="A routes file that is to narrow it.")
def check(program: str, file: Path, owner: Path | None) -> None:
    """Validate a settings FILE of a PROGRAM, VALETKEY_* variables included."""
    try:
        check_file(program, file, environ=os.environ, owner=owner)
    except ConfigError as error:
        fail(str(error))
    click.echo("ok")


@main.command()
@click.argument("program", type=click.Choice(PROGRAMS), required=False)
@click.option("--config", type=_FILE, help="The program's settings file (YAML).")
@click.option("--live", is_flag=True, help="Whether it answers at all, not whether it is ready.")
def health(program: str | None, config: Path | None, live: bool) -> None:
    """Ask the probe of a PROGRAM that runs here with this --config; in a container, process 1's.

    Exit status 0 says that it is well, 1 that it is not, and standard error why.
    """
    if (program is None) != (config is None):
        raise click.UsageError("a program needs --config, and --config a program")
    check = importlib.import_module("valetkey.cli.health")
    given = [program, "--config", str(config)] if program is not None else []
    sys.exit(check.main([*given, *(["--live"] if live else [])]))


@main.command()
@click.option("--keep", is_flag=True, help="Leave everything running and print the URLs.")
def demo(keep: bool) -> None:
    """Run the whole story on this machine: broker, collector, sidecar, agent, target."""
    sys.exit(importlib.import_module("valetkey.cli.demo.main").run(keep=keep))

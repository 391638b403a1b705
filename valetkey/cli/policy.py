"""``valetkey policy``: policies checked and tried before a broker has them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

from valetkey.cli.fail import fail
from valetkey.cli.group import Commands
from valetkey.cli.policy_explain import explain
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError

if TYPE_CHECKING:
    from valetkey.broker.core.cedar import Policies
    from valetkey.broker.core.cedar_text import Mistake
    from valetkey.broker.core.places import TargetFacts

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_ANY: Final = click.Path(exists=True, path_type=Path)


@click.group(cls=Commands)
def policy() -> None:
    """Check and try Cedar policies, and see why a decision is what it is."""


policy.add_command(explain)


@policy.command()
@click.argument("files", nargs=-1, required=True, type=_ANY)
@click.option(
    "--config", type=_FILE, help="The broker's settings: targets and routes must be theirs."
)
def check(files: tuple[Path, ...], config: Path | None) -> None:
    """Validate FILES (or directories of *.cedar) against the schema; all mistakes are listed.

    Exit status 1 if there are any.
    """
    from valetkey.broker.cedar_files import read_policy_files
    from valetkey.broker.core.cedar_text import PoliciesInvalid, read_policies

    try:
        texts = read_policy_files(files)
        count = (
            len(read_policies(texts))
            if config is None
            else len(_compiled(texts, _targets(config)).written)
        )
    except PoliciesInvalid as error:
        _tell(error.mistakes)
    except ConfigError as error:
        fail(str(error))
    click.echo(f"ok: {count} {'policy' if count == 1 else 'policies'}")


@policy.command()
@click.argument("file", type=_FILE)
@click.option("--verbose", "-v", is_flag=True, help="Show the cases that are as expected too.")
def test(file: Path, verbose: bool) -> None:
    """Ask the policies about the cases of FILE (YAML); exit status 1 if one is not as expected."""
    from valetkey.broker.cedar_files import read_policy_files
    from valetkey.broker.core.cedar_text import PoliciesInvalid
    from valetkey.broker.policy_cases import PolicyCases, run_cases

    try:
        cases = settings.load(PolicyCases, file, program="policy", environ={})
        texts = read_policy_files([file.parent / path for path in cases.policies])
        policies = _compiled(texts, _targets(file.parent / cases.settings))
    except PoliciesInvalid as error:
        _tell(error.mistakes)
    except ConfigError as error:
        fail(str(error))
    results = run_cases(policies, cases.cases)
    wrong = [result for result in results if result.wrong]
    for result in results:
        if result.wrong:
            click.echo(f"{file}: {result.name}: {result.wrong}")
        elif verbose:
            by = f" by {', '.join(result.policy_ids)}" if result.policy_ids else ""
            click.echo(f"{file}: {result.name}: {result.outcome}{by}")
    if wrong:
        click.echo(f"{len(wrong)} of {len(results)} not as expected")
        sys.exit(1)
    click.echo(f"ok: {len(results)} as expected")


def _compiled(texts: dict[str, str], targets: Iterable[TargetFacts]) -> Policies:
    from valetkey.broker.core.cedar import Policies

    return Policies.compile(texts, targets)


def _targets(config: Path) -> tuple[TargetFacts, ...]:
    from valetkey.broker.settings import BrokerSettings

    loaded = settings.load(BrokerSettings, config, program="broker", environ={})
    return loaded.compiled_places()


def _tell(mistakes: Iterable[Mistake]) -> NoReturn:
    for mistake in mistakes:
        click.echo(str(mistake), err=True)
    sys.exit(1)

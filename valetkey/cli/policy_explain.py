"""``valetkey policy explain``: why a question is answered as it is."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click
import msgspec

from valetkey.cli.fail import fail
from valetkey.cli.remote import Document, Remote, optional_broker_options
from valetkey.contracts import codes, settings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.plain_text import plain
from valetkey.contracts.times import from_rfc3339

if TYPE_CHECKING:
    from valetkey.broker.core.explanation import ExplainedGrant, ExplainedPolicy, Explanation
    from valetkey.broker.settings import BrokerSettings

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_ANY: Final = click.Path(exists=True, path_type=Path)
_EVALUATION: Final = "/access/v1/evaluation"
# Grants of other workloads that are named; there can be thousands.
_OTHERS_NAMED: Final = 5


@click.command()
@optional_broker_options
@click.argument("question", type=_FILE)
@click.option("--config", type=_FILE, help="The broker's settings: decide here, ask no broker.")
@click.option("--grants", type=_FILE, help="Grants in place of those that the settings name.")
@click.option(
    "--policies",
    type=_ANY,
    multiple=True,
    help="Policies in place of those of the settings: a file or a directory; repeat for more.",
)
@click.option("--at", metavar="TIME", help="Decide as of then, as in 2027-01-15T08:00:00Z.")
def explain(
    remote: Remote | None,
    question: Path,
    config: Path | None,
    grants: Path | None,
    policies: tuple[Path, ...],
    at: str | None,
    *,
    as_json: bool,
) -> None:
    """Say how the QUESTION (a file) is decided, and why.

    The question is one of AuthZEN: subject, action, resource. With --config it is decided by the
    settings, grants and policies on disk, with --broker by a broker that is running. Exit status 0
    whatever the decision is; 2 if there is none.
    """
    from valetkey.broker.policy_question import read_question
    from valetkey.broker.settings import BrokerSettings

    if (remote is None) == (config is None):
        raise click.UsageError("give --config FILE, or --broker URL to ask a broker")
    try:
        document = read_question(question)
        if config is None:
            if grants or policies or at is not None:
                raise click.UsageError("--grants, --policies and --at go with --config")
            if remote is not None:
                _of_broker(remote, document)
            return
        now = time.time() if at is None else from_rfc3339(at)
        loaded = settings.load(BrokerSettings, config, program="broker", environ={})
        explanation = _explained(document, question, loaded, grants, policies, now)
    except ConfigError as error:
        fail(str(error))
    except ValueError as error:
        fail(f"--at {at}: {error}")
    if as_json:
        click.echo(json.dumps(msgspec.to_builtins(explanation), indent=2))
        return
    for line in _lines(explanation):
        click.echo(line)
    also = ", the directory" if loaded.directory is not None else ""
    click.echo(
        "not known here: incidents, uses of grants, open deployment windows, grants made by API"
        + also
    )


def _explained(
    document: Document,
    file: Path,
    config: BrokerSettings,
    grants: Path | None,
    policies: tuple[Path, ...],
    now: float,
) -> Explanation:
    """Raises `ConfigError`."""
    from valetkey.broker.core.authzen import Evaluation, QuestionInvalid
    from valetkey.broker.core.cedar_text import PoliciesInvalid
    from valetkey.broker.policy_question import Rules

    try:
        rules = Rules(config, grants=grants, policies=policies)
        asked = msgspec.convert(document, Evaluation)
        return asyncio.run(rules.explain(asked, now=now))
    except PoliciesInvalid as error:
        raise ConfigError(str(error.mistakes[0])) from error
    except QuestionInvalid as error:
        raise ConfigError(f"{file}: {error}") from error


def _of_broker(remote: Remote, document: Document) -> None:
    answer = remote.post(_EVALUATION, document)
    context = answer.get("context", {})
    shown = {"decision": "permit" if answer.get("decision") is True else "deny", **context}
    if remote.as_json:
        remote.show(answer, ())
        return
    columns = ("decision", "code", "reason", "policies", "grants", "policy_digest")
    remote.show(shown, columns)


def _lines(found: Explanation) -> Iterator[str]:
    yield f"{found.decision}  {plain(found.code)}".rstrip()
    if found.code:
        yield f"  {found.help}"
        yield f"  ({plain(found.reason)})"
    if found.scopes:
        use = ", for one call" if found.single_use else ""
        yield f"  {' '.join(found.scopes)} on {found.target}, for {found.expires_in} s{use}"
    if found.approval is not None:
        among = " and ".join(
            " or ".join((*holders["roles"], *holders["groups"]))
            for holders in found.approval.holders
        )
        yield f"  waits for {found.approval.quorum} of {among or 'anybody who may approve'}"
    for error in found.errors:
        yield f"  error: {plain(error)}"
    yield from _policies("decided by", found.decided)
    yield from _policies("other policies of the target", found.others)
    yield from _grants(found.grants)


def _policies(title: str, policies: tuple[ExplainedPolicy, ...]) -> Iterator[str]:
    if policies:
        yield f"{title}:"
    for one in policies:
        yield f"  {one.id}  {one.effect}  {plain(one.file)}:{one.line}"
        for name, value in one.annotations.items():
            yield f"    @{name}: {plain(value)}"


def _grants(grants: tuple[ExplainedGrant, ...]) -> Iterator[str]:
    yield "grants of the target:" if grants else "grants of the target: none"
    of_others = sum(map(_is_of_another, grants))
    unnamed = max(0, of_others - _OTHERS_NAMED)
    for one in grants[: len(grants) - unnamed]:  # they come last
        about = f"{one.id}  {one.fit}" + (f": {one.why}" if one.why else "")
        yield f"  {plain(about)}"
        yield f"    {plain(one.workload)} of {plain(one.issuer)}: {' '.join(one.scopes)}"
    if unnamed:
        yield f"  and {unnamed} more of the kind of the last"


def _is_of_another(grant: ExplainedGrant) -> bool:
    return grant.code == codes.GRANT_MISSING.name

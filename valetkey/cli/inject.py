"""``valetkey inject``: what the webhook does with pods, done with manifests."""

from __future__ import annotations

import itertools
import os
import sys
from pathlib import Path
from typing import Any, Final

import click
import yaml

from valetkey.cli.fail import fail
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.plain_text import plain

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command()
@click.option(
    "-f",
    "--filename",
    "files",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    multiple=True,
    required=True,
    help="Manifests (YAML or JSON, several documents); - for standard input. May be repeated.",
)
@click.option(
    "--config",
    type=_FILE,
    envvar="VALETKEY_CONFIG",
    required=True,
    help="The injector's settings file (YAML). [env: VALETKEY_CONFIG]",
)
@click.option(
    "--namespace",
    default="default",
    show_default=True,
    help="Where a manifest goes that names no namespace.",
)
@click.option(
    "--kubernetes", metavar="VERSION", help="The cluster's version, in place of settings."
)
def inject(files: tuple[Path, ...], config: Path, namespace: str, kubernetes: str | None) -> None:
    """Put the sidecar into the pods of manifests and write them to standard output.

    Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job and CronJob get what the webhook would
    give them. Everything else is written as it is. A pod that the webhook would refuse is an error,
    and nothing is written: exit status 1.
    """
    from valetkey.injector.core.mutation import Injected, Place, Refusal
    from valetkey.injector.manifests import inject as injected
    from valetkey.injector.settings import InjectorSettings, version_of

    try:
        loaded = settings.load(InjectorSettings, config, program="injector", environ=os.environ)
    except ConfigError as error:
        fail(str(error))
    try:
        version = kubernetes or loaded.pods.kubernetes
        place = Place(namespace, version_of(version)) if version else Place(namespace)
    except ValueError as error:
        fail(f"--kubernetes: {error}")
    written: list[str] = []
    refused = False
    for file in files:
        for line, document in _documents(file):
            result = injected(document, place, loaded)
            where = f"{file}:{line}: {_name_of(document)}"
            if isinstance(result, Refusal):
                click.echo(f"valetkey: {plain(f'{where}: {result}')}", err=True)
                refused = True
                continue
            if isinstance(result, Injected):
                for warning in result.warnings:
                    click.echo(f"{plain(f'{where}: {warning}')}", err=True)
            after = result.pod if isinstance(result, Injected) else document
            written.append(yaml.safe_dump(after, sort_keys=False, allow_unicode=True))
    if refused:
        sys.exit(1)
    click.echo("---\n".join(written), nl=False)


def _documents(file: Path) -> list[tuple[int, Any]]:
    """Each document with the line that it begins in, read as strictly as settings are."""
    try:
        text = sys.stdin.read() if str(file) == "-" else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: can't be read: {error}")
    try:
        starts = [
            token.start_mark.line
            for token in yaml.scan(text, Loader=yaml.CSafeLoader)
            if isinstance(token, yaml.DocumentStartToken)
        ]
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        fail(f"{file}:{mark.line + 1 if mark else 1}: not YAML")
    lines = text.splitlines(keepends=True)
    bounds = sorted({0, *starts, len(lines)})
    found = []
    for begin, end in itertools.pairwise(bounds):
        # Empty lines stand for what came before, so that complaints name the file's lines.
        document = "\n" * begin + "".join(lines[begin:end])
        try:
            tree = settings.parse_yaml(document, str(file))
        except ConfigError as error:
            fail(str(error))
        if tree not in (None, {}):
            found.append((begin + 1, tree))
    return found


def _name_of(document: Any) -> str:
    if not isinstance(document, dict):
        return "document"
    metadata = document.get("metadata")
    name = metadata.get("name", "") if isinstance(metadata, dict) else ""
    return f"{document.get('kind', 'document')} {name}".strip()

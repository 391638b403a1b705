"""What commands that talk to the broker's admin API share: options, errors, pages, output.

A command is decorated with `broker_options` and takes a `Remote`:

    @grants.command("list")
    @broker_options
    def list_(remote: Remote) -> None:
        remote.show(remote.pages("/v1/grants"), ("id", "workload", "state"))
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from valetkey.cli.fail import fail
from valetkey.cli.service import Service, ServiceError, checked_token
from valetkey.contracts.plain_text import plain
from valetkey.contracts.secret import Secret

F = TypeVar("F", bound=Callable[..., Any])
Document = dict[str, Any]

_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)
_TOKEN: Final = "VALETKEY_TOKEN"  # noqa: S105 - the name of a variable
_MAX_PAGE: Final = 500
_PIPE_WIDTH: Final = 1000


class Remote:
    """The broker's admin API. A refusal ends the command: one line on stderr, status 1.

    A broker that can't be asked ends it with status 2.
    """

    def __init__(self, service: Service, *, as_json: bool) -> None:
        self._service = service
        self.as_json = as_json
        """Whether JSON was asked for: `show` prints it then."""

    def get(self, path: str, **query: Any) -> Document:
        return self._ask("GET", path, query=query)

    def post(self, path: str, document: Mapping[str, Any]) -> Document:
        return self._ask("POST", path, document=document)

    def delete(self, path: str, **query: Any) -> Document:
        return self._ask("DELETE", path, query=query)

    def pages(self, path: str, *, limit: int | None = None, **query: Any) -> list[Document]:
        """The items of a list, over as many pages as it has, up to ``limit``. None is left out."""
        items: list[Document] = []
        asked = {name: value for name, value in query.items() if value is not None}
        after = ""
        while True:
            room = _MAX_PAGE if limit is None else min(_MAX_PAGE, limit - len(items))
            page = self.get(path, limit=room, **asked, **({"after": after} if after else {}))
            if not isinstance(page.get("items"), list):
                fail("what answers there is no broker: it gives no items")
            items += page["items"]
            after = page.get("next", "")
            if not after or (limit is not None and len(items) >= limit):
                return items

    def show(
        self, found: Document | Iterable[Document], columns: Sequence[str], *, empty: str = "none"
    ) -> None:
        """Print one thing as lines of its ``columns``, or several as a table; or either as JSON."""
        if self.as_json:
            click.echo(json.dumps(found if isinstance(found, dict) else list(found), indent=2))
        elif isinstance(found, dict):
            width = max(len(name) for name in columns)
            for name in columns:
                if name in found:
                    click.echo(f"{name:<{width}}  {_text(found[name])}")
        else:
            _table(list(found), columns, empty)

    def _ask(self, method: str, path: str, **how: Any) -> Document:
        try:
            return self._service.ask(dict[str, Any], method, path, **how)
        except ServiceError as error:
            fail(str(error), status=1 if error.code else 2)


def broker_options(command: F) -> F:
    """The options that say which broker and as whom; the command gets a `Remote` first."""

    @_options(required=True)
    @functools.wraps(command)
    def with_remote(*args: Any, as_json: bool, **options: Any) -> Any:
        with _opened(options, as_json=as_json) as remote:
            return command(remote, *args, **options)

    return with_remote  # type: ignore[no-any-return]


def optional_broker_options(command: F) -> F:
    """The same where none need be asked: it gets a `Remote` or ``None``, and ``as_json``."""

    @_options(required=False)
    @functools.wraps(command)
    def with_remote(*args: Any, as_json: bool, **options: Any) -> Any:
        with _opened(options, as_json=as_json) as remote:
            return command(remote, *args, as_json=as_json, **options)

    return with_remote  # type: ignore[no-any-return]


def _options(*, required: bool) -> Callable[[Callable[..., Any]], Any]:
    options = (
        click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        click.option(
            "--ca-file",
            type=_FILE,
            envvar="VALETKEY_CA_FILE",
            help="CA certificates for the broker (PEM). [env: VALETKEY_CA_FILE]",
        ),
        click.option(
            "--token-file",
            type=_FILE,
            envvar="VALETKEY_TOKEN_FILE",
            help="File with your token [env: VALETKEY_TOKEN_FILE]; without, it is in "
            "VALETKEY_TOKEN.",
        ),
        click.option(
            "--broker",
            metavar="URL",
            # One that is set for other commands is not meant where none is needed.
            envvar="VALETKEY_BROKER_URL" if required else None,
            required=required,
            help="The broker. [env: VALETKEY_BROKER_URL]" if required else "The broker to ask.",
        ),
    )
    return lambda command: functools.reduce(
        lambda made, option: option(made), options[::-1], command
    )


@contextlib.contextmanager
def _opened(options: dict[str, Any], *, as_json: bool) -> Iterator[Any]:
    """The connection that ``options`` say, which are taken out of it; ``None`` without a broker."""
    broker, token_file, ca_file = (
        options.pop(name) for name in ("broker", "token_file", "ca_file")
    )
    if broker is None:
        yield None
        return
    try:
        service = Service("broker", broker, token_file or _token_variable(), ca_file)
    except ServiceError as error:
        fail(str(error))
    try:
        yield Remote(service, as_json=as_json)
    finally:
        service.close()


def _token_variable() -> Secret:
    """CI jobs have their token in a variable; a file of it would outlive the job."""
    token = os.environ.get(_TOKEN, "")
    if not token:
        raise ServiceError(f"give --token-file, or the token in {_TOKEN}")
    return checked_token(token, _TOKEN)


def _text(value: Any) -> str:
    """A value for a terminal: what others wrote may hold characters that it would obey."""
    if isinstance(value, str):
        return plain(value)
    return plain(json.dumps(value, ensure_ascii=False))


def _table(rows: Sequence[Document], columns: Sequence[str], empty: str) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    if not rows:
        click.echo(empty)
        return
    table = Table(box=box.SIMPLE)
    for name in columns:
        table.add_column(name, overflow="fold")  # an id that is cut off is of no use
    for row in rows:
        table.add_row(*(Text(_text(row[name]) if name in row else "") for name in columns))
    # What reads a pipe takes lines as long as they are.
    Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH).print(table)

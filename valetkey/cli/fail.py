"""How every command says that something could not be done."""

from __future__ import annotations

import sys
from typing import NoReturn

import click

from valetkey.contracts.plain_text import plain


def fail(message: str, *, status: int = 2) -> NoReturn:
    """One line on stderr, without characters that a terminal would obey, and the exit status."""
    click.echo(f"valetkey: {plain(message)}", err=True)
    sys.exit(status)

"""What ``valetkey audit tail`` is told: moments, and the token that it asks about."""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from valetkey.contracts import jose
from valetkey.contracts.settings import Duration, convert
from valetkey.contracts.times import from_rfc3339, rfc3339

_STDIN: Final = "-"
# More than any token.
_MAX_TOKEN: Final = 64 << 10


class Moment(click.ParamType[str]):
    """A time (RFC 3339), or how long ago it was (``2h``). The command gets it as RFC 3339."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        text = str(value)
        try:
            return rfc3339(_seconds(text))
        except (ValueError, OverflowError, OSError):
            self.fail(
                f"{text!r} is neither a time as in 2026-11-29T20:00:00Z nor a duration as in 2h",
                param,
                ctx,
            )


def _seconds(text: str) -> float:
    """Seconds since the epoch. Raises `ValueError`."""
    try:
        return time.time() - convert(Duration, text)
    except msgspec.ValidationError:
        return from_rfc3339(text)


def token_id(path: Path) -> str:
    """The ``jti`` of the token in a file (``-``: standard input), which is not verified here.

    It only says what to look for. Raises `click.BadParameter`.
    """
    try:
        if str(path) == _STDIN:
            text = sys.stdin.read(_MAX_TOKEN + 1)
        else:
            with path.open(encoding="utf-8") as file:
                text = file.read(_MAX_TOKEN + 1)
        jti = jose.parse(text.strip()).unverified_claims.get("jti")
    except (OSError, UnicodeDecodeError, jose.TokenInvalid) as error:
        raise click.BadParameter("not a token (JWT)", param_hint="--token-from") from error
    if not isinstance(jti, str) or not jti:
        raise click.BadParameter("the token has no jti", param_hint="--token-from")
    return jti

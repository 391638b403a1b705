"""A group of commands whose help says what each one does in full."""

from __future__ import annotations

from typing import Final

import click

# Longer than any sentence here: none is cut off.
_WHOLE: Final = 1000


class Commands(click.Group):
    """A group that lists each command with the first sentence of its help, wrapped and not cut."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        named = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        with formatter.section("Commands"):
            formatter.write_dl(
                [(name, command.get_short_help_str(_WHOLE)) for name, command in named if command]
            )

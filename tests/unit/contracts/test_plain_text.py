from __future__ import annotations

import pytest

from valetkey.contracts.plain_text import plain


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("GET /api/tickets/7", "GET /api/tickets/7"),
        ("grün €", "grün €"),
        ("\x1b[32mallowed", "\\x1b[32mallowed"),
        ("a\nb\rc\td", "a\\x0ab\\x0dc\\x09d"),
        ("\u202edesrever", "\\x202edesrever"),
        ("[red]x[/red]", "[red]x[/red]"),
    ],
)
def test_only_what_is_printable_is_shown_as_it_is(text, shown):
    assert plain(text) == shown

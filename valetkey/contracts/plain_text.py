"""What others wrote, made fit for a terminal or a mail.

Paths, names, reasons and purposes come from whoever called: a control character among them could
move the cursor, colour a denial green, hide a line or turn its direction.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """``text`` with everything that is not printable shown as an escape."""
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in text)

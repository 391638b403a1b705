"""Finding an injected credential in what a target sends back, and making it unreadable.

Some targets echo what they were asked: debug pages, redirects with the whole request in them,
error messages. The credential was never the workload's, and must not become so that way. What is
found is overwritten in place, so that no length changes and framing stays as it was.

Looked for is the token as it was sent, and as URLs and JSON have it. What hides it otherwise (a
compression, base64, half of it) is not found.
"""

from __future__ import annotations

import re
from typing import Final
from urllib.parse import quote

_BLANK: Final = b"*"  # may stand wherever a token may (RFC 9110 §5.6.2)

_ESCAPE: Final = re.compile("%[0-9A-F]{2}")

Needles = tuple[bytes, ...]


def needles_of(token: str) -> Needles:
    """The forms of a token that are looked for, the token itself first: no other is shorter."""
    encoded = quote(token, safe="")
    lower = _ESCAPE.sub(lambda match: match[0].lower(), encoded)
    forms = (token, encoded, lower, token.replace("/", "\\/"))
    return tuple(dict.fromkeys(form.encode() for form in forms)) if token else ()


def holds(data: bytes, needles: Needles, end: int) -> bool:
    """Whether one of them is in ``data`` before ``end``."""
    for needle in needles:  # noqa: SIM110 - compiled, a loop makes no generator
        if data.find(needle, 0, end) >= 0:
            return True
    return False


def blank(data: bytes, needles: Needles) -> bytes:
    """``data``, as long as it was, with stars where one of them stood."""
    for needle in needles:
        data = data.replace(needle, _BLANK * len(needle))
    return data


class Scrubber:
    """A body in pieces, of any length: what could be a needle's beginning is held back."""

    __slots__ = ("_held", "_needles", "found")

    def __init__(self, needles: Needles) -> None:
        self._needles = needles
        self._held = b""
        self.found = False

    def feed(self, data: bytes) -> bytes:
        """What may go on of ``data`` and of what was held back before it."""
        if self._held:
            data = self._held + data
        if holds(data, self._needles, len(data)):
            self.found = True
            data = blank(data, self._needles)
        keep = max((_begun(data, needle) for needle in self._needles), default=0)
        self._held = data[len(data) - keep :]
        return data[: len(data) - keep]

    def end(self) -> bytes:
        """What is left: the body is over, and it was none."""
        held, self._held = self._held, b""
        return held


def _begun(data: bytes, needle: bytes) -> int:
    """The length of the longest end of ``data`` with which ``needle`` begins (and goes on)."""
    first = needle[:1]
    at = data.find(first, max(0, len(data) - len(needle) + 1))
    while at >= 0:
        if needle.startswith(data[at:]):
            return len(data) - at
        at = data.find(first, at + 1)
    return 0

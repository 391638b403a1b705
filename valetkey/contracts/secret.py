"""A value that must not show: tokens, keys, master keys.

The only way to the value is ``reveal()``, so a search for that word finds every place where a
secret leaves its wrapper. ``repr``, ``str`` and ``format`` are redacted and pickling is refused.
"""

from __future__ import annotations

import hmac
from typing import NoReturn


class Secret:
    """A secret string with a redacted representation."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The secret itself: call this only where it is put on the wire."""
        return self._value

    def __repr__(self) -> str:
        return "Secret(…)"

    __str__ = __repr__

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash(self._value)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Secret is not serialised")

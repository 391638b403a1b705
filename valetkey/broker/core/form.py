"""``application/x-www-form-urlencoded``, strictly: one reading or none (WHATWG URL §5.1).

Broken percent escapes, bytes that are not UTF-8, pairs without ``=`` and control characters are
refused, where lenient parsers guess.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final
from urllib.parse import unquote_to_bytes

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

MAX_FIELDS: Final = 32
# RFC 8693 §2.1 and RFC 8707 §2 allow more than one; all others come once (RFC 6749 §3.2).
_REPEATABLE: Final = frozenset({"audience", "resource"})
_BROKEN_ESCAPE: Final = re.compile(r"%(?![0-9A-Fa-f]{2})")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


class Form:
    """Form fields of which each came at most once, except those that may repeat."""

    __slots__ = ("_many", "_once")

    def __init__(self, fields: Sequence[tuple[str, str]]) -> None:
        once: dict[str, str] = {}
        many: dict[str, list[str]] = {}
        for name, value in fields:
            if name in _REPEATABLE:
                if value:
                    many.setdefault(name, []).append(value)
            elif name in once:
                raise CallerError(codes.SERVICE_BAD_REQUEST, "a parameter came twice")
            else:
                once[name] = value
        self._once: Mapping[str, str] = once
        self._many: Mapping[str, list[str]] = many

    @classmethod
    def decode(cls, body: bytes) -> Form:
        """Raises `CallerError`."""
        try:
            text = body.decode("ascii")  # RFC 6749 appendix B: other characters come escaped
            pairs = text.split("&", MAX_FIELDS) if text else []
            if len(pairs) > MAX_FIELDS:
                raise CallerError(codes.SERVICE_BAD_REQUEST, "too many parameters")
            fields = [(_text(name), _text(value)) for name, value in map(_pair, pairs)]
        except ValueError as error:
            raise CallerError(codes.SERVICE_BAD_REQUEST, "the form can't be read") from error
        return cls(fields)

    def get(self, name: str) -> str:
        """The value; empty where it was left out. RFC 6749 §3.2: an empty value is left out."""
        return self._once.get(name, "")

    def required(self, name: str) -> str:
        value = self.get(name)
        if not value:
            raise CallerError(codes.SERVICE_BAD_REQUEST, f"{name} is missing")
        return value

    def all(self, name: str) -> Sequence[str]:
        return self._many.get(name, ())


def _pair(pair: str) -> tuple[str, str]:
    name, equals, value = pair.partition("=")
    if not name or not equals:
        raise ValueError("not name=value")
    return name, value


def _text(encoded: str) -> str:
    text = encoded.replace("+", " ")
    if "%" in text:
        if _BROKEN_ESCAPE.search(text):
            raise ValueError("a broken percent escape")
        text = unquote_to_bytes(text).decode()
    if _CONTROL.search(text):
        raise ValueError("a control character")
    return text

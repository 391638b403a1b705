"""JSON that every reader reads alike, or not at all (RFC 8259, RFC 7493).

RFC 8259 leaves open what becomes of a name that comes twice, of half a surrogate pair, of numbers
like NaN that some writers write. Two readers may then see two values in one text, and the one who
decides would not have decided on what is carried out. All that is refused here.
"""

from __future__ import annotations

import json
import re
from typing import Any, Final

# The limit of System.Text.Json; others take more. Deeper is an attack on somebody's stack.
MAX_DEPTH: Final = 64

_STRING: Final = re.compile(rb'"(?>[^"\\]+|\\.)*+"', re.DOTALL)
_NO_BRACKETS: Final = bytes(set(range(256)) - set(b"[]{}"))
_ONE_KIND: Final = bytes.maketrans(b"{}", b"[]")
_SURROGATE: Final = re.compile(rb"\\u[dD][89a-fA-F]")


class NotStrict(ValueError):  # noqa: N818 - reads as what it is
    """Text that is no JSON, or that two readers could read differently.

    The message says what is wrong and never what the text holds.
    """


def read_strict(raw: bytes) -> Any:
    """The value of a whole JSON text. Raises `NotStrict`."""
    # RFC 8259 §8.1: UTF-8, and no byte order mark is added; some readers skip one, some do not.
    if raw.startswith(b"\xef\xbb\xbf"):
        raise NotStrict("a byte order mark")
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as undecodable:
        raise NotStrict("not UTF-8") from undecodable
    try:
        value = _DECODER.decode(text)
    except json.JSONDecodeError as invalid:
        raise NotStrict(f"not JSON, at character {invalid.pos}") from invalid
    except RecursionError as too_deep:
        raise NotStrict("nested too deeply") from too_deep
    except NotStrict:
        raise
    except ValueError as too_long:
        # Python turns no text of more than 4,300 digits into an integer; few readers do.
        raise NotStrict("an integer that is too long") from too_long
    if raw.count(b"[") + raw.count(b"{") > MAX_DEPTH:
        _check_depth(raw)
    if _SURROGATE.search(raw) is not None:
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as unencodable:
            # RFC 7493 §2.1: readers drop it, replace it or keep it.
            raise NotStrict("half a surrogate pair") from unencodable
    return value


def _check_depth(raw: bytes) -> None:
    """Peel the brackets off, one level after the other. ``raw`` is JSON."""
    brackets = _STRING.sub(b"", raw).translate(_ONE_KIND, _NO_BRACKETS)
    for _ in range(MAX_DEPTH):
        brackets = brackets.replace(b"[]", b"")
        if not brackets:
            return
    raise NotStrict("nested too deeply")


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        # RFC 8259 §4: the first one, the last one, or an error; all are in use.
        raise NotStrict("a name that occurs twice in one object")
    return made


def _constant(_text: str) -> Any:
    raise NotStrict("NaN or Infinity")  # RFC 8259 §6


_DECODER: Final = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)

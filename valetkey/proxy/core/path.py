"""The path of a call: refused where two readers could differ, otherwise split for matching.

What is decided on and what is forwarded are the same bytes. Matching sees each segment decoded
once, as the target will see it; a path in which decoding could be done differently (dot segments,
encoded delimiters, a second decoding that changes something, invalid UTF-8, a backslash, an
empty segment) is refused instead of being repaired.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final
from urllib.parse import unquote_to_bytes

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

# RFC 3986 §3.3 without percent-encoding: segments of pchar, none of them empty but the last, none
# a dot segment (also not with a path parameter behind it: some servers strip that, and `..;x`
# would be `..` to them, and `/;x/` an empty segment).
_PLAIN: Final = re.compile(
    r"(?:/(?!\.{0,2};|\.{1,2}(?:/|\Z))[A-Za-z0-9\-._~!$&'()*+,;=:@]+)*(?:/)?"
)
_ENCODED: Final = re.compile(r"(?:/(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})+)*(?:/)?")
# RFC 3986 §3.4 plus what browsers and libraries send unencoded; never a space, control or `#`.
_QUERY: Final = re.compile(r"[\x21\x22\x24-\x7e]*")
# What a decoded segment may not hold: separators of some system, controls (C0, DEL, C1).
_HIDDEN: Final = re.compile(r"[/\\\x00-\x1f\x7f-\x9f]")

_NAME_END: Final = re.compile(r"[\[\x00]")
_NAME_SEPARATOR: Final = re.compile(r"[-. ]")

# Also with spaces around, which some file systems cut off.
_DOTS: Final = frozenset({".", ".."})
MAX_SEGMENTS: Final = 128


def split_path(path: str) -> list[str]:
    """The decoded segments of an origin-form path (no query). Raises `CallerError`."""
    if "%" not in path:
        if not path or _PLAIN.fullmatch(path) is None:
            raise _ambiguous("not a plain RFC 3986 path")
        segments = path.split("/")
    else:
        if _ENCODED.fullmatch(path) is None:
            raise _ambiguous("not an RFC 3986 path")
        segments = [_decode(segment) for segment in path.split("/")]
    del segments[0]
    if len(segments) > MAX_SEGMENTS:
        raise _ambiguous("more segments than any route can have")
    return segments


def lax_segment(segment: str, ignores_case: bool) -> str:
    """A decoded segment as a target compares it that cuts path parameters and may fold case.

    Beyond ASCII, letters are the same that any folding makes the same (Unicode §3.13; `s` and the
    long s by their capitals, `k` and the Kelvin sign, fullwidth forms).
    """
    if ";" in segment:
        segment = segment.partition(";")[0]
    if not ignores_case:
        return segment
    if segment.isascii():
        return segment.lower()
    return unicodedata.normalize("NFKC", segment).upper().casefold()


def check_query(query: str) -> None:
    """Refuse bytes that do not belong into a query. Raises `CallerError`."""
    if _QUERY.fullmatch(query) is None:
        raise CallerError(codes.REQUEST_MALFORMED, "the query holds characters outside RFC 3986")


def drop_parameters(
    query: str, credentials: frozenset[str], overrides: frozenset[str]
) -> tuple[str, list[str]]:
    """The query without credential parameters (RFC 6750 §2.3), and the names that were dropped.

    Names are compared decoded and case-insensitively, for `;` as separator too, and in PHP's
    spelling, since a target may read them so. Raises `CallerError` for one of ``overrides``.
    """
    kept: list[str] = []
    dropped: list[str] = []
    for part in query.split("&"):
        names = [_parameter_name(piece) for piece in part.split(";")]
        if not overrides.isdisjoint(names):
            raise CallerError(codes.REQUEST_OVERRIDE, "a parameter that stands for the method")
        found = [name for name in names if name in credentials]
        if found:
            dropped.extend(found)
        else:
            kept.append(part)
    return "&".join(kept), dropped


def _parameter_name(part: str) -> str:
    name = part.partition("=")[0]
    if name.isidentifier():  # nearly all are
        return name.lower()
    name = name.replace("+", " ")
    if "%" in name:
        name = unquote_to_bytes(name).decode("latin-1")
    # PHP: a name ends at `[` or NUL; `.` and ` ` are `_`. A hyphen counts like one, as in headers.
    bare = _NAME_END.split(name.strip(), 1)[0]
    return _NAME_SEPARATOR.sub("_", bare.lower())


def _decode(segment: str) -> str:
    try:
        text = unquote_to_bytes(segment).decode("utf-8")
    except UnicodeDecodeError as error:
        raise _ambiguous("a segment is not UTF-8") from error
    if _HIDDEN.search(text):
        raise _ambiguous("an encoded delimiter or control character")
    bare, parameter, _ = text.partition(";")
    if bare.strip(" ") in _DOTS or (parameter and not bare):
        raise _ambiguous("an encoded dot segment, or nothing but parameters")
    if unquote_to_bytes(text) != text.encode():
        raise _ambiguous("decoding it twice would change it")
    if not text.isascii():
        # Fullwidth forms and their like (UAX #15), which some file systems and frameworks fold.
        folded = unicodedata.normalize("NFKC", text)
        if "/" in folded or "\\" in folded or folded.partition(";")[0].strip(" ") in _DOTS:
            raise _ambiguous("a separator or dot segment in other characters")
    return text


def _ambiguous(reason: str) -> CallerError:
    return CallerError(codes.REQUEST_AMBIGUOUS_PATH, reason)

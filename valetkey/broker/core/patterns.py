"""Patterns for paths, and the one question that policy asks of each.

Invariants:

- A path pattern includes another only if it includes *every* path that the other one matches.
  What can't be shown to be included is not included.
- Paths compare byte by byte, undecoded and case-sensitive. Paths that two servers might read
  differently (dot segments, encoded delimiters, double encoding) are no paths here at all.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final
from urllib.parse import unquote_to_bytes

from valetkey.contracts.subjects import PatternInvalid, WorkloadPattern, patterns_of

# Workloads and paths are the two halves of a grant, so both patterns can be had here.
__all__ = ["MAX_PATH", "PathPattern", "PatternInvalid", "WorkloadPattern", "patterns_of"]

# Linux PATH_MAX is 4096; the sidecar's own request-line limit is larger, a policy path is not.
MAX_PATH: Final = 2048

# RFC 3986 §3.3 pchar
_PATH_SEGMENT: Final = re.compile(r"(?:[A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})*")
_VARIABLE: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\}")
_REST: Final = re.compile(r"\{[A-Za-z_][A-Za-z0-9_]*\*\}")
# %2f %5c %00 change where a segment ends for some readers, %25XX invites a second decode.
_ENCODED_TRAP: Final = re.compile(r"%(?:2f|5c|00|25[0-9a-f]{2})", re.IGNORECASE)
# RFC 3986 §2.3: escapes of unreserved characters.
_NEEDLESS_ESCAPE: Final = re.compile(
    r"%(?:2[de]|3[0-9]|4[1-9a-f]|5[0-9af]|6[1-9a-f]|7[0-9ae])", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class PathPattern:
    """A path as segments: a literal, or ``None`` for one non-empty segment of any content.

    With ``rest`` anything may follow the segments after one more slash, nothing included.
    A literal path is a pattern without variables.
    """

    segments: tuple[str | None, ...]
    rest: bool

    @classmethod
    def parse(cls, text: str) -> PathPattern:
        """``/api/tickets/{id}``, ``/v1/{rest*}``. Raises `PatternInvalid`."""
        *parts, last = _split(text)
        rest = _REST.fullmatch(last) is not None
        if not rest:
            parts.append(last)
        return cls(
            tuple(None if _VARIABLE.fullmatch(part) else _literal(part) for part in parts), rest
        )

    @classmethod
    def literal(cls, text: str) -> PathPattern:
        """A path that stands for itself. Raises `PatternInvalid`."""
        return cls(tuple(_literal(part) for part in _split(text)), rest=False)

    def includes(self, other: PathPattern) -> bool:
        """Whether every path that ``other`` matches is matched here too."""
        ours, theirs = self.segments, other.segments
        if self.rest:
            # {rest*} needs the slash before it: the other must go on after our segments.
            if len(theirs) + other.rest < len(ours) + 1:
                return False
        elif other.rest or len(theirs) != len(ours):
            return False
        return all(
            mine == yours if mine is not None else yours != ""
            for mine, yours in zip(ours, theirs, strict=False)
        )

    def may_meet(self, other: PathPattern) -> bool:
        """Whether some path is matched by both, to any reader.

        Read laxly: without case, the last slash and path parameters, all escapes decoded. Two
        patterns that never meet by this are apart for every target.
        """
        ours, theirs = _laxly(self.segments), _laxly(other.segments)
        if len(ours) > len(theirs) and not other.rest:
            return False
        if len(theirs) > len(ours) and not self.rest:
            return False
        return all(
            mine == yours or not mine or not yours
            for mine, yours in zip(ours, theirs, strict=False)
        )

    @property
    def plain(self) -> str | None:
        """The one path that is matched, in the form that has no other spelling.

        ``None`` where there are many paths, where one has parameters (a target may cut them), and
        where escapes stand for what needs none (RFC 3986 §6.2.2.2).
        """
        text = "/" + "/".join(segment or "" for segment in self.segments)
        if self.rest or None in self.segments or ";" in text or _NEEDLESS_ESCAPE.search(text):
            return None
        return text

    def __str__(self) -> str:
        parts = ["{}" if segment is None else segment for segment in self.segments]
        return "/" + "/".join([*parts, "{*}"] if self.rest else parts)


def _laxly(segments: tuple[str | None, ...]) -> list[str | None]:
    """Segments as a target may compare them that decodes, cuts parameters and folds case."""
    read = [None if segment is None else _fold(segment) for segment in segments]
    return read[:-1] if read and read[-1] == "" else read


def _fold(segment: str) -> str:
    text = unquote_to_bytes(segment).decode(errors="replace").partition(";")[0]
    return unicodedata.normalize("NFKC", text).upper().casefold()


def _split(text: str) -> list[str]:
    if not text.startswith("/") or len(text) > MAX_PATH:
        raise PatternInvalid("a path begins with / and is at most 2048 characters long")
    parts = text[1:].split("/")
    if "" in parts[:-1]:
        raise PatternInvalid("a path has no empty segments")
    return parts


def _literal(segment: str) -> str:
    if not _PATH_SEGMENT.fullmatch(segment):
        raise PatternInvalid("a segment has characters outside RFC 3986")
    if _ENCODED_TRAP.search(segment):
        raise PatternInvalid("a segment has an encoded delimiter or a double encoding")
    if unquote_to_bytes(segment.partition(";")[0]) in {b".", b".."}:
        raise PatternInvalid("a path has no dot segments")
    return segment

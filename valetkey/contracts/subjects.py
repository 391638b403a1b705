"""Subjects as settings and grants write them: exact, or with one star for one segment.

A pattern is exact, or has one ``*`` that stands for exactly one segment (segments are split at
``/`` and ``:``, so that it fits SPIFFE IDs and ``system:serviceaccount:ns:name``).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

# The SPIFFE-ID path segment character set; Kubernetes names are a subset.
_ID_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_ID_SEPARATORS: Final = re.compile(r"[/:]")


class PatternInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Text that is no pattern, or no plain path."""


@dataclass(frozen=True, slots=True)
class WorkloadPattern:
    """An exact subject, or everything between ``prefix`` and ``suffix`` that is one segment."""

    text: str
    prefix: str
    suffix: str
    exact: bool

    @classmethod
    def parse(cls, text: str) -> WorkloadPattern:
        """Raises `PatternInvalid`."""
        if not text or text.strip() != text:
            raise PatternInvalid("a workload is a non-empty identifier without outer spaces")
        if "*" not in text:
            return cls(text, text, "", exact=True)
        if text.count("*") > 1 or "*" not in _ID_SEPARATORS.split(text):
            raise PatternInvalid("only one * is allowed, and it must be a whole segment")
        prefix, _, suffix = text.partition("*")
        if not prefix:
            raise PatternInvalid("the first segment can't be a *")
        return cls(text, prefix, suffix, exact=False)

    def matches(self, subject: str) -> bool:
        """Whether ``subject`` is one of the workloads meant."""
        if self.exact:
            return subject == self.text
        if not subject.startswith(self.prefix) or not subject.endswith(self.suffix):
            return False
        middle = subject[len(self.prefix) : len(subject) - len(self.suffix)]
        return len(self.prefix) + len(self.suffix) < len(subject) and _is_variable(middle)


def patterns_of(subject: str) -> Iterator[str]:
    """The text of every workload pattern that matches ``subject``, the exact one first.

    `WorkloadPattern.matches` says the same of each: one segment that a ``*`` may stand for, the
    first one excepted. A subject that has a ``*`` itself is meant by none.
    """
    if "*" in subject:
        return
    yield subject
    begin = 0
    for separator in (*_ID_SEPARATORS.finditer(subject), None):
        end = len(subject) if separator is None else separator.start()
        if begin and _is_variable(subject[begin:end]):
            yield f"{subject[:begin]}*{subject[end:]}"
        begin = end + 1


def _is_variable(segment: str) -> bool:
    return _ID_SEGMENT.fullmatch(segment) is not None and segment not in {".", ".."}

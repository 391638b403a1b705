"""SPIFFE IDs, read strictly (SPIFFE-ID §2): what is not written in the one way is no ID."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

SCHEME: Final = "spiffe://"
MAX_LENGTH: Final = 2048  # SPIFFE-ID §2.3
_MAX_NAME: Final = 255
# §2.1: lower case, no user, no port, nothing percent-encoded
_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]+")
_SEGMENT: Final = re.compile(r"[A-Za-z0-9._-]+")  # §2.2


class SpiffeIdInvalid(ValueError):  # noqa: N818 - reads as what it is
    """Text that is no SPIFFE ID."""


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """``trust_domain`` is ``spiffe://NAME``, ``path`` is empty or begins with a slash."""

    trust_domain: str
    path: str

    @classmethod
    def parse(cls, text: str) -> SpiffeId:
        """Raises `SpiffeIdInvalid`; the message never holds the text."""
        if len(text) > MAX_LENGTH:
            raise SpiffeIdInvalid("a SPIFFE ID has at most 2048 bytes")
        if not text.startswith(SCHEME):
            raise SpiffeIdInvalid("a SPIFFE ID begins with spiffe://")
        name, slash, path = text[len(SCHEME) :].partition("/")
        if len(name) > _MAX_NAME or not _TRUST_DOMAIN.fullmatch(name):
            raise SpiffeIdInvalid(
                "a trust domain has lower-case letters, digits, dots, dashes and underscores alone"
            )
        for segment in path.split("/") if slash else ():
            if not _SEGMENT.fullmatch(segment) or segment in {".", ".."}:
                raise SpiffeIdInvalid(
                    "a path segment has letters, digits, dots, dashes and underscores, and is "
                    "neither empty nor relative"
                )
        return cls(SCHEME + name, slash + path)

    def __str__(self) -> str:
        return self.trust_domain + self.path

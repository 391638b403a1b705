"""Canaries: secrets of the tests, and the proof that none of them got out.

Every secret that a test makes is registered here (`Idp.mint` does so by itself). At the end of
the session every file under pytest's temporary directory (program outputs, logs, metrics, spools
and databases among them) is searched for each of them, as is all output that pytest captured and
every error body and metrics page that the test process read over aiohttp. A secret may lie only
in files that were allowed for it: its own.
"""

from __future__ import annotations

import base64
import re
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

# Shorter texts would be found by chance.
_LEAST: Final = 16
# A text of _LEAST holds a whole block, wherever in the content's blocks it begins.
_BLOCK: Final = 8
_RUN: Final = re.compile(rb"[A-Za-z0-9_-]{32,}")
_JWT: Final = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.([A-Za-z0-9_-]{32,})")


@dataclass(frozen=True, slots=True)
class Leak:
    """A secret where it must not be. The secret's name stands for it, never its value."""

    name: str
    place: str

    def __str__(self) -> str:
        return f"{self.name} in {self.place}"


class Canaries:
    """All secrets of a test session."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: dict[bytes, str] = {}
        self._windows: dict[bytes, set[bytes]] = {}
        self._signatures: dict[bytes, str] = {}
        self._allowed: set[Path] = set()
        self.leaks: list[Leak] = []

    def add(self, secret: str | bytes, *, name: str, allow: Iterable[Path] = ()) -> None:
        """Register a secret. ``name`` says in a report what leaked; ``allow`` are its own files.

        A JWT is recognised by its signature, which is what makes it one; bytes also in
        hexadecimal and base64.
        """
        with self._lock:
            jwt = _JWT.fullmatch(secret) if isinstance(secret, str) else None
            if jwt:
                self._signatures[jwt[1].encode()] = name
            else:
                for form in _forms(secret):
                    if len(form) < _LEAST:
                        raise ValueError(f"{name} is too short to be looked for")
                    self._texts[form] = name
                    for start in range(_BLOCK):
                        self._windows.setdefault(form[start : start + _BLOCK], set()).add(form)
        for path in allow:
            self.allow(path)

    def allow(self, path: Path) -> None:
        """This file (or everything below this directory) is where secrets belong."""
        with self._lock:
            self._allowed.add(path.resolve())

    def found_in(self, content: bytes) -> list[str]:
        """Names of the secrets that ``content`` holds."""
        content = content.rstrip(b"\0")  # preallocated segments end in zeros
        with self._lock:
            # Wherever a text begins, one of its first windows is a whole block of the content.
            suspects: set[bytes] = set()
            for block in self._windows.keys() & _blocks(content):
                suspects |= self._windows[block]
            names = sorted(self._texts[text] for text in suspects if text in content)
            if self._signatures:
                names += [
                    self._signatures[run]
                    for run in set(_RUN.findall(content))
                    if run in self._signatures
                ]
        return names

    def check(self, content: bytes | str, place: str) -> None:
        """Record every secret in ``content``; the session fails at its end and says where."""
        raw = content.encode() if isinstance(content, str) else content
        for name in self.found_in(raw):
            leak = Leak(name, place)
            if leak not in self.leaks:
                self.leaks.append(leak)

    def check_tree(self, root: Path) -> None:
        """`check` every file below ``root`` that is not allowed."""
        for path in sorted(root.rglob("*")):
            if path.is_symlink() or not path.is_file() or self._is_allowed(path.resolve()):
                continue
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # removed meanwhile
                continue
            self.check(content, str(path.relative_to(root)))

    def _is_allowed(self, path: Path) -> bool:
        return path in self._allowed or not self._allowed.isdisjoint(path.parents)


def _blocks(content: bytes) -> set[bytes]:
    """The content cut into blocks, each once: thousands of texts are looked for in one pass."""
    return {content[at : at + _BLOCK] for at in range(0, len(content), _BLOCK)}


def _forms(secret: str | bytes) -> list[bytes]:
    if isinstance(secret, str):
        return [secret.encode()]
    plain = base64.b64encode(secret).rstrip(b"=")
    return [secret, secret.hex().encode(), plain, plain.translate(bytes.maketrans(b"+/", b"-_"))]


# One per test process: a helper deep inside a test registers what it makes without a fixture.
CANARIES: Final = Canaries()

"""Programs in Go that tests start, built from their modules.

What they are built from is pinned and hashed in ``requirements/go``: one set of versions for all, so
that what they share is compiled once. Go keeps what it compiled, so a second build takes seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

_REPOSITORY: Final = Path(__file__).resolve().parents[2]
_PINS: Final = _REPOSITORY / "requirements/go"


def pinned(module: str) -> str:
    """The version of a module: ``v1.37.2``."""
    found = re.search(
        rf"^\t{re.escape(module)} (\S+)", (_PINS / "go.mod").read_text(), re.MULTILINE
    )
    assert found is not None, f"{_PINS}/go.mod has no {module}"
    return found[1]


class Built:
    """A directory of the repository (``.helm``) with all that is built, by the version of what it is of.

    ``more`` is what else the result depends on, beside the pins.
    """

    def __init__(self, name: str, more: str = "") -> None:
        pins = b"".join((_PINS / file).read_bytes() for file in ("go.mod", "go.sum"))
        self._root = _REPOSITORY / name
        version = hashlib.sha256(pins + more.encode()).hexdigest()[:16]
        self.place = self._root / version  # put here at last, so that it is whole

    @property
    def there(self) -> bool:
        return self.place.is_dir()

    def program(self, name: str) -> Path:
        return self.place / "bin" / name

    def make(self, fill: Callable[[Path], None]) -> None:
        """Have ``fill`` fill it, unless it is there; what is of other versions goes."""
        self._root.mkdir(exist_ok=True)
        with (self._root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.there:  # nobody else made it meanwhile
                with tempfile.TemporaryDirectory(prefix="build-", dir=self._root) as name:
                    made = Path(name) / "made"
                    fill(made)
                    made.rename(self.place)
                for old in self._root.iterdir():
                    if old.is_dir() and old != self.place:
                        shutil.rmtree(old)


def build(package: str, program: Path, flags: str = "") -> None:
    """``flags`` are the linker's."""
    command = ["go", "build", "-mod=readonly", "-trimpath", "-ldflags", f"-s -w {flags}".strip()]
    subprocess.run([*command, "-o", program, package], check=True, cwd=_PINS)


def fetched(module: str) -> Path:
    """The files of ``MODULE@VERSION``; Go verifies its checksum."""
    fetched = subprocess.run(
        ["go", "mod", "download", "-json", module],
        check=True,
        stdout=subprocess.PIPE,
        cwd=_PINS.parent,  # outside of a module: what is read is nothing that the pins are for
    )
    return Path(json.loads(fetched.stdout)["Dir"])

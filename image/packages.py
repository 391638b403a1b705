"""Which Debian packages files come from, as dpkg's own database says."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

_DATABASE: Final = Path("/var/lib/dpkg")


@dataclass(frozen=True, slots=True)
class Package:
    """One installed package. ``stanza`` is its paragraph of dpkg's status file."""

    name: str
    stanza: str

    @property
    def licence(self) -> Path:
        return Path(f"/usr/share/doc/{self.name}/copyright")

    def described(self) -> dict[str, str]:
        """What a bill of materials says of it."""
        version = self._field("Version")
        source = self._field("Source") or self.name
        # "Source: glibc (2.36-1)" where the version is another than the package's.
        named = re.fullmatch(r"(\S+)(?: \((\S+)\))?", source)
        assert named is not None, source
        return {
            "name": self.name,
            "version": version,
            "architecture": self._field("Architecture"),
            "source": named[1],
            "source_version": named[2] or version,
        }

    def _field(self, name: str) -> str:
        found = re.search(rf"^{name}: (.*)$", self.stanza, re.MULTILINE)
        return found[1] if found else ""


class Packages:
    """What dpkg knows: packages, and whose each path is."""

    def __init__(self, packages: dict[str, Package], owners: dict[str, str]) -> None:
        self._packages = packages
        self._owners = owners

    @classmethod
    def installed(cls, database: Path = _DATABASE) -> Self:
        stanzas = (database / "status").read_text(encoding="utf-8").split("\n\n")
        packages = {}
        for stanza in stanzas:
            if name := re.search(r"^Package: (.*)$", stanza, re.MULTILINE):
                packages[name[1]] = Package(name[1], stanza.strip("\n") + "\n")
        owners = {
            path: listing.stem.partition(":")[0]
            for listing in sorted((database / "info").glob("*.list"))
            for path in listing.read_text(encoding="utf-8").splitlines()
        }
        return cls(packages, owners)

    def owner(self, path: Path) -> str | None:
        """The package's name. Some lists have the paths of before /lib moved into /usr."""
        for spelt in (str(path), f"/usr{path}", str(path).removeprefix("/usr")):
            if spelt in self._owners and not Path(spelt).is_dir():
                return self._owners[spelt]
        return None

    def of(self, paths: Iterable[Path]) -> list[Package]:
        """The packages of these files, by name."""
        names = {self.owner(path) for path in paths} - {None}
        return [self._packages[name] for name in sorted(filter(None, names))]

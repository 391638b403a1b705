"""``python -m image.rootfs VENV OUT``: everything that the image has in it, and nothing else.

Run in the build stage, by the base's own interpreter, with the standard library alone. Out of a
base with a shell and a package manager it takes the interpreter, its library without what no
program here uses, the virtual environment, and the shared libraries that those load; so the image
is ``FROM scratch``, and no list of files has to be kept.

Written below OUT, one directory for each layer of the image: ``system``, ``libraries`` (what
changes with requirements/) and ``valetkey`` (what changes with each commit), and ``packages.json``:
which of the base's packages they come from, for the bill of materials (image/sbom.py).

Every file has the time SOURCE_DATE_EPOCH, and bytecode is of the kind that names no time: the same
input gives the same bytes.
"""

from __future__ import annotations

import compileall
import json
import os
import platform
import py_compile
import re
import shutil
import ssl
import subprocess
import sys
import sysconfig
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from image.packages import Packages

UID: Final = 64_707  # the chart's and the injector's default, too
# Of the standard library: what is for developers, and extensions for which libraries would come
# along that nothing else loads.
_UNUSED: Final = (
    r"__pycache__|test|tests|idlelib|tkinter|turtle\.py|turtledemo|ensurepip|lib2to3|pydoc_data|"
    r"distutils|curses|dbm|site-packages|dist-packages|config-.*|EXTERNALLY-MANAGED|"
    r"(_tkinter|_curses|_curses_panel|_dbm|_gdbm|_crypt|readline|nis|ossaudiodev|spwd)\..*so|"
    r"(_test|_ctypes_test|_xx|xx).*\.so"
)
# Of what is installed: tests, and the sources that extensions were made of.
_UNUSED_LIBRARY: Final = r"__pycache__|tests?|.*\.(pyx|pxd|pxi|c|h|cpp|hpp)"
_ROOTS: Final = Path("/etc/ssl/certs/ca-certificates.crt")
# Loaded by name at run time: pthread_exit aborts without it, and no ELF header says so.
_BY_NAME: Final = ("libgcc_s.so.1",)
_FILES: Final = {
    "etc/passwd": f"root:x:0:0:root:/:/sbin/nologin\nvaletkey:x:{UID}:{UID}::/:/sbin/nologin\n",
    "etc/group": f"root:x:0:\nvaletkey:x:{UID}:\n",
    "etc/nsswitch.conf": "passwd: files\ngroup: files\nhosts: files dns\n",
}
# Where container engines mount, so that none has to make a directory on a read-only root.
_MOUNTED: Final = ("dev", "proc", "sys", "run", "etc/valetkey")


class Tree:
    """A layer: files below ``root``, at the paths that they have here."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.taken: set[Path] = set()
        root.mkdir(parents=True)

    def take(self, path: Path) -> None:
        """A file or link, with every link on the way to it as the base has it."""
        for prefix in (*reversed(path.parents), path):
            if not prefix.is_symlink():
                continue
            link = self.at(prefix)
            target = prefix.readlink()
            if not link.is_symlink():
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to(target)
                self.taken.add(prefix)
            onwards = Path(os.path.normpath(prefix.parent / target))
            self.take(onwards / path.relative_to(prefix))
            return
        if not path.is_dir():
            self.at(path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, self.at(path))
            # Modules that are scripts as well are none here, and some wheels have all files run.
            runs = path.parent.name == "bin" or re.search(r"\.so[.\d]*$", path.name) is not None
            self.at(path).chmod(0o755 if runs else 0o644)
            self.taken.add(path)

    def take_all(self, directory: Path, unused: str) -> None:
        """What is below a directory, except names that match."""
        for found in sorted(directory.iterdir()):
            if re.fullmatch(unused, found.name):
                continue
            if found.is_dir() and not found.is_symlink():
                self.take_all(found, unused)
            else:
                self.take(found)

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def at(self, path: Path) -> Path:
        return self.root / path.relative_to("/")

    def programs(self) -> list[Path]:
        """The ELF files among what was taken."""
        return sorted(path for path in self.taken if not path.is_symlink() and _is_program(path))


def _is_program(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"\x7fELF"


def needed(programs: Iterable[Path]) -> set[Path]:
    """The shared libraries that these load, as the loader finds them."""
    found: set[Path] = set()
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=False)
        for line in listed.stdout.splitlines():
            if "not found" in line:
                raise SystemExit(f"{program}: {line.strip()}")
            if path := re.search(r"(?:^|=>)\s+(/\S+) \(0x", line):
                found.add(Path(path[1]))
    cached = subprocess.run(["ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    for name in _BY_NAME:
        if path := re.search(rf"\t{re.escape(name)} .*=> (\S+)", cached):
            found.add(Path(path[1]))
        elif not any(library.name == name for library in found):
            raise SystemExit(f"the base has no {name}")
    return found


def system(tree: Tree, environment: list[Path]) -> None:
    """Interpreter, library, shared libraries of both and of the environment, roots, users."""
    for name in ("python3", f"python3.{sys.version_info.minor}"):
        interpreter = Path(sys.base_prefix) / "bin" / name
        if interpreter.exists():
            tree.take(interpreter)
    tree.take_all(Path(sysconfig.get_path("stdlib")), _UNUSED)
    inside = set(environment)
    for library in sorted(needed([*tree.programs(), *environment])):
        if library not in inside:
            tree.take(library)
    if not _ROOTS.is_file():
        raise SystemExit(f"the base has no {_ROOTS}: install ca-certificates there")
    tree.take(_ROOTS)
    paths = ssl.get_default_verify_paths()
    default = Path(paths.openssl_cafile)
    if default != _ROOTS and not tree.at(default).exists():
        tree.at(default).parent.mkdir(parents=True, exist_ok=True)
        tree.at(default).symlink_to(_ROOTS)
    for file in (default.parent / "openssl.cnf", Path("/etc/os-release"), Path("/etc/ld.so.conf")):
        if file.exists():
            tree.take(file)
    if Path("/etc/ld.so.conf.d").is_dir():
        tree.take_all(Path("/etc/ld.so.conf.d"), "")
    subprocess.run(["ldconfig", "-X", "-r", tree.root], check=True)
    for path, text in _FILES.items():
        tree.write(path, text)
    for path in _MOUNTED:
        (tree.root / path).mkdir(parents=True, exist_ok=True)
    (tree.root / "tmp").mkdir()
    (tree.root / "tmp").chmod(0o1777)


def environment(venv: Path, libraries: Tree, own: Tree) -> None:
    """The environment: this package apart from what it was installed with."""
    site = Path(sysconfig.get_path("purelib", "venv", {"base": str(venv)}))
    libraries.take(venv / "pyvenv.cfg")
    for link in ("python", "python3", f"python3.{sys.version_info.minor}"):
        # What it leads to is in another layer.
        path = libraries.at(venv / "bin" / link)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to((venv / "bin" / link).readlink())
    [record] = site.glob("valetkey-*.dist-info/RECORD")
    names = {line.split("/")[0].split(",")[0] for line in record.read_text().splitlines()}
    for found in sorted(site.iterdir()):
        if re.fullmatch(_UNUSED_LIBRARY, found.name):
            continue
        tree = own if found.name in names else libraries
        if found.is_dir():
            tree.take_all(found, _UNUSED_LIBRARY)
        else:
            tree.take(found)
    own.take(venv / "bin/valetkey")
    state = own.root / "var/lib/valetkey"
    state.mkdir(parents=True)
    state.chmod(0o700)
    os.chown(state, UID, UID)


def stripped(tree: Tree) -> None:
    """Without symbols for debuggers, as Debian's own packages are: a fifth of all."""
    programs = [tree.at(path) for path in tree.programs()]
    if programs:
        subprocess.run(["strip", "--strip-unneeded", *programs], check=True)


def compiled(tree: Tree) -> None:
    """Bytecode for all sources: a read-only root can't have it written later."""
    done = compileall.compile_dir(
        tree.root,
        maxlevels=100,
        stripdir=str(tree.root),
        prependdir="/",
        quiet=1,
        invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH,
    )
    if not done:
        raise SystemExit(f"not all of {tree.root} could be compiled")


def dated(root: Path, epoch: int) -> None:
    """One time for everything, directories last."""
    for directory, names, files in os.walk(root, topdown=False):
        for name in (*names, *files):
            os.utime(Path(directory) / name, (epoch, epoch), follow_symlinks=False)
    os.utime(root, (epoch, epoch))


def main(arguments: list[str]) -> int:
    venv, out = map(Path, arguments)
    epoch = int(os.environ["SOURCE_DATE_EPOCH"])
    libraries, own, base = (Tree(out / name) for name in ("libraries", "valetkey", "system"))
    environment(venv, libraries, own)
    system(base, [*libraries.programs(), *own.programs()])
    installed = Packages.installed()
    used = installed.of([*base.taken, Path("/usr/share/doc/ca-certificates/copyright")])
    for package in used:
        base.write(f"var/lib/dpkg/status.d/{package.name}", package.stanza)
        if package.licence.exists():
            base.take(package.licence)
    for tree in (base, libraries, own):
        stripped(tree)
        compiled(tree)
        dated(tree.root, epoch)
    # An interpreter that no package brought was built by whoever made the base.
    packaged = installed.owner(Path(sys.executable).resolve()) is not None
    packages = {
        "packages": [package.described() for package in used],
        "python": None if packaged else platform.python_version(),
    }
    (out / "packages.json").write_text(json.dumps(packages, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

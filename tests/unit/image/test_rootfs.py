"""What is taken out of the base, with the links on the way to it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from image import rootfs
from image.rootfs import Tree


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base like Debian's: /lib is in /usr, and a library has a name beside its own."""
    base = tmp_path / "base"
    (base / "usr/lib").mkdir(parents=True)
    (base / "lib").symlink_to("usr/lib")
    (base / "usr/lib/libx.so.1.2").write_bytes(b"\x7fELF")
    (base / "usr/lib/libx.so.1").symlink_to("libx.so.1.2")
    (base / "usr/lib/absolute").symlink_to(base / "usr/lib/libx.so.1")
    return base


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    return Tree(tmp_path / "tree")


def test_a_file_comes_with_all_that_leads_to_it(base: Path, tree: Tree) -> None:
    tree.take(base / "lib/libx.so.1")
    made = tree.at(base)
    assert (made / "lib").readlink() == Path("usr/lib")
    assert (made / "usr/lib/libx.so.1").readlink() == Path("libx.so.1.2")
    assert (made / "lib/libx.so.1").read_bytes() == b"\x7fELF"
    assert tree.programs() == [base / "usr/lib/libx.so.1.2"]
    tree.take(base / "lib/libx.so.1")  # twice is once
    assert len(tree.taken) == 3


def test_links_to_absolute_places_stay_what_they_are(base: Path, tree: Tree) -> None:
    tree.take(base / "usr/lib/absolute")
    assert tree.at(base / "usr/lib/absolute").readlink() == base / "usr/lib/libx.so.1"
    assert tree.at(base / "usr/lib/libx.so.1.2").is_file()


def test_what_is_unused_stays_out_and_modules_do_not_run(base: Path, tree: Tree) -> None:
    library = base / "usr/lib/python3"
    for path in (
        "test/a.py",
        "email/test.py",
        "email/__pycache__/a.pyc",
        "readline.cpython-311.so",
    ):
        (library / path).parent.mkdir(parents=True, exist_ok=True)
        (library / path).touch()
    for name in ("cProfile.py", "ld.so.conf", "x.cpython-311.so"):
        (library / name).touch(mode=0o755)
    tree.take_all(library, rootfs._UNUSED)
    made = tree.at(library)
    found = {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()}
    assert found == {"email/test.py", "cProfile.py", "ld.so.conf", "x.cpython-311.so"}
    assert (made / "cProfile.py").stat().st_mode & 0o777 == 0o644
    assert (made / "ld.so.conf").stat().st_mode & 0o777 == 0o644
    assert (made / "x.cpython-311.so").stat().st_mode & 0o777 == 0o755


def test_all_has_one_time_and_bytecode_that_names_none(tree: Tree) -> None:
    tree.write("a/b.py", "x = 1\n")
    (tree.root / "link").symlink_to("nowhere")
    rootfs.compiled(tree)
    rootfs.dated(tree.root, 1_790_000_000)
    for path in (tree.root, *tree.root.rglob("*")):
        assert path.lstat().st_mtime == 1_790_000_000, path
    cached = tree.root / f"a/__pycache__/b.{sys.implementation.cache_tag}.pyc"
    assert cached.read_bytes()[4:8] == b"\x01\0\0\0"  # PEP 552: by hash, and not checked
    assert b"/a/b.py" in cached.read_bytes()
    assert os.fsencode(tree.root) not in cached.read_bytes()


def test_sources_that_can_not_be_compiled_stop_the_build(tree: Tree) -> None:
    tree.write("a.py", "x =\n")
    with pytest.raises(SystemExit, match="could be compiled"):
        rootfs.compiled(tree)


def test_the_loader_says_what_a_program_needs() -> None:
    names = {path.name for path in rootfs.needed([Path(sys.executable).resolve()])}
    assert {"libc.so.6", "libgcc_s.so.1"} <= names

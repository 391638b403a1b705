"""dpkg's database, as the build reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from image.packages import Packages

STATUS = """Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc (2.36-1)
Version: 2.36-1+b1
Description: the C library
 with a second line

Package: ca-certificates
Architecture: all
Version: 20250419
"""


@pytest.fixture
def packages(tmp_path: Path) -> Packages:
    (tmp_path / "info").mkdir()
    (tmp_path / "status").write_text(STATUS)
    # As some packages are still built: with paths of before /lib moved into /usr.
    (tmp_path / "info/libc6:amd64.list").write_text("/.\n/lib\n/lib/x/libc.so.6\n")
    (tmp_path / "info/ca-certificates.list").write_text("/usr/sbin/update-ca-certificates\n")
    return Packages.installed(tmp_path)


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/lib/x/libc.so.6", "libc6"),
        ("/usr/lib/x/libc.so.6", "libc6"),
        ("/usr/sbin/update-ca-certificates", "ca-certificates"),
        ("/sbin/update-ca-certificates", "ca-certificates"),
        ("/usr/local/bin/python3.11", None),
    ],
)
def test_whose_a_file_is(packages: Packages, path: str, owner: str | None) -> None:
    assert packages.owner(Path(path)) == owner


def test_what_is_said_of_packages(packages: Packages) -> None:
    paths = ["/usr/local/x", "/usr/lib/x/libc.so.6", "/sbin/update-ca-certificates"]
    authorities, library = packages.of(map(Path, paths))
    assert library.described() == {
        "name": "libc6",
        "version": "2.36-1+b1",
        "architecture": "amd64",
        "source": "glibc",
        "source_version": "2.36-1",
    }
    assert authorities.described()["source"] == "ca-certificates"
    assert authorities.described()["source_version"] == "20250419"
    assert library.stanza.endswith("\n with a second line\n")
    assert library.licence == Path("/usr/share/doc/libc6/copyright")

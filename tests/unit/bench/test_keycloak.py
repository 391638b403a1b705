"""What is unpacked for the benchmark is whole, or is not there."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest

from bench.keycloak import VERSION, distribution
from bench.processes import NotRun

NAME = f"keycloak-quarkus-dist-{VERSION}.zip"


def programs(directory: Path, monkeypatch: pytest.MonkeyPatch, mvn: str) -> None:
    """``mvn`` is a shell script that finds the output directory in $out."""
    directory.mkdir(exist_ok=True)
    find = "for each; do case $each in -DoutputDirectory=*) out=${each#*=};; esac; done"
    for name, script in (("mvn", f"{find}\n{mvn}"), ("java", "")):
        (directory / name).write_text(f"#!/bin/sh\n{script}\n")
        (directory / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{directory}{os.pathsep}{os.environ['PATH']}")


def archive(file: Path) -> Path:
    with zipfile.ZipFile(file, "w") as made:
        made.writestr(f"keycloak-{VERSION}/bin/kc.sh", "#!/bin/sh")
        made.writestr(f"keycloak-{VERSION}/lib/all.jar", "x" * 10_000)
    return file


def test_what_dies_midway_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = archive(tmp_path / "whole.zip")
    place = tmp_path / "place"
    for dies in (
        f'head -c 200 {whole} > "$out/{NAME}"; kill -9 $$',  # in the middle of its download
        f'head -c 200 {whole} > "$out/{NAME}"',  # half an archive
        f'mkdir -p "$out/keycloak-{VERSION}/bin"; touch "$out/keycloak-{VERSION}/bin/kc.sh"; exit 1',
    ):
        programs(tmp_path / "bin", monkeypatch, dies)
        with pytest.raises(NotRun):
            distribution(place)
        assert [path.name for path in place.iterdir()] == ["lock"]
    programs(tmp_path / "bin", monkeypatch, f'cp {whole} "$out/{NAME}"')
    home = distribution(place)
    assert (home / "lib/all.jar").stat().st_size == 10_000
    assert os.access(home / "bin/kc.sh", os.X_OK)
    programs(tmp_path / "bin", monkeypatch, "exit 1")
    assert distribution(place) == home, "it is there"

"""The bill of materials: of the environment and of the base, with nothing that chance has a part in."""

from __future__ import annotations

from typing import Any

import pytest

from image.sbom import whole

FOUND: dict[str, Any] = {
    "bomFormat": "CycloneDX",
    "specVersion": "1.6",
    "serialNumber": "urn:uuid:3e671687-395b-41f5-a30f-a58921a69b79",
    "metadata": {"timestamp": "2026-11-29T00:00:00Z", "tools": {"components": []}},
    "components": [
        {"bom-ref": "valetkey==0.1.0", "name": "valetkey", "version": "0.1.0", "type": "library"},
        {"bom-ref": "attrs==1", "name": "attrs", "version": "1", "type": "library"},
    ],
    "dependencies": [{"ref": "attrs==1"}],
}
LIBC = {
    "name": "libc6",
    "version": "1:2.36-9+deb12u14",
    "architecture": "amd64",
    "source": "glibc",
    "source_version": "2.36-9+deb12u14",
}


def test_it_has_environment_packages_and_interpreter() -> None:
    made = whole(FOUND, {"packages": [LIBC], "python": "3.11.15"}, "0.1.0")
    libc = "pkg:deb/debian/libc6@1%3A2.36-9%2Bdeb12u14?arch=amd64"
    python = "pkg:generic/python@3.11.15"
    refs = ["attrs==1", libc, python, "valetkey==0.1.0"]
    assert [each["bom-ref"] for each in made["components"]] == refs
    assert {"ref": "image", "dependsOn": refs} in made["dependencies"]
    assert made["metadata"]["component"]["version"] == "0.1.0"
    by_ref = {each["bom-ref"]: each for each in made["components"]}
    assert by_ref[python]["cpe"] == "cpe:2.3:a:python:python:3.11.15:*:*:*:*:*:*:*"
    assert {each["name"]: each["value"] for each in by_ref[libc]["properties"]} == {
        "debian:source": "glibc",
        "debian:source_version": "2.36-9+deb12u14",
    }


def test_an_interpreter_that_a_package_brought_is_not_there_twice() -> None:
    made = whole(FOUND, {"packages": [], "python": None}, "0.1.0")
    assert {each["name"] for each in made["components"]} == {"attrs", "valetkey"}


def test_it_says_no_time_and_no_random_number() -> None:
    made = whole(FOUND, {"packages": [], "python": None}, "0.1.0")
    assert "serialNumber" not in made
    assert set(made["metadata"]) == {"tools", "component"}


def test_an_image_of_another_version_is_none() -> None:
    with pytest.raises(SystemExit, match=r"valetkey 0\.2\.0"):
        whole(FOUND, {"packages": [], "python": None}, "0.2.0")

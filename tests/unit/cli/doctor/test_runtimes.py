from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from valetkey.cli.doctor.process import Ran
from valetkey.cli.doctor.runtimes import NAMES, PythonFacts, describe, find


def says(*answers: Ran) -> Callable[[Sequence[str]], Ran]:
    left = list(answers)
    return lambda _argv: left.pop(0)


VERSIONS = [
    ("curl", "curl 8.14.1 (x86_64-pc-linux-gnu) libcurl/8.14.1 OpenSSL/3.5.1\n", "8.14.1", (8, 14, 1)),
    ("node", "v24.5.0\n", "24.5.0", (24, 5, 0)),
    ("node", "v25.0.0-nightly20250801\n", "25.0.0-nightly20250801", (25, 0, 0)),
    ("go", "go version go1.26.8 linux/amd64\n", "1.26.8", (1, 26, 8)),
    ("go", "go version go1.27rc1 linux/amd64\n", "1.27rc1", (1, 27, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "out", "version", "release"), VERSIONS)
def test_versions(name: str, out: str, version: str, release: tuple[int, ...]) -> None:
    found = describe(name, "/x", says(Ran(0, out, "")))
    assert (found.name, found.version, found.release, found.trouble) == (name, version, release, "")


TROUBLES = [
    ("it fails", Ran(1, "", "x: broken\n"), "x: broken"),
    ("it says nothing", Ran(3, "", ""), "exit status 3"),
    ("it says something else", Ran(0, "hello\n", ""), "hello"),
    ("it does not end", Ran(None, "", ""), "it does not end"),
]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("case", "ran", "trouble"), TROUBLES, ids=[case[0] for case in TROUBLES])
def test_a_runtime_that_does_not_run(name: str, case: str, ran: Ran, trouble: str) -> None:
    found = describe(name, "/x", says(ran, Ran(0, "", "")))
    assert (found.version, found.trouble) == ("", trouble)


def test_python_says_where_its_certificates_are() -> None:
    said = {"version": "3.13.1", "cafile": "/f", "capath": "/d", "clients": {"httpx": "1"}}
    found = describe("python", "/p", says(Ran(0, json.dumps(said), "warning\n")))
    assert found.version == "3.13.1"
    assert found.python == PythonFacts("3.13.1", "/f", "/d", "", {"httpx": "1"})


JAVA = """Picked up JAVA_TOOL_OPTIONS: -Dhttps.proxyHost=127.0.0.1
Property settings:
    https.proxyHost = 127.0.0.1
    java.home = /usr/lib/jvm/java 17
    java.library.path = /usr/java/packages/lib
        /usr/lib/jni
    java.version = 17.0.15
    java.class.path =\x20

openjdk version "17.0.15" 2025-04-15
"""


@pytest.mark.parametrize(("modules", "compiler"), [("java.base@17\njdk.compiler@17\n", True), ("java.base@17\n", False)])  # fmt: skip
def test_java_says_its_properties(modules: str, compiler: bool) -> None:
    found = describe("java", "/j", says(Ran(0, "", JAVA), Ran(0, modules, "")))
    assert (found.version, found.compiler) == ("17.0.15", compiler)
    assert found.properties["java.home"] == "/usr/lib/jvm/java 17"
    assert found.properties["https.proxyHost"] == "127.0.0.1"
    assert found.properties["java.class.path"] == ""


def test_git_says_its_settings() -> None:
    config = "http.sslcainfo /etc/a b.pem\nhttp.sslVerify false\nhttp.proxy\n"
    found = describe("git", "/g", says(Ran(0, "git version 2.39.5\n", ""), Ran(0, config, "")))
    assert found.version == "2.39.5"
    assert found.config == {
        "http.sslcainfo": "/etc/a b.pem",
        "http.sslverify": "false",
        "http.proxy": "",
    }


def test_those_on_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By their own words: `python` stands in where there is no `python3`, the rest is absent."""
    for name, script in (
        ("python", f'exec {sys.executable} "$@"'),
        ("node", "echo v20.1.0"),
        ("curl", "exit 3"),
    ):
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)
    (tmp_path / "go").write_text("not executable")
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    found = {runtime.name: runtime for runtime in find(NAMES)}
    assert list(found) == ["curl", "python", "node"]
    assert found["curl"].trouble == "exit status 3"
    assert found["node"].version == "20.1.0"
    python = found["python"].python
    assert python is not None
    assert python.version == ".".join(map(str, sys.version_info[:3]))
    assert "aiohttp" in python.clients
    assert Path(python.capath).is_absolute()
    assert find(("node",))[0].executable == str(tmp_path / "node")

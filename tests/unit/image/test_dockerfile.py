"""The Dockerfile says what chart, injector and docs rely on; what it makes is in tests/integration/image.py."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Final

import pytest
import yaml

from image import rootfs
from tests.support.pods import loaded, pod
from valetkey.cli import health
from valetkey.injector.core.mutation import Injected, Place, mutate
from valetkey.injector.settings import InjectedSidecarSettings

ROOT: Final = Path(__file__).parents[3]
TEXT: Final = re.sub(r"^#.*\n", "", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
# Each instruction on one line.
LINES: Final = re.sub(r"\\\n\s*", "", TEXT).splitlines()
STAGES: Final = [line for line in LINES if line.startswith("FROM ")]
FINAL: Final = LINES[LINES.index(STAGES[-1]) :]


def said(instruction: str) -> str:
    """What the image's stage says by an instruction that it has once."""
    [line] = [line for line in FINAL if line.startswith(f"{instruction} ")]
    return line.removeprefix(f"{instruction} ")


def defaults() -> dict[str, Any]:
    names, values = (
        InjectedSidecarSettings.__struct_fields__,
        InjectedSidecarSettings.__struct_defaults__,
    )
    return dict(zip(names[-len(values) :], values, strict=True))


VALUES: Final = yaml.safe_load((ROOT / "helm/valetkey/values.yaml").read_text())


def test_there_is_no_base_without_a_digest() -> None:
    assert STAGES[0] == "FROM ${BASE}@${BASE_DIGEST} AS build"
    assert "ARG BASE_DIGEST" in LINES
    assert not [line for line in LINES if line.startswith("ARG BASE_DIGEST=")]


def test_nothing_is_in_the_image_but_what_was_chosen() -> None:
    assert STAGES[1:] == ["FROM scratch"]
    copied = [line.split() for line in FINAL if line.startswith(("COPY", "ADD"))]
    layers = ("system", "libraries", "valetkey")
    assert copied == [["COPY", "--from=build", f"/out/{layer}/", "/"] for layer in layers]
    assert not [line for line in FINAL if line.startswith("RUN")]


def test_the_user_is_the_one_of_chart_and_injector() -> None:
    uid, gid = map(int, said("USER").split(":"))
    assert uid == rootfs.UID == VALUES["pods"]["uid"] == defaults()["uid"]
    assert gid == rootfs.UID == VALUES["pods"]["gid"]


def test_chart_and_injector_start_programs_as_the_image_does() -> None:
    entry, command = json.loads(said("ENTRYPOINT")), json.loads(said("CMD"))
    assert entry == [VALUES["image"]["python"], "-m"] == [defaults()["python"], "-m"]
    made = mutate(pod(), Place("agents"), loaded())
    assert isinstance(made, Injected)
    [sidecar] = [each for each in made.pod["spec"]["initContainers"] if each["name"] == "valetkey"]
    assert sidecar["command"][:-1] == [*entry, *command][:-1]
    for program in ("broker", "collector", "injector"):
        template = (ROOT / f"helm/valetkey/templates/{program}/deployment.yaml").read_text()
        assert (
            f"command: [{{{{ .Values.image.python | quote }}}}, -m, valetkey.{program}, "
            in template
        )


def test_all_that_is_named_is_found_on_its_path() -> None:
    path = dict(word.split("=", 1) for word in said("ENV").split())["PATH"]
    assert path == "/opt/valetkey/bin"
    assert any(f"-m venv --without-pip {Path(path).parent}" in line for line in LINES)


def test_requirements_are_hashed() -> None:
    installs = [
        part for line in LINES for part in line.split(";") if " install " in part and "pip" in part
    ]
    assert len(installs) == 4
    for install in installs:
        hashed = "--require-hashes" in install and "--only-binary :all:" in install
        own = "--no-index" in install and "--no-deps" in install
        assert hashed or own, install
    made = [part for line in LINES for part in line.split(";") if "pip wheel" in part]
    assert [("--require-hashes" in each, "--no-deps" in each) for each in made] == [(True, True)]
    for name in re.findall(r"-r (requirements/\S+?)(?:;|$|\s)", "\n".join(LINES)):
        assert "--hash=sha256:" in (ROOT / name).read_text()


def test_its_health_check_is_our_own() -> None:
    options, _, command = said("HEALTHCHECK").partition(" CMD ")
    assert json.loads(command) == ["python3", "-m", "valetkey.cli.health"]
    # So that it is the program that says that nobody answered, on a busy machine too.
    timeout = re.search(r"--timeout=(\d+)s", options)
    assert timeout is not None
    assert int(timeout[1]) >= 2 * health._TIMEOUT


@pytest.mark.parametrize("copied", re.findall(r"^COPY ([^-].*) \S+$", TEXT, re.MULTILINE))
def test_all_that_is_copied_is_let_into_the_build(copied: str) -> None:
    let_in = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.MULTILINE)
    for path in copied.split():
        assert any(f"{name}/".startswith(path.rstrip("/") + "/") for name in let_in), path


def test_the_build_gets_nothing_that_it_does_not_copy() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    assert lines[1] == "*"
    for line in lines[2:]:
        assert line.startswith("**/") or (ROOT / line.removeprefix("!")).exists(), line

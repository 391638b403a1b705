from __future__ import annotations

import subprocess
import sys
import types

import pytest
from click.testing import CliRunner

from valetkey import __version__
from valetkey.cli.main import main


@pytest.fixture
def run():
    return lambda *arguments, **env: CliRunner().invoke(main, arguments, env=env)


@pytest.fixture
def program(monkeypatch):
    """A program's module that notes what it was started with, and ends as it is told."""
    started = []
    module = types.ModuleType("valetkey.proxy.__main__")
    module.status = 0

    def main(arguments):
        started.append(arguments)
        return module.status

    module.main = main
    monkeypatch.setitem(sys.modules, "valetkey.proxy.__main__", module)
    return module, started


def test_version(run):
    assert __version__ in run("--version").output


def test_help_names_every_command(run):
    output = run("-h").output
    for command in (
        "proxy",
        "broker",
        "collector",
        "injector",
        "inject",
        "check",
        "audit",
        "demo",
        "doctor",
        "health",
    ):
        assert command in output


def test_a_program_is_run_with_its_file(run, program, tmp_path):
    file = tmp_path / "proxy.yaml"
    file.write_text("")
    assert run("proxy", "--config", str(file)).exit_code == 0
    assert run("proxy", VALETKEY_CONFIG=str(file)).exit_code == 0
    assert program[1] == [["--config", str(file)]] * 2


@pytest.mark.parametrize("status", [0, 1, 2])
def test_a_program_decides_the_exit_status(run, program, tmp_path, status):
    program[0].status = status
    file = tmp_path / "proxy.yaml"
    file.write_text("")
    assert run("proxy", "--config", str(file)).exit_code == status


@pytest.mark.parametrize("name", ["proxy", "broker", "collector", "injector"])
def test_settings_that_can_not_be_used(tmp_path, name):
    file = tmp_path / "settings.yaml"
    file.write_text("colour: green\n")
    command = [sys.executable, "-m", "valetkey.cli", name, "--config", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"valetkey {name}: {file}:1: ")
    assert done.stderr.count("\n") == 1


USAGE = {
    "no file": (("proxy",), "Missing option '--config'"),
    "a file that is not there": (("broker", "--config", "/nowhere"), "does not exist"),
    "an unknown option": (("collector", "--conf", "x"), "No such option"),
    "an unknown command": (("collect",), "No such command"),
    "an unknown program": (("check", "sidecar", "/dev/null"), "is not one of"),
}


@pytest.mark.parametrize(("arguments", "message"), USAGE.values(), ids=USAGE)
def test_usage(run, arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(("keep", "status"), [(False, 0), (True, 1)])
def test_the_demo_decides_the_exit_status(run, monkeypatch, keep, status):
    asked = []
    story = types.ModuleType("valetkey.cli.demo.main")
    story.run = lambda keep: asked.append(keep) or status
    monkeypatch.setitem(sys.modules, "valetkey.cli.demo", types.ModuleType("valetkey.cli.demo"))
    monkeypatch.setitem(sys.modules, "valetkey.cli.demo.main", story)
    assert run("demo", *(["--keep"] if keep else [])).exit_code == status
    assert asked == [keep]


def test_the_command_loads_nothing_that_only_one_program_needs():
    code = (
        "import sys, valetkey.cli.main;"
        "print([m for m in ('sqlalchemy','alembic','rich','aiohttp','cryptography') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"

from __future__ import annotations

import subprocess
import sys
import types

import pytest
from click.testing import CliRunner

from valetkey import __version__
from valetkey.cli.main import main
from valetkey.contracts.errors import ConfigError


@pytest.fixture
def run():
    return lambda *arguments, **env: CliRunner().invoke(main, arguments, env=env)


@pytest.fixture
def program(monkeypatch, tmp_path):
    """A program's ``app`` module that notes what it was started with."""
    started = []
    module = types.ModuleType("valetkey.proxy.app")
    module.run = started.append
    monkeypatch.setitem(sys.modules, "valetkey.proxy.app", module)
    return module, started


def test_version(run):
    assert __version__ in run("--version").output


def test_help_names_every_command(run):
    output = run("-h").output
    for command in ("proxy", "broker", "collector", "check", "audit", "demo", "doctor"):
        assert command in output


def test_a_program_is_run_with_its_file(run, program, tmp_path):
    file = tmp_path / "proxy.yaml"
    file.write_text("")
    assert run("proxy", "--config", str(file)).exit_code == 0
    assert run("proxy", VALETKEY_CONFIG=str(file)).exit_code == 0
    assert program[1] == [file, file]


def test_settings_that_can_not_be_used(run, program, tmp_path):
    def refuse(_config):
        raise ConfigError("proxy.yaml:3: routes.0.id: unknown key")

    program[0].run = refuse
    file = tmp_path / "proxy.yaml"
    file.write_text("")
    result = run("proxy", "--config", str(file))
    assert result.exit_code == 2
    assert result.stderr == "valetkey: proxy.yaml:3: routes.0.id: unknown key\n"


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

"""Whatever the command line is given wrongly is one clear line and a status, never a traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from valetkey.cli.main import main

NOBODY = ("--broker", "http://127.0.0.1:1")


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("token").write_text("a-token\n")
    Path("noise").write_bytes(b"\xff\xfe\x00")
    Path("list.yaml").write_text("[]\n")

    def run(*arguments: str, **env: str) -> Result:
        return CliRunner().invoke(main, arguments, env={"VALETKEY_TOKEN_FILE": "token"} | env)

    return run


def groups(command: click.Command, *path: str) -> Iterator[tuple[str, ...]]:
    if isinstance(command, click.Group):
        yield path
        for name, below in command.commands.items():
            yield from groups(below, *path, name)


@pytest.mark.parametrize("path", [*groups(main)], ids=" ".join)
def test_no_line_of_help_is_cut_off(run, path):
    help_ = run(*path, "-h")
    assert help_.exit_code == 0
    assert "..." not in help_.stdout.partition("Commands:")[2]


def test_help_says_what_the_exit_status_means(run):
    said = " ".join(run("-h").stdout.split())
    assert "Exit status: 0 done and good" in said
    assert "2 could not be done" in said


MISUSE = {
    "a URL that is not ASCII": (("grants", "list", "--broker", "http://127.0.0.1:1/ä"), "is not the URL of a broker"),
    "a URL with a space": (("grants", "list", "--broker", "http://127.0.0.1:1/a b"), "is not the URL of a broker"),
    "a URL with a fragment": (("grants", "list", "--broker", "http://127.0.0.1:1/#a"), "is not the URL of a broker"),
    "a URL with a password": (("grants", "list", "--broker", "http://a:b@127.0.0.1:1"), "is not the URL of a broker"),
    "no port": (("grants", "list", "--broker", "http://127.0.0.1:99999"), "is not the URL of a broker"),
    "nobody there": (("grants", "list", *NOBODY), "can't be reached"),
    "more time than there is": (
        ("grants", "create", *NOBODY, "--for", "99999999999999d"), "--for 99999999999999d: beyond any calendar",
    ),
    "a duration without a unit": (("grants", "create", *NOBODY, "--for", "2"), "a duration with a unit is meant"),
    "a file of something else": (("grants", "create", *NOBODY, "--file", "noise"), "noise: can't be read"),
    "a list in place of a grant": (("grants", "create", *NOBODY, "--file", "list.yaml"), "list.yaml: write one grant"),
    "an incident that leads elsewhere": (("incidents", "show", "../grants", *NOBODY), "can't be reached"),
    "settings of something else": (("check", "broker", "noise"), "noise: can't be read"),
    "a record of something else": (("audit", "verify", "--db", "noise"), "is not a collector's database"),
    "no subject without its issuer": (
        ("incidents", "open", *NOBODY, "--reason", "r", "--subject", "s"), "--subject and --issuer come together",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), MISUSE.values(), ids=MISUSE)
def test_misuse(run, arguments, message):
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


@pytest.mark.parametrize("token", ["two words", "one\nand another", "tök€n"])
def test_a_variable_without_a_token(run, token):
    result = run("grants", "list", *NOBODY, VALETKEY_TOKEN_FILE="", VALETKEY_TOKEN=token)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 2
    assert result.stderr == "valetkey: VALETKEY_TOKEN holds no token\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ("--help",),
        ("policy", "check", "many.cedar"),
        ("audit", "tail", "--spool", "."),
        ("doctor", "--no-calls", "--no-admin"),
    ],
    ids=" ".join,
)
def test_a_reader_that_leaves_is_no_traceback(run, arguments):
    """As ``valetkey … | head -0`` does it: nobody reads from the first byte on."""
    Path("many.cedar").write_text("permit (principal, action, resource);\n" * 50)
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "valetkey.cli", *arguments],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writer)
    assert "Traceback" not in done.stderr

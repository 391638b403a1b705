from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from valetkey.cli.main import main

EXAMPLES = Path(__file__).parents[3] / "config"


@pytest.mark.parametrize("program", ["proxy", "collector"])
def test_the_examples_are_good(program):
    result = CliRunner().invoke(main, ["check", program, str(EXAMPLES / f"{program}.yaml")])
    assert (result.exit_code, result.output) == (0, "ok\n")


BAD = {
    "an unknown key": ("collector", "bind: 127.0.0.1:1\nreder: []\n", ":2: reder: unknown key"),
    "a missing key": ("collector", "bind: 127.0.0.1:1\n", ":1: (top level): Object missing"),
    "no YAML": ("broker", "a: [\n", ":2: not YAML"),
    "another program's file": (
        "broker",
        (EXAMPLES / "collector.yaml").read_text(),
        "unknown key",
    ),
    "routes that can not be compiled": (
        "proxy",
        (EXAMPLES / "proxy.yaml").read_text().replace("target: payments", "target: nobody"),
        "nobody",
    ),
}


@pytest.mark.parametrize(("program", "text", "message"), BAD.values(), ids=BAD)
def test_what_would_stop_the_start_is_named(tmp_path, program, text, message):
    file = tmp_path / "settings.yaml"
    file.write_text(text)
    result = CliRunner().invoke(main, ["check", program, str(file)])
    assert result.exit_code == 2
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_variables_are_judged_too():
    result = CliRunner().invoke(
        main,
        ["check", "collector", str(EXAMPLES / "collector.yaml")],
        env={"VALETKEY_COLLECTOR__BIND": "0.0.0.0:1"},
    )
    assert result.exit_code == 2
    assert "not loopback" in result.stderr

"""``valetkey check`` where two files are held together."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from valetkey.cli.main import main

ROOT = Path(__file__).parents[3]
OPERATOR = ROOT / "config/operator.yaml"


def check(program: str, file: Path, owner: Path) -> Result:
    return CliRunner().invoke(main, ["check", program, str(file), "--owner", str(owner)])


def test_an_owner_s_file_that_fits(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("routes: [{within: tickets-read}]")
    assert check("operator", OPERATOR, file).output == "ok\n"
    assert check("proxy", ROOT / "config/proxy.yaml", file).exit_code == 0


BAD = {
    "wider": ("routes: [{within: refunds, scopes: [a]}]", ["settings.widens", "routes.0", "'refunds'"]),
    "unknown key": ("routes: [{within: refunds, target: x}]", ["routes.yaml:1", "routes.0.target"]),
    "no conflict": ("routes: [{within: refunds}, {within: refunds}]", ["settings.invalid", "routes.1"]),
}  # fmt: skip


@pytest.mark.parametrize(("text", "said"), BAD.values(), ids=BAD)
def test_one_that_does_not_fit_is_named(tmp_path: Path, text: str, said: list[str]) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text(text)
    done = check("operator", OPERATOR, file)
    assert done.exit_code == 2
    assert [each for each in said if each not in done.output] == []


def test_nothing_else_can_be_narrowed(tmp_path: Path) -> None:
    file = tmp_path / "routes.yaml"
    file.write_text("routes: [{within: refunds}]")
    done = check("broker", ROOT / "config/broker.yaml", file)
    assert done.exit_code == 2
    assert "can be narrowed" in done.output


def test_an_operator_s_file_has_nothing_else(tmp_path: Path) -> None:
    file = tmp_path / "operator.yaml"
    file.write_text(OPERATOR.read_text() + "broker: {url: https://x}\n")
    done = CliRunner().invoke(main, ["check", "operator", str(file)])
    assert (done.exit_code, "broker" in done.output) == (2, True)

"""The redirect script's arguments: what it takes may stand in a rule, all else is refused.

A dry run changes nothing and needs no tool; what the rules do is shown in the integration tests.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "config/redirect/redirect.sh"


def run(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    env = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"}
    return subprocess.run(
        ("sh", str(SCRIPT), *arguments), capture_output=True, text=True, check=False, env=env
    )


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """Tools that must not be run."""
    for name in ("nft", "iptables", "iptables-nft", "iptables-legacy"):
        tool = tmp_path / name
        tool.write_text("#!/bin/sh\necho A TOOL RAN >&2\nexit 9\n")
        tool.chmod(0o755)
    return tmp_path


GOOD = {
    "the least": ["--uid", "1"],
    "the greatest": ["--uid", "4294967294", "--port", "65535"],
    "a range": ["--uid", "5", "--ports", "80,443,8000-8999"],
    "servers": ["--uid", "5", "--dns", "192.0.2.53,2001:db8::53"],
    "none": ["--uid", "5", "--dns", "none"],
    "loopback": ["--uid", "5", "--loopback", "5432,6000-6010"],
}


@pytest.mark.parametrize("backend", ["nft", "iptables", "iptables-nft", "iptables-legacy"])
@pytest.mark.parametrize("arguments", GOOD.values(), ids=GOOD.keys())
def test_a_dry_run_prints_the_rules(tools: Path, arguments: list[str], backend: str) -> None:
    done = run("up", *arguments, "--backend", backend, "--dry-run", path=tools)
    assert (done.returncode, done.stderr) == (0, "")
    uid = arguments[1]
    assert re.search(rf"(skuid|--uid-owner) {uid}\b", done.stdout)
    for text in arguments[3:]:
        for part in re.split("[,-]", text):
            assert part == "none" or part in done.stdout


def test_nft_is_what_is_taken_where_there_is_one(tools: Path) -> None:
    assert "table inet valetkey_5" in run("up", "--uid", "5", "--dry-run", path=tools).stdout
    (tools / "nft").unlink()
    printed = run("up", "--uid", "5", "--dry-run", path=tools).stdout
    assert "*filter" in printed
    assert "iptables-restore" in printed


BAD = {
    "no action": [],
    "another action": ["reload", "--uid", "5"],
    "no user": ["up"],
    "root": ["up", "--uid", "0"],
    "a name": ["up", "--uid", "bot"],
    "a leading zero": ["up", "--uid", "010"],
    "a sign": ["up", "--uid", "-5"],
    "nobody": ["up", "--uid", "4294967295"],
    "too long": ["up", "--uid", "99999999999999999999"],
    "a rule as a user": ["up", "--uid", "5 accept"],
    "port 0": ["up", "--uid", "5", "--port", "0"],
    "port beyond": ["up", "--uid", "5", "--port", "65536"],
    "no ports": ["up", "--uid", "5", "--ports", ""],
    "an empty port": ["up", "--uid", "5", "--ports", "80,,443"],
    "a comma at the end": ["up", "--uid", "5", "--ports", "80,"],
    "a range backwards": ["up", "--uid", "5", "--ports", "99-80"],
    "a range without end": ["up", "--uid", "5", "--ports", "80-"],
    "a range of three": ["up", "--uid", "5", "--ports", "1-2-3"],
    "a rule as a port": ["up", "--uid", "5", "--ports", "80 } accept"],
    "a line as a port": ["up", "--uid", "5", "--ports", "80\n443"],
    "a name as a server": ["up", "--uid", "5", "--dns", "dns.example"],
    "a rule as a server": ["up", "--uid", "5", "--dns", "192.0.2.1 accept"],
    "a line as a server": ["up", "--uid", "5", "--dns", "192.0.2.1\n192.0.2.2"],
    "a network as a server": ["up", "--uid", "5", "--dns", "192.0.2.0/24"],
    "no server": ["up", "--uid", "5", "--dns", ""],
    "another backend": ["up", "--uid", "5", "--backend", "ebtables"],
    "an option alone": ["up", "--uid"],
    "an unknown option": ["up", "--uid", "5", "--force"],
    "a dry run of down": ["down", "--uid", "5", "--dry-run"],
}


@pytest.mark.parametrize("arguments", BAD.values(), ids=BAD.keys())
def test_what_can_t_be_used_is_refused(tools: Path, arguments: list[str]) -> None:
    more = ["--dry-run"] if arguments[:1] == ["up"] and arguments[-1] != "--uid" else []
    done = run(*arguments, *more, path=tools)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr
    assert "A TOOL RAN" not in done.stderr


def test_a_tool_that_is_missing_is_named(tmp_path: Path) -> None:
    for tool in ("sed", "tr"):
        (tmp_path / tool).symlink_to(shutil.which(tool) or tool)
    done = subprocess.run(
        ("/bin/sh", str(SCRIPT), "up", "--uid", "5", "--backend", "iptables-legacy"),
        capture_output=True, text=True, check=False, env={"PATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == "redirect.sh: iptables-legacy is not installed\n"


def test_help() -> None:
    done = run("--help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: redirect.sh up ")

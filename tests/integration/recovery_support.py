"""The commands of the page on recovery, as they stand there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs/how-to/recover.md"
# What the page calls the database of brokers that have PostgreSQL.
NAMED = "postgresql://broker@db.example/valetkey"
COPIES, BROKER, COLLECTOR, VERIFY = (
    "Make copies", "Restore the broker", "Restore the collector", "Verify",
)  # fmt: skip

needs_sqlite3 = pytest.mark.skipif(
    shutil.which("sqlite3") is None, reason="no sqlite3 (Debian: apt-get install sqlite3)"
)


def section(title: str, only: str = "") -> list[str]:
    """The commands under a heading of the page, in its order; ``only``: those that match."""
    text = PAGE.read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    found = re.findall(r"^ {4,}((?:valetkey|sqlite3|pg_\w+|rm|cp) .*)$", text, re.MULTILINE)
    return [command for command in found if re.search(only, command)]


def shell(command: str, directory: Path, environment: Mapping[str, str] | None = None) -> str:
    """What a command says that is run in a directory; it must succeed."""
    path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    given = [f"{name}={value}" for name, value in (environment or {}).items()]
    done = subprocess.run(
        ["env", f"PATH={path}", *given, "bash", "-euc", command],
        cwd=directory, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout

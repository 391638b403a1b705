"""The dashboards against Grafana's own schema: the types that it publishes (@grafana/schema), by TypeScript.

No server of Grafana renders them: Debian has none, the Go module proxy does not serve it, and what PyPI,
npm and Maven Central have under the name are its libraries. That each query returns data is shown on a
real Prometheus (tests/integration/test_dashboards.py).
"""

from __future__ import annotations

import copy
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest

from tests.support.clients import NODE_MODULES, without_ambient

ROOT = Path(__file__).parents[3]
FILES = sorted((ROOT / "config/grafana").glob("*.json"))
SCHEMA: Final = NODE_MODULES / "@grafana/schema"
CHECK: Final = (
    "--noEmit", "--strict", "--skipLibCheck", "--pretty", "false",
    "--module", "esnext", "--moduleResolution", "bundler", "--target", "es2022",
)  # fmt: skip

pytestmark = [
    pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed"),
    pytest.mark.skipif(
        not SCHEMA.exists(), reason="@grafana/schema is not there (make .venv-clients/.done)"
    ),
]


def complaints(directory: Path, documents: dict[str, Any]) -> dict[str, str]:
    """What TypeScript says of each document that is no dashboard, by its name."""
    (directory / "node_modules").symlink_to(NODE_MODULES)
    shutil.copy(ROOT / "tests/support/dashboard.ts", directory)
    for name, document in documents.items():
        (directory / f"{name}.ts").write_text(
            "import type { Dashboard } from './dashboard';\n"
            f"export const it: Dashboard = {json.dumps(document)};\n"
        )
    done = subprocess.run(
        [NODE_MODULES / ".bin/tsc", *CHECK, *(f"{name}.ts" for name in documents)],
        cwd=directory,
        env=without_ambient(),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    found: dict[str, str] = {}
    for name, said in re.findall(r"^(\S+)\.ts\(\d+,\d+\): error (.+)$", done.stdout, re.MULTILINE):
        found[name] = found.get(name, "") + said
    assert done.returncode == (2 if found else 0), done.stdout + done.stderr
    return found


def test_each_file_is_what_grafana_says_that_a_dashboard_is(tmp_path: Path) -> None:
    documents = {file.stem: json.loads(file.read_text()) for file in FILES}
    assert len(documents) == 5
    assert complaints(tmp_path, documents) == {}


def panel(document: dict[str, Any], kind: str) -> dict[str, Any]:
    found: dict[str, Any] = next(each for each in document["panels"] if each["type"] == kind)
    return found


SPOILED: Final[dict[str, tuple[Any, str]]] = {
    "a key of the dashboard that is misspelt": (lambda d: d.update(refreshs="30s"), "refreshs"),
    "an option that is misspelt": (
        lambda d: panel(d, "stat")["options"].update(colourMode="value"), "colourMode",
    ),
    "a value that an option does not take": (
        lambda d: panel(d, "timeseries")["options"]["tooltip"].update(mode="many"), "many",
    ),
    "a field of another kind of panel": (
        lambda d: panel(d, "timeseries")["fieldConfig"]["defaults"]["custom"].update(align="left"),
        "align",
    ),
    "a threshold without a color": (
        lambda d: panel(d, "stat")["fieldConfig"]["defaults"]["thresholds"].update(
            steps=[{"color": 3, "value": 1}]
        ),
        "number",
    ),
    "a place that is text": (lambda d: panel(d, "row")["gridPos"].update(x="0"), "string"),
    "a variable that is refreshed now and then": (
        lambda d: d["templating"]["list"][1].update(refresh=7), "7",
    ),
}  # fmt: skip


def test_what_is_none_is_found(tmp_path: Path) -> None:
    good = json.loads((ROOT / "config/grafana/valetkey-fleet.json").read_text())
    documents = {}
    for number, (spoil, _) in enumerate(SPOILED.values()):
        document = copy.deepcopy(good)
        spoil(document)
        documents[f"case_{number}"] = document
    found = complaints(tmp_path, documents)
    for number, (name, (_, word)) in enumerate(SPOILED.items()):
        assert word in found.get(f"case_{number}", ""), name


def test_the_version_of_the_schema_is_the_one_that_files_name() -> None:
    """Grafana migrates what is older when it reads it; what is newer it would not know."""
    text = (SCHEMA / "dist/esm/raw/dashboard/x/types.gen.mjs").read_text()
    [version] = re.findall(r"schemaVersion: (\d+)", text)
    for file in FILES:
        assert json.loads(file.read_text())["schemaVersion"] == int(version)

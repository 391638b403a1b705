"""The rules of tests/conftest.py, each shown on a test session of its own that breaks it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def _session(
    directory: Path, source: str, *more: str, **env: str
) -> subprocess.CompletedProcess[str]:
    (directory / "test_sample.py").write_text(source)
    # A session of its own, whatever options this one has and whichever worker runs it.
    inherited = {
        key: value
        for key, value in os.environ.items()
        if key not in {"VALETKEY_REQUIRE", "PYTEST_ADDOPTS"} and not key.startswith("PYTEST_XDIST_")
    }
    options = (
        "-q",
        "-ra",
        "-p",
        "no:cacheprovider",
        "-p",
        "tests.conftest",
        "-o",
        "asyncio_mode=auto",
        *more,
    )
    return subprocess.run(
        (sys.executable, "-m", "pytest", *options, f"--rootdir={directory}", str(directory)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**inherited, "PYTHONPATH": str(ROOT), **env},
    )


SKIPS = """
import pytest
def test_needs_something():
    pytest.skip("no such program: frobnicate")
@pytest.mark.xfail(reason="known", strict=True)
def test_known():
    assert False
"""

SKIPS_BY_MARK = """
import pytest
@pytest.mark.skipif(True, reason="no such program: frobnicate")
def test_x(): pass
"""


def test_a_skip_is_listed_with_its_reason(tmp_path: Path) -> None:
    run = _session(tmp_path, SKIPS)
    assert run.returncode == 0
    assert "no such program: frobnicate" in run.stdout


@pytest.mark.parametrize(
    "source",
    [
        SKIPS,
        "import pytest\npytest.skip('no such program: frobnicate', allow_module_level=True)",
        SKIPS_BY_MARK,
    ],
    ids=["in the test", "at module level", "by mark"],
)
def test_a_skip_fails_where_all_is_required(tmp_path: Path, source: str) -> None:
    run = _session(tmp_path, source, VALETKEY_REQUIRE="all")
    assert run.returncode not in {0, 5}
    assert "VALETKEY_REQUIRE=all, and this was skipped" in run.stdout
    assert "no such program: frobnicate" in run.stdout


def test_a_misspelt_requirement_stops_the_session(tmp_path: Path) -> None:
    run = _session(tmp_path, "def test_x(): pass", VALETKEY_REQUIRE="everything")
    assert run.returncode == pytest.ExitCode.USAGE_ERROR


LEAKS = """
from tests.support.canaries import CANARIES
CANARIES.add("a-session-secret-of-a-test", name="the secret")
def test_leaks(tmp_path):
    {}
"""


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "two workers"])
@pytest.mark.parametrize(
    ("statement", "place"),
    [
        ("print('a-session-secret-of-a-test')", "Captured stdout call of test_sample.py"),
        ("(tmp_path / 'log').write_text('a-session-secret-of-a-test')", "test_leaks0/log"),
        (
            "import logging; logging.getLogger('x').error('a-session-secret-of-a-test')",
            "Captured log call of test_sample.py",
        ),
    ],
    ids=["output", "file", "log"],
)
def test_a_leak_fails_the_session(
    tmp_path: Path, statement: str, place: str, workers: tuple[str, ...]
) -> None:
    run = _session(tmp_path, LEAKS.format(statement), *workers)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED, run.stdout
    assert f"the secret in {place}" in run.stdout


def test_workers_without_a_leak_pass(tmp_path: Path) -> None:
    run = _session(tmp_path, LEAKS.format("pass"), "-n", "2")
    assert run.returncode == pytest.ExitCode.OK, run.stdout
    assert "secrets where they must not be" not in run.stdout


def test_a_worker_that_does_not_say_fails_the_session(tmp_path: Path) -> None:
    """It is killed: its leaks are not known."""
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    run = _session(tmp_path, LEAKS.format(kill), "-n", "1")
    assert run.returncode != pytest.ExitCode.OK
    assert "gw0, which did not say" in run.stdout


BLOCKS = """
from pathlib import Path
from valetkey.contracts import settings
async def test_blocks(tmp_path):
    (tmp_path / "f").write_text("a: 1")
    settings.load(dict, tmp_path / "f", program="proxy", environ={})
"""


def test_a_blocking_call_of_ours_in_the_loop_fails_the_test(tmp_path: Path) -> None:
    run = _session(tmp_path, BLOCKS)
    assert run.returncode == pytest.ExitCode.TESTS_FAILED
    assert "BlockingError" in run.stdout

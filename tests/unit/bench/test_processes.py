from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from bench.processes import (
    NotRun,
    Processes,
    accepts,
    answers_200,
    free_port,
    is_running,
    wait_until_ready,
    without_places,
)

CORE = min(os.sched_getaffinity(0))
# A parent with a child of its own, as nginx has one; it serves once the child runs.
PARENT = """
import http.server, subprocess, sys
from tests.support.ports import free_port
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), http.server.SimpleHTTPRequestHandler).serve_forever()
"""


def test_a_tree_is_pinned_measured_and_stopped(tmp_path: Path) -> None:
    port = free_port()
    with Processes(tmp_path) as processes:
        process = processes.start("web", [sys.executable, "-c", PARENT, str(port)], core=CORE)
        wait_until_ready(process, answers_200(port, "/"), timeout=30)
        assert accepts(port)()
        tree = process.tree()
        assert len(tree) == 2
        assert os.sched_getaffinity(tree[1]) == {CORE}
        memory = process.memory()
        assert memory.rss >= memory.pss >= memory.anonymous > 1 << 20
        assert process.rss() > 1 << 20
        assert process.cpu_seconds() > 0
    assert not accepts(port)()
    assert not any(is_running(pid) for pid in tree)


def test_a_program_that_ends_is_not_run_and_says_why(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        process = processes.start(
            "bad",
            [sys.executable, "-c", "raise SystemExit('no /opt/some/where/file.yaml')"],
            core=CORE,
        )
        with pytest.raises(NotRun, match=r"bad ended with 1: no file\.yaml"):
            wait_until_ready(process, accepts(free_port()), timeout=30)


def test_waiting_has_an_end(tmp_path: Path) -> None:
    with Processes(tmp_path) as processes:
        process = processes.start("slow", ["sleep", "60"], core=CORE)
        with pytest.raises(NotRun, match="not ready"):
            wait_until_ready(process, lambda: False, timeout=0.1)


def test_the_environment_is_a_clean_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VALETKEY_PROXY__INSTANCE", "other")
    with Processes(tmp_path) as processes:
        process = processes.start("env", ["env"], core=CORE)
        process.popen.wait(30)
        assert "VALETKEY" not in process.log.read_text()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/usr/lib/python3/x.py: No module", "x.py: No module"),
        ("http://127.0.0.1:1/api/tickets/7 refused", "http://127.0.0.1:1/api/tickets/7 refused"),
        ("and/or", "and/or"),
    ],
)
def test_places_are_left_out(text: str, expected: str) -> None:
    assert without_places(text) == expected

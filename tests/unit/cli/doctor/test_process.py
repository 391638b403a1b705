from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest

from valetkey.cli.doctor.process import Ran, run


def test_output_status_and_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCTOR_A", "a")
    code = "import os,sys;print(os.environ['DOCTOR_A']+os.environ['DOCTOR_B']);sys.exit('no')"
    ran = run((sys.executable, "-c", code), timeout=30, extra={"DOCTOR_B": "b"})
    assert ran == Ran(1, "ab\n", "no\n")
    assert ran.said == "no"


def test_what_can_not_be_started() -> None:
    ran = run(("/nowhere/at/all",), timeout=1)
    assert ran.status == 127
    assert ran.said == "/nowhere/at/all: No such file or directory"


def test_one_that_does_not_end_is_ended_with_what_it_started() -> None:
    """A wrapper (pyenv's shims, npx) starts the real program as a child."""
    code = (
        "import subprocess,sys,time;"
        "child=subprocess.Popen([sys.executable,'-c','import time;time.sleep(60)']);"
        "print(child.pid,flush=True);time.sleep(60)"
    )
    ran = run((sys.executable, "-c", code), timeout=1)
    assert ran.status is None
    child = int(ran.out)
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and _is_running(child):
        time.sleep(0.01)
    assert not _is_running(child)


def _is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] not in {"Z", "X"}


def test_bytes_that_are_no_text() -> None:
    code = "import os;os.write(1,b'\\xff\\n')"
    assert run((sys.executable, "-c", code), timeout=30).out == "\ufffd\n"


def test_nothing_is_read_from_the_terminal() -> None:
    code = "import sys;print(repr(sys.stdin.read()))"
    assert run((sys.executable, "-c", code), timeout=30).out == "''\n"


@pytest.mark.parametrize(
    ("ran", "said"),
    [(Ran(0, "", ""), ""), (Ran(0, "a\nb\n\n", ""), "b"), (Ran(1, "a", "b\n"), "b")],
)
def test_what_was_said_last(ran: Ran, said: str) -> None:
    assert ran.said == said

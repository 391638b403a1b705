"""A closed process leaves no core and is not read by others; freed memory is used again."""

from __future__ import annotations

import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import pytest

CLOSED = """
import ctypes, os, resource, sys
from valetkey.contracts.memory import close_memory
resource.setrlimit(resource.RLIMIT_CORE, (resource.RLIM_INFINITY,) * 2)
close_memory()
print(resource.getrlimit(resource.RLIMIT_CORE), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0), flush=True)
sys.stdin.readline()
os.abort()
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="prctl is Linux's")


@pytest.fixture
def closed(tmp_path):
    with subprocess.Popen(
        [sys.executable, "-c", CLOSED],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:
        assert process.stdin
        assert process.stdout
        yield process
        process.kill()


@linux
def test_no_core_is_left(closed, tmp_path):
    assert closed.stdout.readline() == b"(0, 0) 0\n"  # PR_GET_DUMPABLE
    _, status = closed.communicate(b"\n"), closed.wait()
    assert status == -signal.SIGABRT
    assert list(tmp_path.iterdir()) == []


READER = """
import os, sys
pid, user = int(sys.argv[1]), int(sys.argv[2])
os.setgroups([]); os.setgid(user); os.setuid(user)
try:
    open(f"/proc/{pid}/mem", "rb")
except PermissionError:
    print("refused")
else:
    print("opened")
"""


@linux
@pytest.mark.parametrize(("close", "answer"), [("close_memory()", "refused"), ("", "opened")])
def test_a_process_of_the_same_user_cannot_read_it(close, answer, tmp_path):
    """Both run as nobody; the one that is not closed shows that the other could be read."""
    if os.geteuid() != 0:
        pytest.skip("needs root to become another user")
    other = 65_534
    owner = (
        "import os, sys; from valetkey.contracts.memory import close_memory\n"
        f"os.setgroups([]); os.setgid({other}); os.setuid({other})\n"
        # Changing the user closes a process (credentials(7)): start from open.
        f"import ctypes; ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)\n{close}\n"
        "print('ready', flush=True); sys.stdin.readline()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", owner],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    ) as process:
        assert process.stdout
        try:
            assert process.stdout.readline() == b"ready\n"
            ran = subprocess.run(
                [sys.executable, "-c", READER, str(process.pid), str(other)],
                capture_output=True,
                text=True,
                check=True,
                timeout=10,
            )
        finally:
            process.kill()
    scope = Path("/proc/sys/kernel/yama/ptrace_scope")
    if not close and scope.exists() and scope.read_text().strip() != "0":
        answer = "refused"  # the kernel is stricter than its own default
    assert ran.stdout.strip() == answer


CHURN = """
import resource
from valetkey.contracts.memory import keep_freed_memory
{keep}
def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
def turn(): return [b"x" * 256_000 for _ in range(4)]
turn()
before = faults()
for _ in range(100): turn()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
@pytest.mark.parametrize(("keep", "again"), [("keep_freed_memory()", True), ("", False)])
def test_pieces_of_bodies_are_put_where_freed_ones_were(keep, again):
    """The process without it shows that the pages would otherwise be the kernel's each time."""
    pages = 100 * 4 * 256_000 // os.sysconf("SC_PAGE_SIZE")
    environ = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    ran = subprocess.run(
        [sys.executable, "-c", CHURN.format(keep=keep)],
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
        env={**environ, "PYTHONPATH": str(Path(__file__).parents[3])},
    )
    assert (int(ran.stdout) < pages // 10) is again

"""Other programs, run with the environment as it is and for a bounded time."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ran:
    """What became of a program. ``status`` is ``None`` where it had to be ended."""

    status: int | None
    out: str
    err: str

    @property
    def said(self) -> str:
        """The last line that is not empty, of its errors or else of its output."""
        lines = [line.strip() for line in f"{self.out}\n{self.err}".splitlines()]
        return next((line for line in reversed(lines) if line), "")


def run(
    argv: Sequence[str],
    *,
    timeout: float,
    extra: Mapping[str, str] | None = None,
    cwd: str | None = None,
) -> Ran:
    """Run ``argv`` for at most ``timeout`` seconds; ``extra`` variables come on top.

    It gets a process group of its own, so that what it starts (a wrapper's real program) ends with
    it. A program that can't be started gives status 127, as a shell would.
    """
    try:
        process = subprocess.Popen(  # noqa: S603 - what PATH gives for a runtime, no shell
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, **(extra or {})},
            cwd=cwd,
            start_new_session=True,
        )
    except OSError as error:
        return Ran(127, "", f"{argv[0]}: {error.strerror or error}")
    try:
        out, err = process.communicate(timeout=timeout)
        status: int | None = process.returncode
    except subprocess.TimeoutExpired:
        _end(process)
        out, err = process.communicate()
        status = None
    except BaseException:
        _end(process)
        raise
    return Ran(status, out.decode(errors="replace"), err.decode(errors="replace"))


def _end(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()

"""What a process holds in memory stays there: no core file, no reading by its neighbours."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h


def close_memory() -> None:
    """Let no copy of this process's memory be made. For processes that hold keys or tokens.

    No core file is written, nor piped to a program that collects them (which RLIMIT_CORE does not
    prevent: core(5)). On Linux, processes of the same user that have no CAP_SYS_PTRACE can't
    trace this one or read its memory either (PR_SET_DUMPABLE(2const)); on other systems there is
    the limit alone.
    """
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"prctl(PR_SET_DUMPABLE): {os.strerror(number)}")

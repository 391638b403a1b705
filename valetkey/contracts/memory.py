"""The process's memory: closed to its neighbours, and used again rather than asked for anew."""

from __future__ import annotations

import ctypes
import os
import resource
import sys
from typing import Final

_PR_SET_DUMPABLE: Final = 4  # linux/prctl.h
_M_TRIM_THRESHOLD: Final = -1  # malloc.h
_M_MMAP_THRESHOLD: Final = -3


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


def keep_freed_memory() -> None:
    """Let the allocator keep up to 2 MiB that were freed, for what is asked for next.

    The event loop reads bodies in pieces of up to 256 KB. With its defaults glibc takes each from
    the kernel and gives it back, and the kernel fills it with zeros page by page, which costs
    more than all else that is done with it. Other C libraries have no such setting (mallopt(3)).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_MMAP_THRESHOLD, 512 << 10)
        mallopt(_M_TRIM_THRESHOLD, 2 << 20)

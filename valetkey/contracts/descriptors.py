"""How many files and connections a process may have open.

Container runtimes start programs with a soft limit of 1,024, for the sake of those that use
select(2), and a hard one far above it. A broker has a connection or two of each sidecar.
"""

from __future__ import annotations

import resource

from valetkey.contracts.logs import Log


def raise_limit() -> int:
    """Allow as many as the process may allow itself (getrlimit(2)); gives how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (OSError, ValueError) as error:  # some systems have a hard limit beyond their own
            Log("limits").warning("descriptors_unchanged", count=soft, reason=error)
    # "Unlimited" is bounded by the kernel nevertheless (fs.nr_open, 2^20 unless set).
    return soft if soft != resource.RLIM_INFINITY else 1 << 20

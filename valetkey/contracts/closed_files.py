"""Files with a secret in them: whether others than those who need it can open them."""

from __future__ import annotations

import os
import stat


def is_open_to_others(status: os.stat_result) -> bool:
    """Whether the file's mode lets in more than its owner, by the ``fstat`` of the open file.

    Where root owns it, the group may read: a platform mounts secrets so for a service that is not
    root (Kubernetes: mode 0440 and the pod's ``fsGroup``). PostgreSQL has the same rule for its
    server key.
    """
    allowed = 0o740 if status.st_uid == 0 else 0o700
    return bool(stat.S_IMODE(status.st_mode) & ~allowed)

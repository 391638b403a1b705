"""A ConfigMap's volume, written as the kubelet writes it.

The order of Kubernetes' ``AtomicWriter`` (pkg/volume/util/atomic_writer.go): a new directory with a
time in its name, the files in it, the link ``..data_tmp`` to it, that one renamed to ``..data``, links
for new keys, links of keys that are gone removed, the old directory removed.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path


class ConfigMapVolume:
    """The directory that a container mounts."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self._data = directory / "..data"

    def __truediv__(self, key: str) -> Path:
        return self.directory / key

    def write(self, **keys: str) -> None:
        """Make these the keys; ``__`` in a name stands for a dot. No more than a look if they are."""
        payload = {name.replace("__", "."): text for name, text in keys.items()}
        old = self._data.resolve() if self._data.is_symlink() else None
        if old is not None and payload == {path.name: path.read_text() for path in old.iterdir()}:
            return
        fresh = self.directory / f"..{time.strftime('%Y_%m_%d_%H_%M_%S')}.{time.monotonic_ns()}"
        fresh.mkdir(mode=0o755)
        for name, text in payload.items():
            (fresh / name).write_text(text)
            (fresh / name).chmod(0o644)
        temporary = self.directory / "..data_tmp"
        temporary.symlink_to(fresh.name)
        temporary.rename(self._data)
        for name in payload:
            if not (self.directory / name).is_symlink():
                (self.directory / name).symlink_to(f"..data/{name}")
        for link in self.directory.iterdir():
            if not link.name.startswith("..") and link.name not in payload:
                link.unlink()
        if old is not None:
            shutil.rmtree(old)

"""The operator's file of a cluster by itself, judged as each sidecar will judge it."""

from __future__ import annotations

from pathlib import Path

from valetkey.proxy.core.compilation import compile_snapshot
from valetkey.proxy.core.snapshot import Snapshot
from valetkey.proxy.settings import (
    BrokerSettings,
    IdentitySettings,
    ListenerSettings,
    OperatorFileSettings,
    ProxySettings,
    SpoolSettings,
    WorkloadSettings,
)


def compile_operator_file(file: OperatorFileSettings) -> Snapshot:
    """The file with the sections beside it, as far as they make a difference to it.

    Raises `ConfigError` with the key path of what can't be used.
    """
    settings = ProxySettings(
        workload=WorkloadSettings(identity=IdentitySettings(file=Path("/token"))),
        broker=BrokerSettings(url="https://broker.example"),
        spool=SpoolSettings(dir=Path("/spool")),
        # Calls name their target by its url, as in most pods: no two may have the same.
        listeners=(ListenerSettings(bind="127.0.0.1:7072", mode="forward"),),
        targets=file.targets,
        routes=file.routes,
        passthrough=file.passthrough,
    )
    return compile_snapshot(settings, thumbprint="")

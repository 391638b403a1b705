"""``valetkey check``: reads a settings file as its program does; what it names is not opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError

PROGRAMS: Final = ("proxy", "broker", "collector", "injector", "operator")


def check_file(
    program: str, file: Path, *, environ: Mapping[str, str], owner: Path | None = None
) -> None:
    """Load the file as the program would. Raises `ConfigError` with file, line and key.

    ``operator`` is the operator's file of a cluster. ``owner``: a routes file of a workload's
    owner, held against the sidecar's or operator's; what would be withheld is an error here.
    """
    if owner is not None and program not in {"proxy", "operator"}:
        raise ConfigError(f"{owner}: only a proxy's or operator's file can be narrowed")
    if program in {"proxy", "operator"}:
        _check_proxy(program, file, environ, owner)
    elif program == "broker":
        from valetkey.broker.settings import BrokerSettings

        settings.load(BrokerSettings, file, program=program, environ=environ)
    elif program == "injector":
        from valetkey.injector.settings import InjectorSettings

        settings.load(InjectorSettings, file, program=program, environ=environ)
    else:
        from valetkey.collector.settings import CollectorSettings

        settings.load(CollectorSettings, file, program=program, environ=environ)


def _check_proxy(program: str, file: Path, environ: Mapping[str, str], owner: Path | None) -> None:
    from valetkey.proxy.core.compilation import compile_snapshot
    from valetkey.proxy.core.narrowing import narrow
    from valetkey.proxy.core.operator_file import compile_operator_file
    from valetkey.proxy.settings import OperatorFileSettings, OwnerFileSettings, ProxySettings

    # What takes more than one key to judge is judged there; no proof key is needed for that.
    if program == "proxy":
        loaded = settings.load(ProxySettings, file, program=program, environ=environ)
        snapshot = compile_snapshot(loaded, thumbprint="")
    else:
        of_cluster = settings.load(OperatorFileSettings, file, program="proxy", environ={})
        snapshot = compile_operator_file(of_cluster)
    if owner is None:
        return
    narrowed = settings.load(OwnerFileSettings, owner, program="proxy", environ={})
    withheld = narrow(snapshot, narrowed, None, thumbprint="")[1]
    if withheld:
        raise ConfigError(
            f"{owner}: " + "; ".join(f"{each.code.name}: {each}" for each in withheld)
        )

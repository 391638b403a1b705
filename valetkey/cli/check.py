"""``valetkey check``: reads a settings file as its program does; what it names is not opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError

if TYPE_CHECKING:
    from valetkey.proxy.settings import ProxySettings

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
    from valetkey.proxy.settings import OwnerFileSettings, ProxySettings

    if program == "proxy":
        loaded = settings.load(ProxySettings, file, program=program, environ=environ)
    else:
        loaded = _whole(file)
    # What takes more than one key to judge is judged there; no proof key is needed for that.
    snapshot = compile_snapshot(loaded, thumbprint="")
    if owner is None:
        return
    narrowed = settings.load(OwnerFileSettings, owner, program="proxy", environ={})
    withheld = narrow(snapshot, narrowed, None, thumbprint="")[1]
    if withheld:
        raise ConfigError(
            f"{owner}: " + "; ".join(f"{each.code.name}: {each}" for each in withheld)
        )


def _whole(file: Path) -> ProxySettings:
    """The operator's file with the sections beside it, as far as they make a difference here."""
    from valetkey.proxy.settings import (
        BrokerSettings,
        IdentitySettings,
        ListenerSettings,
        OperatorFileSettings,
        ProxySettings,
        SpoolSettings,
        WorkloadSettings,
    )

    loaded = settings.load(OperatorFileSettings, file, program="proxy", environ={})
    return ProxySettings(
        workload=WorkloadSettings(identity=IdentitySettings(file=Path("/token"))),
        broker=BrokerSettings(url="https://broker.example"),
        spool=SpoolSettings(dir=Path("/spool")),
        # Calls name their target by its url, as in most pods: no two may have the same.
        listeners=(ListenerSettings(bind="127.0.0.1:7072", mode="forward"),),
        targets=loaded.targets,
        routes=loaded.routes,
        passthrough=loaded.passthrough,
    )

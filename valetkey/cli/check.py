"""``valetkey check``: reads a settings file as its program does; what it names is not opened."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from valetkey.contracts import settings

PROGRAMS: Final = ("proxy", "broker", "collector", "injector")


def check_file(program: str, file: Path, *, environ: Mapping[str, str]) -> None:
    """Load the file as the program would. Raises `ConfigError` with file, line and key."""
    if program == "proxy":
        from valetkey.proxy.core.compilation import compile_snapshot
        from valetkey.proxy.settings import ProxySettings

        loaded = settings.load(ProxySettings, file, program=program, environ=environ)
        # What takes more than one key to judge is judged there; no proof key is needed for that.
        compile_snapshot(loaded, thumbprint="")
    elif program == "broker":
        from valetkey.broker.settings import BrokerSettings

        settings.load(BrokerSettings, file, program=program, environ=environ)
    elif program == "injector":
        from valetkey.injector.settings import InjectorSettings

        settings.load(InjectorSettings, file, program=program, environ=environ)
    else:
        from valetkey.collector.settings import CollectorSettings

        settings.load(CollectorSettings, file, program=program, environ=environ)

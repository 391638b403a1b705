"""Where the sidecar is: said by options, read from its settings, or its defaults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from valetkey.cli.doctor.proxy_url import Endpoint, ProxyUrlError, endpoint_of, parse
from valetkey.cli.doctor.trust import Files
from valetkey.cli.doctor.variables import Host
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.service import address
from valetkey.proxy.settings import ProxySettings

DEFAULT_LISTENER: Final = Endpoint("127.0.0.1", 7072)
DEFAULT_ADMIN: Final = Endpoint("127.0.0.1", 7071)
_BUNDLE: Final = "BUNDLE_FILE"
_CA: Final = "CA_FILE"
_JAVA: Final = "TRUSTSTORE_FILE"
_PASSWORD: Final = "changeit"  # noqa: S105 - Java's own, in the open


@dataclass(frozen=True, slots=True)
class Where:
    """What is known of the sidecar.

    ``stated``: whether somebody said which listeners it has; else the default stands in until one
    is found. ``admin`` is empty where it is not to be asked.
    """

    listeners: tuple[Endpoint, ...] = (DEFAULT_LISTENER,)
    stated: bool = False
    admin: str = DEFAULT_ADMIN.url
    ca_file: Path | None = None
    bundle_file: Path | None = None
    truststore_file: Path | None = None
    truststore_password: str = _PASSWORD
    hosts: tuple[Host, ...] = ()

    @property
    def files(self) -> Files:
        """Names for recommendations: placeholders where nothing is known."""
        return Files(
            bundle=str(self.bundle_file or _BUNDLE),
            ca=str(self.ca_file or self.bundle_file or _CA),
            java=str(self.truststore_file or _JAVA),
            java_password=self.truststore_password,
        )


def host_of(url: str) -> Host:
    """The host of an http(s) URL. Raises `ConfigError`."""
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 80, "https": 443}[parts.scheme]
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{url}: not an http(s) URL") from error
    if not parts.hostname:
        raise ConfigError(f"{url}: not an http(s) URL")
    return Host(parts.hostname, port)


def from_settings(file: Path, environ: Mapping[str, str], *, transparent: bool = False) -> Where:
    """What a sidecar's settings say; without ``transparent`` there must be a forward listener.

    Raises `ConfigError`.
    """
    loaded = settings.load(ProxySettings, file, program="proxy", environ=environ)
    listeners = tuple(
        endpoint_of(*address(listener.bind))
        for listener in loaded.listeners
        if listener.mode == "forward" and not listener.bind.startswith("unix:")
    )
    if not listeners and not transparent:
        raise ConfigError(f"{file}: listeners: none of mode: forward at an address")
    interception = loaded.interception
    return Where(
        listeners=listeners or (DEFAULT_LISTENER,),
        stated=True,
        admin=endpoint_of(*address(loaded.admin.bind)).url,
        ca_file=interception.certificate_file if interception else None,
        bundle_file=interception.bundle_file if interception else None,
        truststore_file=interception.truststore_file if interception else None,
        truststore_password=interception.truststore_password if interception else _PASSWORD,
        hosts=tuple(host_of(target.url) for target in loaded.targets.values()),
    )


def listeners_said(urls: Sequence[str]) -> tuple[Endpoint, ...]:
    """The forward listeners that ``--proxy`` names. Raises `ConfigError`."""
    found = []
    for url in urls:
        try:
            found.append(parse(url if "://" in url else f"http://{url}").endpoint)
        except ProxyUrlError as error:
            raise ConfigError(f"--proxy: {error}") from error
    return tuple(found)

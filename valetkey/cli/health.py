"""``python -m valetkey.cli.health``: whether the program in this container is well, by its probe.

The image's HEALTHCHECK. Without arguments it asks the program that process 1 was started as, at the
address that the program's own settings name, variables included; so one check is right for every
program of the image. It is started every few seconds beside what it looks at: of the settings it
reads the one address, and it loads neither the programs nor the command line.
"""

from __future__ import annotations

import argparse
import http.client
import os
import re
import ssl
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec

from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.plain_text import plain

_FIRST: Final = Path("/proc/1/cmdline")
_TIMEOUT: Final = 3.0
_ANY: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104 - where such a listener is asked
_SHOWN: Final = 500


class Address(NamedTuple):
    """Where a program's probes are."""

    host: str
    port: int
    tls: bool

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}"


# What is read of each program's settings, with the program's own default. All else in the file is
# the program's to judge.
class _Bound(msgspec.Struct):
    bind: str = "127.0.0.1:7071"


class _Sidecar(msgspec.Struct):
    admin: _Bound = msgspec.field(default_factory=_Bound)


class _Broker(msgspec.Struct):
    bind: str = "127.0.0.1:7080"
    tls: Any = None


class _Collector(msgspec.Struct):
    bind: str = "127.0.0.1:7090"
    tls: Any = None


class _Webhook(msgspec.Struct):
    admin: str = "127.0.0.1:9444"


class _Injector(msgspec.Struct):
    webhook: _Webhook = msgspec.field(default_factory=_Webhook)


PROGRAMS: Final[dict[str, type[Any]]] = {
    "proxy": _Sidecar, "broker": _Broker, "collector": _Collector, "injector": _Injector,
}  # fmt: skip


def probes(program: str, file: Path, environ: Mapping[str, str]) -> Address:
    """Where ``program`` answers probes with this settings file. Raises `ConfigError`."""
    read = settings.load(PROGRAMS[program], file, program=program, environ=environ)
    tls = False
    if isinstance(read, _Sidecar):
        bind = read.admin.bind
    elif isinstance(read, _Injector):
        bind = read.webhook.admin
    else:
        bind = read.bind
        # A certificate and key; ``terminated`` leaves TLS to something in front.
        tls = isinstance(read.tls, dict)
    host, _, port = bind.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65_536:
        raise ConfigError(f"{file}: {bind!r} names no port that could be asked")
    host = host.strip("[]")
    return Address(_ANY.get(host, host), int(port), tls)


def started_as(command: list[str]) -> tuple[str, Path] | None:
    """Program and settings file of a command line: as the image starts them, or by ``valetkey``.

    What stands in front (an init, the interpreter and its options) does not matter.
    """
    for at, word in enumerate(command):
        named = re.fullmatch(r"(?:.*/)?valetkey(?:\.cli)?", word) and command[at + 1 : at + 2]
        program = named[0] if named else word.removeprefix("valetkey.")
        if program not in PROGRAMS or not (named or word.startswith("valetkey.")):
            continue
        for option, value in zip(command[at:], [*command[at + 1 :], ""], strict=True):
            if option == "--config" and value:
                return program, Path(value)
            if option.startswith("--config="):
                return program, Path(option.removeprefix("--config="))
    return None


def ask(address: Address, path: str) -> tuple[int, str]:
    """The answer's status, 0 for none, and what it says."""
    connection: http.client.HTTPConnection
    if address.tls:
        # As the kubelet does: the certificate is for the name that clients know, not for this
        # address, and nothing is sent that could be stolen.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        connection = http.client.HTTPSConnection(
            address.host, address.port, timeout=_TIMEOUT, context=context
        )
    else:
        connection = http.client.HTTPConnection(address.host, address.port, timeout=_TIMEOUT)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        with connection.getresponse() as response:
            return response.status, response.read(_SHOWN).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        return 0, str(error) or type(error).__name__
    finally:
        connection.close()


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 well, 1 not (or it can't be told), 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m valetkey.cli.health",
        description="Ask a program's probe. Without --config: that of process 1.",
    )
    parser.add_argument("program", nargs="?", choices=PROGRAMS, help="with --config")
    parser.add_argument("--config", type=Path, help="the program's settings file")
    parser.add_argument(
        "--live", action="store_true", help="whether it answers at all, not whether it is ready"
    )
    options = parser.parse_args(arguments)
    if (options.program is None) != (options.config is None):
        parser.error("a program needs --config, and --config a program")
    found: tuple[str, Path] | None = options.program, options.config
    if options.program is None:
        found = started_as(_FIRST.read_bytes().decode(errors="replace").split("\0"))
    if found is None:
        return _unwell("process 1 is no program of Valetkey with --config")
    try:
        address = probes(*found, os.environ)
    except ConfigError as error:
        return _unwell(str(error))
    path = "/healthz" if options.live else "/readyz"
    status, text = ask(address, path)
    if status == 200:
        return 0
    return _unwell(f"{address}{path}: {status or 'no answer'}: {text}")


def _unwell(reason: str) -> int:
    """Docker keeps what a check prints, and shows it (``docker inspect``)."""
    print(plain(reason), file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())

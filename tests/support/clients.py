"""The environment of real clients: requests, httpx, aiohttp…, and httpbin to call."""

from __future__ import annotations

import os
import re
import socket
import sys
from pathlib import Path
from typing import Final

import pytest

# Beside the environment that the tests run in, whatever directory they run in (`make compiled`).
BIN: Final = Path(sys.prefix).parent / ".venv-clients" / "bin"
PYTHON: Final = BIN / "python"
NODE_MODULES: Final = BIN.parent / "node_modules"

needs_clients = pytest.mark.skipif(
    not PYTHON.exists(), reason=f"{BIN.parent.name} is not made (make .venv-clients/.done)"
)

# What a developer's shell may have set, and what would decide a test in its place.
_AMBIENT: Final = re.compile(
    r"(https?|wss?|all|no|grpc)_proxy|.*_CA_BUNDLE|SSL_CERT_.*|NODE_.*|GIT_(SSL|CONFIG).*"
    r"|J.*_OPTIONS|REQUEST_METHOD|VALETKEY_.*",
    re.IGNORECASE,
)


def without_ambient() -> dict[str, str]:
    """The environment of a client's program, without proxies and trust stores of this shell."""
    return {key: value for key, value in os.environ.items() if not _AMBIENT.fullmatch(key)}


def upstream_name() -> tuple[str, str]:
    """A name of this machine that is not localhost, and its address: Go and Java call localhost
    directly whatever the variables say.
    """
    name = socket.gethostname().lower()
    try:
        return name, socket.gethostbyname(name)
    except OSError:
        pytest.skip(f"this machine's name ({name}) leads to no address")

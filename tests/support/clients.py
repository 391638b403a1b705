"""The environment of real clients: requests, httpx, aiohttp…, and httpbin to call."""

from __future__ import annotations

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

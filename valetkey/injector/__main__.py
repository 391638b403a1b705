"""``python -m valetkey.injector --config FILE``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from valetkey.contracts.errors import ConfigError
from valetkey.injector.app import run


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 after a clean stop, 1 if a part ended by itself, 2 for unusable settings."""
    parser = argparse.ArgumentParser(prog="python -m valetkey.injector", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="settings file (YAML)")
    try:
        return 0 if run(parser.parse_args(arguments).config) else 1
    except ConfigError as error:
        print(f"valetkey injector: {error}", file=sys.stderr)  # noqa: T201 - before there are logs
        return 2


if __name__ == "__main__":
    sys.exit(main())

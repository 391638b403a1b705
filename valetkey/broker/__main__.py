"""``python -m valetkey.broker --config FILE``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from valetkey.broker.app import run
from valetkey.contracts.errors import ConfigError


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 after a clean stop, 2 for settings that can't be used."""
    parser = argparse.ArgumentParser(prog="python -m valetkey.broker", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the settings file")
    options = parser.parse_args(arguments)
    try:
        run(options.config)
    except ConfigError as error:
        print(f"valetkey broker: {error}", file=sys.stderr)  # noqa: T201 - before there are logs
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

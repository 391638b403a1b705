"""``python -m valetkey.proxy --config FILE``: the sidecar without the command line's imports."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from valetkey.proxy.settings_file import SettingsFile


def main(arguments: list[str] | None = None) -> int:
    """Exit code: 0 after a clean stop, 1 if a part ended by itself, 2 for unusable settings."""
    parser = argparse.ArgumentParser(prog="python -m valetkey.proxy")
    parser.add_argument("--config", type=Path, required=True, help="settings file (YAML)")
    file = SettingsFile(parser.parse_args(arguments).config)
    file.read_ahead()  # and only then the rest of the program: see there

    from valetkey.proxy.app import run

    return run(file)


if __name__ == "__main__":
    sys.exit(main())

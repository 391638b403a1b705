"""``python -m valetkey.collector --config FILE``."""

from __future__ import annotations

import argparse
from pathlib import Path

from valetkey.collector.app import run


def main() -> None:
    """Parse the command line and serve."""
    parser = argparse.ArgumentParser(prog="valetkey-collector", description="Keep the record.")
    parser.add_argument("--config", type=Path, required=True, help="settings file (YAML)")
    run(parser.parse_args().config)


if __name__ == "__main__":
    main()

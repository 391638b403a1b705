"""``python -m valetkey.cli``: the ``valetkey`` command where the console script is not on PATH."""

from __future__ import annotations

from valetkey.cli.main import main

if __name__ == "__main__":
    main(prog_name="valetkey")

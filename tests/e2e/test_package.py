"""The package that is built holds what the programs need, and nothing of this repository's rest."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_wheel_is_whole(tmp_path: Path) -> None:
    done = subprocess.run(
        (
            *(sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index"),
            *("--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(ROOT)),
        ),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = tmp_path.glob("valetkey-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        scripts = next(name for name in names if name.endswith("entry_points.txt"))
        assert "valetkey = valetkey.cli.main:main" in archive.read(scripts).decode()
    source = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "valetkey").rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    packaged = {name for name in names if ".dist-info/" not in name}
    assert packaged == source
    for program in ("broker", "collector"):  # Alembic's scripts are read from the package
        versions = f"valetkey/{program}/store/migrations/versions/"
        assert any(name.startswith(versions) for name in packaged)
    assert any(name.endswith("licenses/LICENSE") for name in names)

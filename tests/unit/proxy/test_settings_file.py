"""The settings file: read ahead or not, and seen to change."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.support.fleet import Fleet
from valetkey.contracts.errors import ConfigError
from valetkey.proxy.settings_file import SettingsFile


@pytest.fixture
def config(tmp_path):
    fleet = Fleet(tmp_path)
    fleet.write()
    return fleet.config


def test_what_was_read_ahead_is_the_first_reading_only(config):
    file = SettingsFile(config)
    file.read_ahead()
    assert not file.changed()
    first = file.read()
    config.write_text("nonsense: 1\n")
    assert file.changed()
    assert SettingsFile(config).changed()
    with pytest.raises(ConfigError, match="nonsense"):
        file.read()
    assert not file.changed()  # a file that was refused is not read again until it changes
    assert first.listeners


def test_a_change_after_reading_ahead_is_seen(config):
    file = SettingsFile(config)
    file.read_ahead()
    os.utime(config, (1, 1))
    file.read()
    assert file.changed()


def test_what_is_wrong_is_said_by_the_reading_itself(config):
    config.write_text("nonsense: 1\n")
    file = SettingsFile(config)
    file.read_ahead()
    with pytest.raises(ConfigError, match="nonsense"):
        file.read()
    config.unlink()
    assert file.changed()


def test_the_program_reads_its_settings_before_most_of_it_is_imported():
    """What reading leaves free is used by what is imported after it."""
    script = (
        "import sys, valetkey.proxy.__main__\n"
        "heavy = {'aiohttp', 'cryptography', 'uvloop', 'prometheus_client'} & set(sys.modules)\n"
        "sys.exit(', '.join(heavy) or 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_sidecar_that_intercepts_nothing_imports_nothing_for_it():
    script = (
        "import sys, valetkey.proxy.app\n"
        "sys.exit('x509' if 'cryptography.x509' in sys.modules else 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")

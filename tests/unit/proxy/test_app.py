"""Parts of the sidecar's assembly that need no process."""

from __future__ import annotations

import asyncio
import json

import pytest

from tests.support.authorities import make
from tests.support.fleet import Fleet
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import parse
from valetkey.proxy.app import Sidecar
from valetkey.proxy.layers import difference
from valetkey.proxy.settings import ProxySettings
from valetkey.proxy.settings_file import SettingsFile


@pytest.fixture(autouse=True)
def process_wide_logs_stay(monkeypatch):
    """Logs are configured for a whole process, which here is pytest's."""
    monkeypatch.setattr("valetkey.proxy.app.logs.configure", lambda _level: None)


def settings(fleet, **changes):
    text = json.dumps(fleet.tree() | changes)
    return parse(ProxySettings, text, name="test", program="proxy")


@pytest.fixture
def fleet(tmp_path):
    made = Fleet(tmp_path)
    made.write()
    return made


DIFFERENT = {
    "nothing": ({}, ""),
    "a section": ({"instance": "other"}, "root.instance"),
    "a key in a section": ({"admin": {"bind": "127.0.0.1:1"}}, "root.admin.bind"),
    "a section that is gone": ({"collector": None}, "root.collector"),
    "deep inside": ({"workload": {"identity": {"file": "/x"}}}, "root.workload.identity.file"),
}


@pytest.mark.parametrize(("change", "key"), DIFFERENT.values(), ids=DIFFERENT)
def test_the_first_difference_is_named(fleet, change, key):
    assert difference("root", settings(fleet), settings(fleet, **change)) == key


async def test_a_background_task_that_ends_is_noticed(fleet, caplog):
    loop = asyncio.get_running_loop()
    sidecar = await asyncio.to_thread(Sidecar, SettingsFile(fleet.config), loop)

    async def breaks():
        raise KeyError("x")

    task = asyncio.ensure_future(breaks())
    task.add_done_callback(sidecar._background_ended)
    await asyncio.wait_for(sidecar.broken.wait(), 15)
    (line,) = [record for record in caplog.records if record.getMessage() == "background_failed"]
    assert line.fields["error_type"] == "KeyError"
    cancelled = asyncio.ensure_future(asyncio.Event().wait())
    cancelled.add_done_callback(sidecar._background_ended)
    cancelled.cancel()
    await asyncio.gather(cancelled, return_exceptions=True)
    await sidecar.spool.stop()


async def test_a_file_that_is_written_in_place_is_read_when_it_is_left_alone(fleet, monkeypatch):
    """Half of it may be settings as well: a route without the line that asks for a person."""
    sidecar = await asyncio.to_thread(
        Sidecar, SettingsFile(fleet.config), asyncio.get_running_loop()
    )
    states = iter([1, 2, 3, 3, 4])
    monkeypatch.setattr(sidecar._layers, "look", lambda: next(states))
    monkeypatch.setattr("valetkey.proxy.app._SETTLES", 0)
    await sidecar._settled()
    assert next(states) == 4
    # One who never ends does not keep others from being heard.
    busy = iter(range(1000))
    monkeypatch.setattr(sidecar._layers, "look", lambda: next(busy))
    await sidecar._settled()
    assert next(busy) < 100
    await sidecar.spool.stop()


async def test_ready_says_why_not(fleet):
    fleet.token_file.unlink()
    sidecar = await asyncio.to_thread(
        Sidecar, SettingsFile(fleet.config), asyncio.get_running_loop()
    )
    assert (await sidecar._ready()).startswith("no workload identity: the token file can't be read")
    fleet.renew()
    await asyncio.to_thread(sidecar.identity.refresh)
    assert await sidecar._ready() == ""
    sidecar.spool._fail("the disk is gone")
    assert await sidecar._ready() == "audit: the disk is gone"
    sidecar.pep.draining = True
    assert await sidecar._ready() == "draining"
    await sidecar.spool.stop()


async def test_a_given_ca_is_followed_and_health_says_how_it_stands(fleet, tmp_path, caplog):
    ca = make("Example CA", ends=3600)
    certificate, key = ca.write(tmp_path)
    fleet.sidecar_changes = {
        "interception": {"ca": {"certificate": str(certificate), "key": str(key)}}
    }
    fleet.write()
    sidecar = await asyncio.to_thread(
        Sidecar, SettingsFile(fleet.config), asyncio.get_running_loop()
    )
    until = ca.certificate.not_valid_after_utc.strftime("%FT%TZ")
    assert sidecar._health()["interception_ca"] == f"good until {until}"
    certificate.write_bytes(make("Other").pem())
    await sidecar._renew_authority()
    assert "the key is not that of the first certificate" in sidecar._health()["interception_ca"]
    assert caplog.messages[-1] == "authority_unusable"
    make("New", ends=7200).write(tmp_path)
    await sidecar._renew_authority()
    assert sidecar._health()["interception_ca"].startswith("good until ")
    assert sidecar._health()["interception_ca"] != f"good until {until}"
    await sidecar.spool.stop()


UNUSABLE = {
    "a host name that is no instance": ({"instance": None}, "instance: the host's name"),
    "plain http to a broker elsewhere": (
        {"broker": {"url": "http://broker.test.example"}}, "broker.url",
    ),
    "plain http to a collector elsewhere": (
        {"collector": {"url": "http://collector.test.example"}}, "collector.url",
    ),
    "a spool that is too small": (
        {"spool": {"dir": "/nonexistent", "segment_size": "1KiB"}}, "spool.segment_size",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("change", "said"), UNUSABLE.values(), ids=UNUSABLE)
async def test_settings_that_can_not_work(fleet, change, said, monkeypatch):
    monkeypatch.setattr("valetkey.proxy.app.socket.gethostname", lambda: "not a name")
    fleet.sidecar_changes = change
    fleet.write()
    with pytest.raises(ConfigError, match=said):
        await asyncio.to_thread(Sidecar, SettingsFile(fleet.config), asyncio.get_running_loop())

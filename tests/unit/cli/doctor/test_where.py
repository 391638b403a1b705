from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.unit.proxy.core.conftest import tree
from valetkey.cli.doctor.proxy_url import Endpoint
from valetkey.cli.doctor.trust import Files
from valetkey.cli.doctor.variables import Host
from valetkey.cli.doctor.where import Where, from_settings, host_of, listeners_said
from valetkey.contracts.errors import ConfigError


def settings(directory: Path, **changes: Any) -> Path:
    file = directory / "proxy.yaml"
    file.write_text(json.dumps(tree(**changes)))
    return file


def test_settings_say_everything(tmp_path: Path) -> None:
    file = settings(
        tmp_path,
        listeners=[
            {"bind": "127.0.0.1:7070"},
            {"bind": "0.0.0.0:7072", "mode": "forward"},
            {"bind": "unix:/run/proxy.sock", "mode": "forward"},
            {"bind": "[::1]:7073", "mode": "forward"},
        ],
        admin={"bind": "127.0.0.1:9999"},
        interception={
            "certificate_file": "/run/ca.pem",
            "bundle_file": "/run/bundle.pem",
            "truststore_file": "/run/trust.p12",
            "truststore_password": "other-password",
        },
    )
    where = from_settings(file, {})
    assert where.stated
    assert where.listeners == (Endpoint("127.0.0.1", 7072), Endpoint("::1", 7073))
    assert where.admin == "http://127.0.0.1:9999"
    assert where.ca_file == Path("/run/ca.pem")
    assert where.files == Files(
        "/run/bundle.pem", "/run/ca.pem", "/run/trust.p12", "other-password"
    )
    assert where.hosts == (
        Host("tickets.example.com", 443),
        Host("pay.example.com", 8443),
        Host("127.0.0.1", 9000),
    )


def test_settings_without_interception(tmp_path: Path) -> None:
    where = from_settings(settings(tmp_path, listeners=[{"bind": "127.0.0.1:1", "mode": "forward"}]), {})  # fmt: skip
    assert where.ca_file is None
    assert where.files == Files("BUNDLE_FILE", "CA_FILE", "TRUSTSTORE_FILE", "changeit")


def test_settings_for_transparent_mode_need_none(tmp_path: Path) -> None:
    file = settings(tmp_path, listeners=[{"bind": "127.0.0.1:7073", "mode": "transparent"}])
    assert Host("pay.example.com", 8443) in from_settings(file, {}, transparent=True).hosts


@pytest.mark.parametrize(
    "listeners",
    [[{"bind": "127.0.0.1:7070"}], [{"bind": "unix:/run/proxy.sock", "mode": "forward"}]],
)
def test_settings_without_a_forward_listener(listeners: list[Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="none of mode: forward"):
        from_settings(settings(tmp_path, listeners=listeners), {})


def test_settings_that_can_not_be_used(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="listeners"):
        from_settings(settings(tmp_path, listeners=[]), {})


def test_defaults() -> None:
    where = Where()
    assert (str(where.listeners[0]), where.admin) == ("127.0.0.1:7072", "http://127.0.0.1:7071")
    assert not where.stated


def test_the_bundle_serves_where_the_ca_alone_is_not_known() -> None:
    assert Where(bundle_file=Path("/b")).files.ca == "/b"


@pytest.mark.parametrize(
    ("url", "host"),
    [
        ("http://a.example/b", Host("a.example", 80)),
        ("https://a.example:8443", Host("a.example", 8443)),
        ("https://[::1]/", Host("::1", 443)),
    ],
)
def test_hosts(url: str, host: Host) -> None:
    assert host_of(url) == host


@pytest.mark.parametrize("url", ["a.example", "ftp://a", "http://", "http://a:b", "https:///x"])
def test_no_hosts(url: str) -> None:
    with pytest.raises(ConfigError, match="not an http"):
        host_of(url)


def test_listeners_that_an_option_names() -> None:
    said = listeners_said(["http://localhost:7072", "127.0.0.1:7073"])
    assert said == (Endpoint("127.0.0.1", 7072), Endpoint("127.0.0.1", 7073))
    with pytest.raises(ConfigError, match="--proxy: no host"):
        listeners_said(["http://"])

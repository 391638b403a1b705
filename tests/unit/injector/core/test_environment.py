"""What an injected sidecar reads is what its real loader makes of it, whatever the file adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.pods import loaded, pod
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.injector.core.mutation import Injected, Place, mutate
from valetkey.injector.settings import InjectorSettings
from valetkey.proxy.core.compilation import compile_snapshot
from valetkey.proxy.settings import ProxySettings

TARGETS = {
    "tickets": {
        "url": "https://tickets.example.com",
        "audience": "https://tickets.example.com",
        "prefix": "/tickets",
        "credential": {"kind": "bearer"},
    }
}
ROUTES = [
    {
        "id": "tickets-read",
        "target": "tickets",
        "match": {"methods": ["GET"], "path": "/api/tickets/{id}"},
        "scopes": ["tickets:read"],
    }
]


def read(file: dict[str, Any], injector: InjectorSettings, **annotations: str) -> ProxySettings:
    """The settings of the sidecar in a pod, with this file in its ConfigMap."""
    noted = {f"valetkey/{name}": value for name, value in annotations.items()}
    document = pod(annotations=noted, securityContext={"runAsUser": 10_001})
    made = mutate(document, Place("agents"), injector)
    assert isinstance(made, Injected), made
    [container] = [
        each for each in made.pod["spec"]["initContainers"] if each["name"] == "valetkey"
    ]
    environ = {each["name"]: each["value"] for each in container["env"]}
    given = settings.parse(
        ProxySettings, yaml.safe_dump(file), name="proxy.yaml", program="proxy", environ=environ
    )
    compile_snapshot(given, thumbprint="")
    return given


@pytest.mark.parametrize("mode", ["forward", "reverse", "transparent"])
@pytest.mark.parametrize("families", [["IPv4"], ["IPv6"], ["IPv6", "IPv4"]])
def test_the_sidecar_loads_it(mode: str, families: list[str]) -> None:
    injector = loaded(pods__ip_families=families)
    given = read({"routes": ROUTES}, injector, mode=mode)
    assert {listener.mode for listener in given.listeners} == {mode}
    assert len(given.listeners) == (len(families) if mode == "transparent" else 1)
    assert (given.interception is None) == (mode == "reverse")
    assert given.workload.identity.file == Path("/var/run/secrets/valetkey/token")
    assert given.broker.ca_file == Path("/etc/valetkey/anchors/ca.crt")
    assert given.collector is not None
    assert given.collector.identity is not None
    assert given.collector.identity.file == Path("/var/run/secrets/valetkey/collector-token")
    assert given.limits == injector.sidecar.limits
    assert given.timeouts == injector.sidecar.timeouts


def test_nothing_but_routes_counts_of_the_file() -> None:
    """A namespace's owner writes the ConfigMap, the operator everything else."""
    example = yaml.safe_load((Path(__file__).parents[4] / "config/proxy.yaml").read_text())
    evil = {
        **example,
        "broker": {"url": "https://evil.example"},
        "collector": {"url": "https://evil.example"},
        "listeners": [{"bind": "0.0.0.0:1", "mode": "forward"}],
        "admin": {"bind": "0.0.0.0:2"},
        "instance": "somebody-else",
        "limits": {"connections": 1_000_000},
        "timeouts": {"drain": "1d"},
        "network": {"nat64": ["64:ff9b::/96"]},
        "log_level": "debug",
        "passthrough": [{"host": "*.evil.example"}],
        "spool": {"dir": "/tmp/x"},
        "interception": {"key_file": "/run/valetkey/ca.key"},
        "owner": {"targets": ["evil"]},
        "targets": TARGETS | {"evil": {**TARGETS["tickets"], "url": "https://evil.example"}},
    }
    assert set(evil) == set(ProxySettings.__struct_fields__)
    honest = {"routes": example["routes"]}
    assert read(evil, loaded()) == read(honest, loaded())


def test_what_is_left_to_the_file() -> None:
    injector = loaded(sidecar__targets=None, sidecar__passthrough=None)
    file = {"routes": ROUTES, "targets": TARGETS, "passthrough": [{"host": "*.packages.example"}]}
    given = read(file, injector)
    assert set(given.targets) == {"tickets"}
    assert given.passthrough[0].host == "*.packages.example"
    assert given.broker.url == "https://broker.valetkey.svc:7080"


def test_a_pod_chooses_its_targets() -> None:
    assert set(read({"routes": ROUTES}, loaded(), targets="tickets").targets) == {"tickets"}
    with pytest.raises(ConfigError, match="no target 'tickets'"):
        read({"routes": ROUTES}, loaded(), targets="payments")


def test_a_service_of_the_namespace_does_not_stop_it() -> None:
    """The kubelet sets variables for each Service (enableServiceLinks)."""
    links = {
        "VALETKEY_SERVICE_HOST": "10.0.0.1",
        "VALETKEY_BROKER_SERVICE_PORT_HTTPS": "7080",
        "VALETKEY_BROKER_PORT": "tcp://10.0.0.1:7080",
        "VALETKEY_BROKER_PORT_7080_TCP_ADDR": "10.0.0.1",
    }
    text = (Path(__file__).parents[4] / "config/proxy.yaml").read_text()
    with_links, without = (
        settings.parse(ProxySettings, text, name="p", program="proxy", environ=environ)
        for environ in (links, {})
    )
    assert with_links == without
    for variable in ("VALETKEY_BROKER", "VALETKEY_PROXY_BROKER__URL", "VALETKEY_BROKER_PORTS"):
        with pytest.raises(ConfigError, match="unknown variable"):
            settings.parse(ProxySettings, text, name="p", program="proxy", environ={variable: "x"})

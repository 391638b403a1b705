"""The injector's settings: the example loads, and what can't go together is refused by name."""

from __future__ import annotations

import pytest
import yaml

from tests.support.pods import EXAMPLE
from valetkey.contracts import settings
from valetkey.contracts.errors import ConfigError
from valetkey.injector.core.quantity import amount, same_amount
from valetkey.injector.settings import InjectorSettings, version_of

REFUSED = {
    "a path for the CA": ({"sidecar": {"broker": {"url": "https://b", "ca_file": "/ca"}}}, "name a ConfigMap in trust"),
    "an identity of the collector": (
        {"sidecar": {"collector": {"url": "https://c", "identity": {"file": "/t"}}}},
        "collector_audience",
    ),
    "mutual TLS": ({"sidecar": {"broker": {"url": "https://b", "mtls_url": "https://m"}}}, "X.509-SVID"),
    "one audience for both": (
        {"sidecar": {"collector_audience": "https://broker.valetkey.svc:7080"}},
        "could use the broker's token",
    ),
    "an audience for nobody": ({"sidecar": {"collector": None, "collector_audience": "c"}}, "there is no collector"),
    "transparent without a redirect": ({"sidecar": {"mode": "transparent"}, "redirect": None}, "needs redirect"),
    "resources upside down": (
        {"sidecar": {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1500m"}}}},
        "requests.cpu is more than limits.cpu",
    ),
    "a spool of nothing": ({"sidecar": {"spool": "1MiB"}}, "spool is 16MiB at least"),
    "an image of two words": ({"sidecar": {"image": "a b"}}, "sidecar.image"),
    "root": ({"sidecar": {"uid": 0}}, "sidecar.uid"),
    "a shell's characters": ({"redirect": {"image": "r", "ports": "80;reboot"}}, "redirect.ports"),
    "both certificates": ({"webhook": {"tls": {"cert_file": "/c", "key_file": "/k"}}}, "one of tls and own"),
    "no certificate": ({"webhook": {"own": None}}, "one of tls and own"),
    "an overlap that nobody sees": (
        {"webhook": {"own": {"service": "s", "overlap": "2m", "check_every": "1m"}}},
        "four times check_every",
    ),
    "a leaf that outlives its CA": (
        {"webhook": {"own": {"service": "s", "leaf_lifetime": "30d", "ca_lifetime": "60d"}}},
        "leaf_lifetime is",
    ),
    "no port": ({"webhook": {"bind": "0.0.0.0"}}, "bind: '0.0.0.0' is not host:port"),
    "one family twice": ({"pods": {"ip_families": ["IPv4", "IPv4"]}}, "there twice"),
    "targets in two places": ({"sidecar": {"operator": {}}}, "targets and passthrough are in its file"),
    "an owner's file that is the operator's": (
        {"sidecar": {"targets": None, "operator": {"owner": "valetkey-operator"}}},
        "can't write the operator's file",
    ),
    "a look a year": ({"sidecar": {"targets": None, "operator": {"check_every": "365d"}}}, "check_every is between"),
    "an old name": ({"pods": {"namespaces": []}}, "unknown key"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_not_go_together_is_refused(name: str) -> None:
    changes, said = REFUSED[name]
    tree = yaml.safe_load(EXAMPLE.read_text())
    for section, keys in changes.items():
        tree[section] = None if keys is None else {**(tree.get(section) or {}), **keys}
    text = yaml.safe_dump(tree)
    with pytest.raises(ConfigError) as raised:
        settings.parse(InjectorSettings, text, name="injector.yaml", program="injector")
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("text", "version"), [("1.31", (1, 31)), ("1.28+", (1, 28)), ("1.30-gke.1", (1, 30))]
)
def test_versions(text: str, version: tuple[int, int]) -> None:
    assert version_of(text) == version


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1", "1000m", True), ("0.5", "500m", True), ("1Gi", "1024Mi", True), ("1k", "1000", True),
        ("1G", "1Gi", False), ("1", "1m", False), ("x", "x", True), ("x", "1", False), ("1", 1, True),
    ],
)  # fmt: skip
def test_quantities(one: object, other: object, same: bool) -> None:
    assert same_amount(one, other) is same


@pytest.mark.parametrize("text", ["", "1 Gi", "-1", "1e3", ".5", "Gi", "1\n"])
def test_what_is_no_quantity(text: str) -> None:
    with pytest.raises(ValueError, match="is no quantity"):
        amount(text)

"""Tunnels: to a target they are opened up, to listed hosts opaque, and to all others refused."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.proxy.core.conftest import compiled, route, tree
from valetkey.contracts import codes
from valetkey.contracts.errors import ConfigError
from valetkey.proxy.core.decision import (
    Deny,
    Principal,
    RequestFacts,
    TunnelPermit,
    decide,
    decide_tunnel,
)
from valetkey.proxy.core.snapshot import Passthrough, Snapshot, Target
from valetkey.proxy.settings import PassthroughSettings

FORWARD = [{"bind": "127.0.0.1:7072", "mode": "forward"}]


def snapshot(
    *passthrough: dict[str, Any], listeners: list[dict[str, Any]] | None = None
) -> Snapshot:
    targets = {
        name: {"url": url, "audience": url, "credential": {"kind": "bearer"}}
        for name, url in (
            ("api", "https://api.example"),
            ("odd", "https://api.example:8443"),
            ("plain", "http://plain.example"),
        )
    }
    return compiled(
        tree(
            targets=targets,
            routes=[route("r", "/", target="api")],
            listeners=listeners or FORWARD,
            passthrough=list(passthrough),
        )
    )


def test_a_tunnel_to_a_target_is_that_target() -> None:
    known = snapshot()
    for host, port, name in (
        ("api.example", 443, "api"),
        ("api.example", 8443, "odd"),
        ("plain.example", 80, "plain"),
    ):
        target = decide_tunnel(host, port, known)
        assert isinstance(target, Target)
        assert target.name == name


@pytest.mark.parametrize(("port", "scheme"), [(443, "https"), (80, "http")])
def test_a_tunnel_to_the_reserved_host_is_opened_for_no_call(port: int, scheme: str) -> None:
    """Whatever is passed through around it."""
    known = snapshot({"host": "*.invalid", "ports": [80, 81, 443]})
    target = decide_tunnel("valetkey.invalid", port, known)
    assert isinstance(target, Target)
    assert target.url == f"{scheme}://valetkey.invalid"
    assert isinstance(decide_tunnel("valetkey.invalid", 81, known), TunnelPermit)
    facts = RequestFacts("GET", "valetkey.invalid", "/", origin=target.url)
    verdict = decide(facts, known, Principal("https://idp.example", "bot"))
    assert isinstance(verdict, Deny)
    assert verdict.code is codes.TARGET_NO_MATCH


@pytest.mark.parametrize(
    ("host", "port"),
    [("api.example", 80), ("plain.example", 81), ("plain.example", 443), ("x", 443)],
)
def test_a_tunnel_to_nothing_known_is_refused(host: str, port: int) -> None:
    verdict = decide_tunnel(host, port, snapshot())
    assert isinstance(verdict, Deny)
    assert verdict.code is codes.TARGET_NO_MATCH


def test_where_tls_is_what_comes_only_targets_of_https_count() -> None:
    known = snapshot()
    assert isinstance(decide_tunnel("plain.example", 80, known), Target)
    assert isinstance(decide_tunnel("plain.example", 80, known, tls=True), Deny)
    assert isinstance(decide_tunnel("api.example", 443, known, tls=True), Target)


def test_without_a_forward_listener_there_are_no_origins() -> None:
    reverse = snapshot(listeners=[{"bind": "127.0.0.1:7070"}])
    assert reverse.origins == {}
    assert isinstance(decide_tunnel("api.example", 443, reverse), Deny)


PASSTHROUGH = [
    {"host": "pypi.example"},
    {"host": "*.cdn.example", "ports": [443, 8443]},
    {"host": "*.deep.cdn.example"},
    {"host": "*.example"},
]
OPAQUE = [
    ("pypi.example", 443, "pypi.example"),
    ("pypi.example", 8443, None),
    ("a.cdn.example", 8443, "*.cdn.example"),
    ("a.b.cdn.example", 443, "*.cdn.example"),
    ("a.deep.cdn.example", 443, "*.deep.cdn.example"),
    ("deep.cdn.example", 443, "*.cdn.example"),
    ("cdn.example", 443, "*.example"),
    ("cdn.example", 8443, None),
    ("example", 443, None),
    ("evilcdn.example.org", 443, None),
]


@pytest.mark.parametrize(("host", "port", "name"), OPAQUE)
def test_listed_hosts_get_an_opaque_tunnel(host: str, port: int, name: str | None) -> None:
    verdict = decide_tunnel(host, port, snapshot(*PASSTHROUGH))
    if name is None:
        assert isinstance(verdict, Deny)
    else:
        assert isinstance(verdict, TunnelPermit)
        assert verdict.passthrough.name == name
        assert (verdict.host, verdict.port) == (host, port)


def test_a_wildcard_never_leads_around_a_target() -> None:
    assert isinstance(decide_tunnel("api.example", 443, snapshot({"host": "*.example"})), Target)


REFUSED: list[tuple[str, list[dict[str, Any]], str]] = [
    ("a target", [{"host": "api.example"}], "passthrough.0.host: api.example:443 is a target"),
    (
        "a plain target",
        [{"host": "plain.example", "ports": [80]}],
        "passthrough.0.host: plain.example:80 is a target",
    ),
    (
        "the reserved host",
        [{"host": "valetkey.invalid"}],
        "passthrough.0.host: valetkey.invalid is the sidecar's own",
    ),
    ("twice", [{"host": "a.example"}, {"host": "A.example"}], "passthrough.1.host"),
    ("a port in the name", [{"host": "a.example:443"}], "passthrough.0.host: the port"),
    ("no name", [{"host": "a b"}], "passthrough.0.host"),
    ("a wildcard inside", [{"host": "a.*.example"}], "passthrough.0.host"),
    (
        "no network",
        [{"host": "a.example", "allow_networks": ["x"]}],
        "passthrough.0.allow_networks",
    ),
]


@pytest.mark.parametrize(
    ("name", "passthrough", "where"), REFUSED, ids=[case[0] for case in REFUSED]
)
def test_what_settings_may_not_pass_through(
    name: str, passthrough: list[dict[str, Any]], where: str
) -> None:
    with pytest.raises(ConfigError, match=where):
        snapshot(*passthrough)


def test_only_the_decision_makes_a_tunnel_permit() -> None:
    listed = Passthrough(PassthroughSettings(host="a.example"), "passthrough.0")
    with pytest.raises(TypeError):
        TunnelPermit(object(), listed, "a.example", 443)


def test_two_targets_of_one_origin_are_one_too_many_for_a_forward_listener() -> None:
    both = {
        name: {"url": "https://api.example", "audience": name, "credential": {"kind": "bearer"},
               "prefix": f"/{name}"}
        for name in ("one", "two")
    }  # fmt: skip
    routes = [route("r", "/", target="one")]
    assert compiled(tree(targets=both, routes=routes)).origins == {}
    with pytest.raises(
        ConfigError, match=r"targets\.two\.url: 'https://api\.example' already leads"
    ):
        compiled(tree(targets=both, routes=routes, listeners=FORWARD))


LISTENERS: list[tuple[dict[str, Any], str]] = [
    ({"bind": "127.0.0.1:1", "mode": "forward", "target": "api"}, "listeners.0.target"),
    ({"bind": "127.0.0.1:1", "mode": "transparent", "target": "api"}, "listeners.0.target"),
    ({"bind": "127.0.0.1:1", "mode": "transparent", "token_file": "/t"}, "listeners.0.token_file"),
    ({"bind": "unix:/s", "mode": "transparent"}, "listeners.0.bind"),
    ({"bind": "127.0.0.1:1", "target": "unknown"}, "listeners.0.target"),
    ({"bind": "127.0.0.1:1", "uids": [1]}, "listeners.0.uids"),
]


@pytest.mark.parametrize(("listener", "where"), LISTENERS)
def test_listeners_that_make_no_sense(listener: dict[str, Any], where: str) -> None:
    with pytest.raises(ConfigError, match=where):
        snapshot(listeners=[listener])

"""Snapshots made from the same text that an operator would write."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from valetkey.contracts import settings
from valetkey.proxy.core.compilation import compile_snapshot
from valetkey.proxy.core.snapshot import Snapshot
from valetkey.proxy.settings import ProxySettings

THUMBPRINT = "thumbprint-of-the-process"


def tree(**changes: Any) -> dict[str, Any]:
    """Settings with three targets; a change replaces a whole top-level section."""
    return {
        "workload": {"identity": {"file": "/run/token"}},
        "broker": {"url": "https://broker.example:7080"},
        "spool": {"dir": "/run/spool"},
        "listeners": [{"bind": "127.0.0.1:0"}],
        "targets": {
            "tickets": {
                "url": "https://tickets.example.com",
                "audience": "https://tickets.example.com",
                "prefix": "/tickets",
                "hosts": ["tickets.local"],
                "credential": {"kind": "bearer"},
            },
            "pay": {
                "url": "https://pay.example.com:8443",
                "audience": "urn:pay",
                "hosts": ["pay.local:7070"],
                "credential": {"kind": "dpop"},
            },
            "vendor": {
                "url": "http://127.0.0.1:9000",
                "audience": "urn:vendor",
                "prefix": "/vendor",
                "credential": {"kind": "header", "name": "X-Vendor-Key"},
                "allow_networks": ["127.0.0.0/8"],
            },
        },
        "routes": [
            route("tickets-read", "/api/tickets/{id}", methods=["GET", "HEAD"]),
            route("tickets-root", "/"),
            route("tickets-rest", "/api/{rest*}"),
            route("tickets-close", "/api/tickets/{id}/close", methods=["POST"], per_request=True),
            route("pay-read", "/v1/{rest*}", target="pay", scopes=["b", "a", "b"]),
            route("vendor-read", "/{rest*}", target="vendor"),
        ],
        **changes,
    }


def route(
    name: str, path: str, *, target: str = "tickets", methods: Any = ("GET",), **more: Any
) -> dict[str, Any]:
    return {
        "id": name,
        "target": target,
        "match": {"methods": list(methods), "path": path},
        "scopes": ["s:read"],
        **more,
    }


def compiled(document: dict[str, Any]) -> Snapshot:
    loaded = settings.parse(
        ProxySettings, json.dumps(document), name="proxy.yaml", program="proxy", environ={}
    )
    return compile_snapshot(loaded, thumbprint=THUMBPRINT)


@pytest.fixture
def snapshot() -> Snapshot:
    return compiled(tree())


@pytest.fixture(name="tree")
def _tree() -> Callable[..., dict[str, Any]]:
    return tree


@pytest.fixture(name="route")
def _route() -> Callable[..., dict[str, Any]]:
    return route


@pytest.fixture(name="compiled")
def _compiled() -> Callable[[dict[str, Any]], Snapshot]:
    return compiled

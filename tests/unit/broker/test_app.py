"""What the parts of a broker are told of its settings."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.broker.test_settings import ISSUER, TICKETS, URL, load
from valetkey.broker.app import _audience

OWN = {"issuer": URL, "audience": "https://t", "use": "user", "jwks_file": "/own.json"}
MESH = {"audience": "acme.example", "credential": "txn_token"}


@pytest.mark.parametrize(
    ("changes", "chained"),
    [
        ({}, False),
        ({"issuers": [ISSUER, OWN]}, True),
        ({"targets": {"tickets": TICKETS, "mesh": MESH}}, True),
    ],
    ids=["neither", "its own issuer", "transaction tokens"],
)
def test_whether_a_workload_can_be_the_subject_of_anothers_credential(
    changes: dict[str, Any], *, chained: bool
) -> None:
    assert _audience(load(**changes)).chained is chained

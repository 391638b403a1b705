from __future__ import annotations

import re
import string

import pytest

from valetkey.cli.doctor.clients import CLIENTS
from valetkey.cli.doctor.findings import Kind, all_kinds
from valetkey.contracts import codes


@pytest.mark.parametrize("kind", all_kinds(), ids=lambda kind: kind.name)
def test_each_kind_is_whole(kind: Kind) -> None:
    assert re.fullmatch(r"doctor\.[a-z_]+", kind.name)
    assert kind.meaning.endswith(".")
    assert kind.action
    names = [name for _, name, _, _ in string.Formatter().parse(kind.action) if name]
    finding = kind.found("here", "seen", **{name: name.upper() for name in names})
    assert "\n" not in finding.action
    assert "{" not in finding.action
    assert all(name.upper() in finding.action for name in names)
    assert finding.is_wrong == (kind.level == "wrong")


def test_the_family_is_nobody_elses() -> None:
    assert "doctor" not in {code.family for code in codes.all_codes()}


def test_a_value_that_is_missing_is_an_error() -> None:
    kind = next(kind for kind in all_kinds() if "{" in kind.action)
    with pytest.raises(KeyError):
        kind.found("here", "seen")


def test_clients_are_told_apart_and_whole() -> None:
    assert len({client.name for client in CLIENTS}) == len(CLIENTS)
    assert all(each.proxy and each.trust and each.action for each in CLIENTS)
    assert not any("|" in text for each in CLIENTS for text in (each.name, each.proxy, each.trust, each.action))  # fmt: skip

"""The grants file as the broker holds it (the reload is in tests/integration)."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.unit.broker.core.test_grants import FILES, IDP, TICKETS
from valetkey.broker.core.grants import Policy
from valetkey.broker.metrics import Metrics
from valetkey.broker.policy_file import PolicyFile
from valetkey.contracts.errors import ConfigError

GOOD = """
grants:
  - {id: g, workload: w, issuer: "https://idp.example", target: tickets, scopes: [read]}
"""


def policy_file(path: Path) -> PolicyFile:
    return PolicyFile(path, (TICKETS, FILES), issuers=frozenset({IDP}), metrics=Metrics())


async def write(path: Path, text: str) -> None:
    await asyncio.to_thread(path.write_text, text)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("missing", None, "can't be read"),
        ("key", GOOD.replace("scopes", "scope"), r":3: grants\.0\.scope: unknown key"),
        ("value", GOOD.replace("[read]", "[]"), r":3: grants\.0"),
        ("target", GOOD.replace("tickets", "nowhere"), "no target 'nowhere'"),
    ],
)
async def test_the_first_load_raises_with_the_place(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    path = tmp_path / "grants.yaml"
    if text is not None:
        await write(path, text)
    with pytest.raises(ConfigError, match=message):
        await policy_file(path).load()


async def test_an_unchanged_file_is_not_read_again(tmp_path: Path) -> None:
    path = tmp_path / "grants.yaml"
    await write(path, GOOD)
    file = policy_file(path)
    await file.load()
    policy = file.current
    await file.reload()
    assert file.current is policy
    await file.reload(force=True)
    assert file.current is not policy
    assert file.current.digest == policy.digest


async def test_calls_in_flight_keep_the_snapshot_they_began_with(tmp_path: Path) -> None:
    path = tmp_path / "grants.yaml"
    await write(path, GOOD)
    file = policy_file(path)
    await file.load()
    before = file.current
    await write(path, GOOD.replace("read", "write"))
    await file.reload()
    assert [grant.scopes for grant in before.index] == [{"read"}]
    assert [grant.scopes for grant in file.current.index] == [{"write"}]


async def test_two_reloads_at_once_tell_of_a_removed_grant_once(tmp_path: Path) -> None:
    """The file watch and SIGHUP may find the same change."""
    path = tmp_path / "grants.yaml"
    await write(path, GOOD)
    file = policy_file(path)
    await file.load()
    told: list[tuple[list[str], list[str]]] = []

    async def swapped(before: Policy, after: Policy) -> None:
        assert file.current is after
        told.append(([*before.written], [*after.written]))

    file.on_swapped(swapped)
    await write(path, GOOD.replace("id: g,", "id: other,"))
    await asyncio.gather(file.reload(), file.reload(), file.reload(force=True))
    assert [each for each in told if each[0] != each[1]] == [(["g"], ["other"])]

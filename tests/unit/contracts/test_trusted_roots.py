"""Roots that change under a client: whom it trusts at each moment, and what it says of a bad file."""

from __future__ import annotations

import asyncio
import ssl
from pathlib import Path

import pytest
import trustme

from tests.support.handshake import shake
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.trusted_roots import TrustedRoots

NAME = "broker.test.example"
OLD, NEW = trustme.CA(), trustme.CA()


def server(ca: trustme.CA) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert(NAME).configure_cert(context)
    return context


SERVERS = {"old": server(OLD), "new": server(NEW)}


def trusted(context: ssl.SSLContext) -> set[str]:
    return {name for name, one in SERVERS.items() if shake(one, context, NAME).good}


def put(path: Path, *cas: trustme.CA) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_bytes(b"".join(ca.cert_pem.bytes() for ca in cas))
    fresh.replace(path)


async def test_each_look_has_what_is_there(tmp_path: Path) -> None:
    path = tmp_path / "ca.pem"
    put(path, OLD)
    roots = await asyncio.to_thread(TrustedRoots, "broker.ca_file", path)
    assert trusted(roots.context) == {"old"}
    first = await roots.current()
    assert first is await roots.current(), "nothing new: connections may be used again"
    for cas, expected in (((OLD, NEW), {"old", "new"}), ((NEW,), {"new"})):
        put(path, *cas)
        assert trusted(await roots.current()) == expected
    assert trusted(first) == {"old"}, "what was handed out stays what it was"


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"no certificate"),
        lambda path: (path.unlink(), path.mkdir()),
    ],
    ids=["gone", "empty", "no certificate", "a directory"],
)
def test_a_bad_file_changes_nothing_and_is_told_of_once(
    tmp_path: Path, spoil, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    path = tmp_path / "ca.pem"
    put(path, OLD)
    roots = TrustedRoots("broker.ca_file", path)
    spoil(path)
    for _ in range(3):
        roots.refresh()
    assert roots.problem.startswith(f"broker.ca_file: {path}: ")
    assert trusted(roots.context) == {"old"}
    assert caplog.messages == ["roots_unusable"]
    with pytest.raises(ConfigError, match=r"broker\.ca_file"):
        TrustedRoots("broker.ca_file", path)
    if path.is_dir():
        path.rmdir()
    put(path, NEW)
    roots.refresh()
    assert (roots.problem, trusted(roots.context)) == ("", {"new"})
    assert caplog.messages == ["roots_unusable", "roots_taken_up"]


async def test_without_a_file_the_system_s_roots_are_trusted() -> None:
    roots = await asyncio.to_thread(TrustedRoots, "broker.ca_file", None)
    assert await roots.current() is roots.context
    assert trusted(roots.context) == set()
    assert roots.context.verify_mode is ssl.CERT_REQUIRED

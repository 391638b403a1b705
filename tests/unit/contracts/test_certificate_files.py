"""A pair of files that is exchanged: what is told of it, and which bytes belong together."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from prometheus_client import CollectorRegistry

from tests.support.secret_volume import CERTIFICATE, KEY, Pair, SecretVolume
from tests.support.waiting import turns, until
from valetkey.contracts import certificate_files
from valetkey.contracts.certificate_files import CertificateFiles, CertificateMetrics
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.served_certificate import ServedCertificate
from valetkey.contracts.service import TlsSettings

NAME = "broker.test.example"
CA = trustme.CA()


class Watched:
    """A volume and what watches it, at a time that the test says."""

    def __init__(self, directory: Path) -> None:
        self.volume = SecretVolume(directory / "tls")
        self.registry = CollectorRegistry()
        self.later = 0.0
        files = {name: Path(path) for name, path in self.volume.settings.items()}
        self.files = CertificateFiles(
            TlsSettings(**files),
            ServedCertificate(),
            CertificateMetrics(self.registry, "test"),
            every=0.01,
            now=lambda: time.time() + self.later,
        )

    def metric(self, name: str, **labels: str) -> float | None:
        return self.registry.get_sample_value(f"test_certificate{name}", labels)

    @property
    def numbers(self) -> tuple[Any, ...]:
        return (
            self.metric("s_total", result="taken_up"),
            self.metric("s_total", result="failed"),
            self.metric("_failing"),
        )


@pytest.fixture
def watched(tmp_path: Path) -> Watched:
    return Watched(tmp_path)


async def test_what_is_told_over_its_life(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    assert watched.metric("_expiry_timestamp_seconds") == 0
    good = Pair.of(CA, NAME, starts=-600, ends=1200)
    watched.volume.put(good)
    await watched.files.load()
    assert watched.numbers == (1, 0, 0)
    ends = good.leaf.not_valid_after_utc
    assert watched.metric("_expiry_timestamp_seconds") == ends.timestamp()
    assert watched.metric("_lifetime_seconds") == 1800
    assert watched.files.state == f"good until {ends:%FT%TZ}"
    await watched.files.look()
    assert watched.numbers == (1, 0, 0), "nothing new"

    watched.volume.put_files({CERTIFICATE: good.certificate, KEY: Pair.of(CA, NAME).key})
    for _ in range(3):
        await watched.files.look()
    assert watched.numbers == (1, 3, 1)
    assert watched.files.state.startswith(f"{watched.volume.directory / CERTIFICATE}: certificate ")
    assert watched.metric("_expiry_timestamp_seconds") == ends.timestamp()
    assert caplog.messages == ["certificate_taken_up", "certificate_unusable"], "said once"
    watched.later = 1300
    assert watched.files.state.startswith("it has expired; ")

    watched.later = 0
    watched.volume.put(good)
    await watched.files.look()
    assert watched.numbers == (1, 3, 0)
    assert caplog.messages[-1] == "certificate_usable"
    watched.later = 1300
    assert watched.files.state == "it has expired"


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.unlink(), "can't be read: No such file"),
        (lambda path: (path.unlink(), path.mkdir()), "can't be read: Is a directory"),
        (lambda path: path.write_bytes(b"x" * (2 << 20)), "is larger than"),
    ],
    ids=["gone", "a directory", "too large"],
)
@pytest.mark.parametrize("name", [CERTIFICATE, KEY])
async def test_a_file_that_can_not_be_read(
    watched: Watched, spoil: Any, reason: str, name: str
) -> None:
    watched.volume.put(Pair.of(CA, NAME))
    await watched.files.load()
    spoil(watched.volume.directory / "..data" / name)
    await watched.files.look()
    assert name in watched.files.problem
    assert reason in watched.files.problem
    assert watched.numbers == (1, 1, 1)
    with pytest.raises(ConfigError, match=reason):
        await Watched(watched.volume.directory.parent).files.load()


async def test_a_pair_that_is_exchanged_between_two_reads_is_read_again(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Pair.of(CA, NAME), Pair.of(CA, NAME)
    watched.volume.put(one)
    real, read = certificate_files._content, list[str]()

    def reading(path: Path) -> bytes:
        content = real(path)
        read.append(path.name)
        if len(read) == 1:
            watched.volume.put(two)
        return content

    monkeypatch.setattr(certificate_files, "_content", reading)
    await watched.files.load()
    assert read == [CERTIFICATE, KEY] * 2
    assert watched.files.served.expires == two.leaf.not_valid_after_utc.timestamp()
    assert watched.numbers == (1, 0, 0)


async def test_two_looks_at_once_do_not_bring_back_what_was(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = Pair.of(CA, NAME), Pair.of(CA, NAME)
    watched.volume.put(one)
    await watched.files.load()
    served: list[bytes] = []
    real = watched.files.served.replace
    entered, release = asyncio.Event(), asyncio.Event()

    async def replace(certificate: bytes, key: bytes, *, now: float) -> None:
        if not served:
            entered.set()
            await release.wait()
        served.append(certificate)
        await real(certificate, key, now=now)

    monkeypatch.setattr(watched.files.served, "replace", replace)
    looks = [asyncio.create_task(watched.files.look())]
    await entered.wait()
    watched.volume.put(two)
    looks.append(asyncio.create_task(watched.files.look()))
    await turns()
    release.set()
    await asyncio.gather(*looks)
    assert served == [one.certificate, two.certificate]


async def test_what_nobody_foresaw_ends_no_watch(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    watched.volume.put(Pair.of(CA, NAME))
    await watched.files.load()

    async def replace(*_: Any, **__: Any) -> None:
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patched:
        patched.setattr(watched.files.served, "replace", replace)
        async with watched.files.kept_up():
            await until(lambda: watched.files.problem, "it is noticed")
            assert watched.files.problem.startswith("RuntimeError at ")
            patched.undo()
            await until(lambda: not watched.files.problem, "it goes on")
    assert "secret detail" not in caplog.text

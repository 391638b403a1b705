"""Certificates of broker and collector are renewed under load: processes, real TLS, no failed call.

Calls go on over connections of their own and over connections that stay open, while the volume with
the pair is exchanged as the kubelet does it: for a good one, for one that can't be used, and back.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import trustme
from cryptography import x509

from tests.integration.broker_support import World
from tests.support.collector import CollectorBench
from tests.support.ports import free_port, free_url
from tests.support.procs import Program
from tests.support.secret_volume import CERTIFICATE, KEY, Pair, SecretVolume
from tests.support.trust_domain import TrustDomain
from tests.support.waiting import until

HOST = "localhost"


class Caller:
    """Calls one URL without a pause: by a new connection each time, or by one that stays."""

    def __init__(self, url: str, context: ssl.SSLContext, *, stays: bool) -> None:
        parts = urlsplit(url)
        assert parts.port is not None
        self._port = parts.port
        self._path = parts.path
        self._context = context
        self.stays = stays
        self.serials: list[int] = []
        """Of the certificate of the connection of each call."""
        self.failed: list[str] = []

    async def run(self) -> None:
        while True:
            try:
                await self._connect()
            except (OSError, EOFError, AssertionError) as error:
                self.failed.append(repr(error))
                await asyncio.sleep(0.1)

    async def _connect(self) -> None:
        reader, writer = await asyncio.open_connection(HOST, self._port, ssl=self._context)
        try:
            der = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
            serial = x509.load_der_x509_certificate(der).serial_number
            while True:
                await self._call(reader, writer)
                self.serials.append(serial)
                await asyncio.sleep(0.03)
                if not self.stays:
                    return
        finally:
            writer.transport.abort()

    async def _call(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(f"GET {self._path} HTTP/1.1\r\nHost: {HOST}:{self._port}\r\n\r\n".encode())
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200 "), head
        length = re.search(r"(?i)^content-length: (\d+)", head, re.MULTILINE)
        assert length is not None
        await reader.readexactly(int(length[1]))


@contextlib.asynccontextmanager
async def calling(callers: list[Caller]) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(caller.run()) for caller in callers]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [caller.failed for caller in callers] == [[]] * len(callers)


async def metrics(url: str, context: ssl.SSLContext) -> Callable[[str], float]:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
        lines = (await response.text()).splitlines()
    found = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    return lambda name: float(found[name])


async def readyz(url: str, context: ssl.SSLContext) -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.get(url, ssl=context) as response:
        return response.status, (await response.json())["certificate"]


async def exchanged_under_load(
    program: Program,
    name: str,
    url: str,
    volume: SecretVolume,
    cas: tuple[trustme.CA, trustme.CA],
    first: Pair,
    callers: list[Caller],
) -> None:
    """The story of the module's head, at a program that runs."""
    fresh = [caller for caller in callers if not caller.stays]
    staying = [caller for caller in callers if caller.stays]
    context = trusting(*cas)

    async def all_have(pair: Pair) -> None:
        for caller in fresh:
            await until(lambda caller=caller: pair.serial in caller.serials[-1:], "the new one")

    async with calling(callers):
        await all_have(first)
        await until(lambda: all(len(caller.serials) > 5 for caller in staying), "calls")
        second = Pair.of(cas[1], HOST, starts=-600, ends=7200)
        volume.put(second)
        await all_have(second)
        has = await metrics(f"{url}/metrics", context)
        assert has(f"{name}_certificate_expiry_timestamp_seconds") == expiry(second)
        assert has(f"{name}_certificate_lifetime_seconds") == 7800
        assert has(f'{name}_certificates_total{{result="taken_up"}}') == 2
        assert await readyz(f"{url}/readyz", context) == (
            200, f"good until {second.leaf.not_valid_after_utc:%FT%TZ}",
        )  # fmt: skip

        # Of two Secrets, half of each; then one that has ended: the last good one stays.
        ended = Pair.of(cas[1], HOST, starts=-7200, ends=-60)
        spoiled = {
            "key values mismatch": {CERTIFICATE: first.certificate, KEY: second.key},
            "has expired": {CERTIFICATE: ended.certificate, KEY: ended.key},
        }
        for reason, files in spoiled.items():
            volume.put_files(files)
            await program.event(
                "certificate_unusable", where=lambda line, reason=reason: reason in line["reason"]
            )
            before = [len(caller.serials) for caller in callers]
            has = await metrics(f"{url}/metrics", context)
            assert has(f"{name}_certificate_failing") == 1
            assert has(f"{name}_certificate_expiry_timestamp_seconds") == expiry(second)
            status, said = await readyz(f"{url}/readyz", context)
            assert status == 200
            assert reason in said
            await until(
                lambda before=before: all(
                    len(caller.serials) > count + 3
                    for caller, count in zip(callers, before, strict=True)
                ),
                "calls went on",
            )
            assert all(caller.serials[-1] == second.serial for caller in fresh)

        third = Pair.of(cas[0], HOST)
        volume.put(third)
        await all_have(third)
        has = await metrics(f"{url}/metrics", context)
        assert has(f"{name}_certificate_failing") == 0
        before = [len(caller.serials) for caller in staying]
        await until(
            lambda: all(
                len(caller.serials) > count + 3
                for caller, count in zip(staying, before, strict=True)
            ),
            "calls over what was open from the beginning",
        )
    for caller in fresh:
        assert set(caller.serials) == {first.serial, second.serial, third.serial}
    for caller in staying:
        assert set(caller.serials) == {first.serial}


def expiry(pair: Pair) -> float:
    return pair.leaf.not_valid_after_utc.timestamp()


def trusting(*cas: trustme.CA, client: Path | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    for ca in cas:
        ca.configure_trust(context)
    if client is not None:
        context.load_cert_chain(client)
    return context


@pytest.fixture
def cas() -> tuple[trustme.CA, trustme.CA]:
    return trustme.CA(), trustme.CA()


async def test_the_collector_s(tmp_path: Path, cas: tuple[trustme.CA, trustme.CA]) -> None:
    volume, first = SecretVolume(tmp_path / "tls"), Pair.of(cas[0], HOST)
    volume.put(first)
    async with CollectorBench(tmp_path).program(tls=volume.settings) as program:
        url = f"https://{HOST}:{await program.listening()}"
        context = trusting(*cas)
        callers = [Caller(f"{url}/healthz", context, stays=stays) for stays in (True, False, False)]
        await exchanged_under_load(program, "valetkey_collector", url, volume, cas, first, callers)


async def test_the_broker_s_at_both_listeners(
    tmp_path: Path, cas: tuple[trustme.CA, trustme.CA]
) -> None:
    """Clients with certificates come through with what they had: the roots are there all along."""
    volume, first = SecretVolume(tmp_path / "tls"), Pair.of(cas[0], HOST)
    volume.put(first)
    domain = TrustDomain()
    domain.write(tmp_path / "bundle.json")
    world = World(tmp_path / "world", free_url())
    world.url = world.url.replace("http://127.0.0.1", f"https://{HOST}")
    port, for_certificates = world.url.rpartition(":")[2], free_port()
    trusted = {
        "issuer": domain.name,
        "kind": "spiffe",
        "audience": world.url,
        "use": "workload",
        "jwks_file": str(tmp_path / "bundle.json"),
    }
    world.overrides = {
        "log_level": "info",
        "bind": f"127.0.0.1:{port}",
        "tls": volume.settings,
        "issuers": [*world.document()["issuers"], trusted],
        "mtls": {
            "bind": f"127.0.0.1:{for_certificates}",
            "url": f"https://{HOST}:{for_certificates}",
        },
    }
    svid = domain.x509_svid().write(tmp_path / "svid.pem")
    async with Program.of("broker", world.write(), tmp_path / "run") as program:
        callers = [
            Caller(f"https://{HOST}:{where}/jwks", context, stays=stays)
            for where, context in (
                (port, trusting(*cas)),
                (for_certificates, trusting(*cas, client=svid)),
            )
            for stays in (True, False)
        ]
        await exchanged_under_load(
            program, "valetkey_broker", world.url, volume, cas, first, callers
        )
        # Who has none does not get through, as ever.
        async with aiohttp.ClientSession() as session:
            with pytest.raises(aiohttp.ClientError):
                await session.get(f"https://{HOST}:{for_certificates}/jwks", ssl=trusting(*cas))


@pytest.mark.parametrize("program", ["broker", "collector"])
async def test_one_that_can_not_be_used_at_the_start_ends_it_with_one_line(
    tmp_path: Path, cas: tuple[trustme.CA, trustme.CA], program: str
) -> None:
    volume = SecretVolume(tmp_path / "tls")
    pair = Pair.of(cas[0], HOST)
    volume.put_files({CERTIFICATE: pair.certificate, KEY: Pair.of(cas[0], HOST).key})
    if program == "broker":
        world = World(tmp_path / "world", free_url(), overrides={"tls": volume.settings})
        process = Program.of("broker", world.write(), tmp_path / "run")
    else:
        process = CollectorBench(tmp_path).program(tls=volume.settings)
    process.start()
    assert await process.ended() == 2
    lines = [
        line for line in process.stderr_file.read_text().splitlines() if not line.startswith("{")
    ]
    assert len(lines) == 1
    assert "key values mismatch" in lines[0]

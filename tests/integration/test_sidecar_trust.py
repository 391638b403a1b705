"""Roots that a sidecar trusts are exchanged under calls: of the broker, the collector and a target.

A CA is replaced as it should be: both are trusted, then servers change, then the old one is trusted
no longer. The bundle is a mounted file, exchanged as the kubelet does it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from aiohttp import web

from tests.support.fleet import TICKETS, Fleet
from tests.support.ports import free_port
from tests.support.secret_volume import Pair, SecretVolume
from tests.support.waiting import until
from valetkey.contracts.served_certificate import ServedCertificate

HOST = "localhost"
BUNDLE = "ca.crt"


class Tls:
    """A fleet whose broker, collector and target speak TLS, and what the sidecar trusts."""

    def __init__(self, directory: Path) -> None:
        self.fleet = Fleet(directory / "fleet")
        self.old, self.new = trustme.CA(), trustme.CA()
        self.bundle = SecretVolume(directory / "bundle")
        self.volume = SecretVolume(directory / "tls")
        self.target = ServedCertificate()
        self.trust(self.old)
        fleet, ca_file = self.fleet, str(self.bundle.directory / BUNDLE)
        fleet.broker_url = f"https://{HOST}:{fleet.broker_port}"
        fleet.renew()
        fleet.broker_changes = fleet.collector_changes = {"tls": self.volume.settings}
        self.target_port = free_port()
        fleet.sidecar_changes = {
            "broker": {"url": fleet.broker_url, "ca_file": ca_file, "timeout": "5s"},
            "collector": {"url": f"https://{HOST}:{fleet.collector_port}", "ca_file": ca_file},
            "targets": {
                "tickets": {
                    "url": f"https://{HOST}:{self.target_port}",
                    "audience": TICKETS,
                    "ca_file": ca_file,
                    "allow_networks": ["127.0.0.0/8", "::1/128"],
                    "credential": {"kind": "bearer"},
                }
            },
        }

    def trust(self, *cas: trustme.CA) -> None:
        self.put(b"".join(ca.cert_pem.bytes() for ca in cas))

    def put(self, bundle: bytes) -> None:
        self.bundle.put_files({BUNDLE: bundle})

    async def serve(self, ca: trustme.CA) -> None:
        """All servers present a certificate of this CA; those of the fleet as soon as they look."""
        pair = Pair.of(ca, HOST)
        self.volume.put(pair)
        await self.target.replace(pair.certificate, pair.key, now=time.time())

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Fleet]:
        await self.serve(self.old)
        fleet = self.fleet
        runner = web.AppRunner(fleet._target_app(), access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(
            runner, "127.0.0.1", self.target_port, ssl_context=self.target.context
        ).start()
        try:
            async with fleet.running(broker=False, collector=False, sidecar=False):
                for program in (fleet.broker, fleet.collector):
                    await program.start().listening()
                fleet.sidecar.start()
                await fleet.up()
                await fleet.followed()
                yield fleet
        finally:
            await runner.cleanup()


@pytest.fixture
def tls(tmp_path: Path) -> Tls:
    return Tls(tmp_path)


async def test_a_ca_is_replaced_and_no_call_fails(tls: Tls) -> None:
    async with tls.running() as fleet:
        statuses: list[int] = []

        async def calling() -> None:
            while True:
                # Each asks for a credential of its own.
                statuses.append((await fleet.call("/once/1"))[0])
                await asyncio.sleep(0.05)

        async def taken_up(*cas: trustme.CA) -> None:
            reloads = await fleet.reloads()
            seen = len([line for line in fleet.sidecar.log() if line["event"] == "roots_taken_up"])
            tls.trust(*cas)

            async def all_have() -> bool:
                told = [line for line in fleet.sidecar.log() if line["event"] == "roots_taken_up"]
                # The exchange's, the feed's and the collector's; targets' come with a reload.
                return len(told) == seen + 3 and await fleet.reloads() > reloads

            await until(all_have, "the roots are taken up")

        async def more_calls() -> None:
            count = len(statuses)
            await until(lambda: len(statuses) > count + 5, "calls")

        task = asyncio.create_task(calling())
        try:
            await more_calls()
            await taken_up(tls.old, tls.new)
            await more_calls()
            await tls.serve(tls.new)
            for program in (fleet.broker, fleet.collector):
                await until(
                    lambda program=program: (
                        len([e for e in program.log() if e["event"] == "certificate_taken_up"]) == 2
                    ),
                    "the new certificate",
                )
            await taken_up(tls.new)
            await more_calls()
            await fleet.delivered()
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        assert set(statuses) == {200}
        assert await fleet.metric("valetkey_roots_failing") == 0


async def test_a_bundle_that_can_not_be_used_leaves_the_last_good_one(tls: Tls) -> None:
    async with tls.running() as fleet:
        assert (await fleet.call("/once/1"))[0] == 200
        assert (await fleet.readyz())[1]["roots"] == "good"
        tls.put(b"no certificate")
        for where in ("broker.ca_file", "collector.ca_file"):
            await fleet.sidecar.event(
                "roots_unusable", where=lambda line, where=where: where in line["reason"]
            )
        rejected = await fleet.sidecar.event("reload_rejected")
        assert "targets.tickets.ca_file" in rejected["reason"]
        assert await fleet.metric("valetkey_roots_failing") == 1
        status, ready = await fleet.readyz()
        assert status == 200
        assert "broker.ca_file" in ready["roots"]
        assert "collector.ca_file" in ready["roots"]
        assert ready["rejected_config"] == rejected["reason"]
        assert (await fleet.call("/once/2"))[0] == 200
        await fleet.delivered()

        # Whom nobody trusts any more is not spoken to: neither the broker nor the target.
        tls.trust(tls.new)

        async def refused() -> bool:
            return (await fleet.call("/once/3"))[0] >= 500

        await until(refused, "the old CA is not trusted any more")
        assert await fleet.metric("valetkey_roots_failing") == 0

        tls.trust(tls.old)

        async def good() -> bool:
            return (await fleet.call("/once/4"))[0] == 200

        await until(good, "it is trusted again")
        status, ready = await fleet.readyz()
        assert (ready["roots"], ready["rejected_config"]) == ("good", "")


async def test_settings_that_wait_for_a_ca_file_are_taken_up_when_it_comes(tls: Tls) -> None:
    async with tls.running() as fleet:
        late = tls.fleet.directory / "late.crt"
        fleet.sidecar_changes["targets"]["tickets"]["ca_file"] = str(late)
        fleet.write()
        rejected = await fleet.sidecar.event("reload_rejected")
        assert "late.crt" in rejected["reason"]
        before = await fleet.reloads()
        late.write_bytes(tls.old.cert_pem.bytes())

        async def applied() -> bool:
            return await fleet.reloads() > before

        await until(applied, "the settings are in force")
        assert (await fleet.call("/once/1"))[0] == 200
        assert (await fleet.readyz())[1]["rejected_config"] == ""

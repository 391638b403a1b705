"""The record in a JetStream stream, by collectors and a nats-server that are killed and come again."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import json
import os
import random
import shutil
import sqlite3
import ssl
import subprocess
import sys

import aiohttp
import nkeys
import pytest
import trustme
from click.testing import CliRunner

from tests.support.chain import Chain, batch
from tests.support.collector import CollectorBench
from tests.support.nats import STREAM, SUBJECT, NatsServer, fitting
from tests.support.waiting import until
from valetkey.cli.main import main
from valetkey.contracts import events

BOOT = "00000000000000a1"


@pytest.fixture
def bench(tmp_path):
    return CollectorBench(tmp_path)


def nats(server: NatsServer, **changes):
    return {"servers": [server.url], "stream": STREAM, **changes}


class Collector:
    """One collector process with a hand-off."""

    def __init__(self, bench, session, **changes):
        self.bench, self.session = bench, session
        self.program = bench.program(**changes)
        self.url = ""

    async def start(self):
        self.program.start()
        self.url = f"http://127.0.0.1:{await self.program.listening()}"

    async def post(self, raws, subject="agent"):
        headers = self.bench.sidecar(subject)
        async with self.session.post(
            f"{self.url}/v1/events", data=batch(raws), headers=headers
        ) as response:
            return response.status, await response.json(content_type=None)

    async def state(self):
        async with self.session.get(f"{self.url}/readyz") as response:
            return (await response.json())["handoff"]

    async def metric(self, name):
        async with self.session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return next(float(line.split()[-1]) for line in lines if line.startswith(f"{name} "))

    async def comes_to(self, state):
        async def holds():
            return await self.state() == state

        await until(holds, f"the hand-off is {state}")

    async def handed_on(self, count):
        """Wait until so many events were acknowledged by the stream, and nothing is left."""
        results = ("published", "duplicate")
        names = [f'valetkey_collector_handoff_events_total{{result="{each}"}}' for each in results]

        async def holds():
            done = sum([await self.metric(name) for name in names])
            return (
                done >= count
                and await self.state() == "ok"
                and await self.metric("valetkey_collector_handoff_waiting") == 0
                and await self.metric("valetkey_collector_handoff_failing") == 0
            )

        await until(holds, f"{count} events are handed on")


@contextlib.asynccontextmanager
async def collecting(bench, **changes):
    async with aiohttp.ClientSession() as session:
        collector = Collector(bench, session, **changes)
        try:
            await collector.start()
            yield collector
            if collector.program.running:
                assert await collector.program.stop() == 0
        finally:
            collector.program.kill()


async def consumed(server):
    """Every message of the stream, in its order: subject, headers, payload."""
    found = []
    async with server.jetstream() as stream:
        total = (await stream.stream_info(STREAM)).state.messages
        if total:
            subscription = await stream.subscribe(
                f"{SUBJECT}.>", stream=STREAM, ordered_consumer=True
            )
            while len(found) < total:
                message = await subscription.next_msg(timeout=20)
                found.append((message.subject, message.headers, message.data))
    return found


async def payloads(server):
    return [payload for _, _, payload in await consumed(server)]


async def all_there(server, made):
    """Wait until the stream has these, and hold what it has against them: each once, in order."""

    async def enough():
        async with server.jetstream() as stream:
            return (await stream.stream_info(STREAM)).state.messages >= len(made)

    await until(enough, "the stream has them all")
    assert await payloads(server) == made


async def test_events_come_as_they_are_in_their_order_with_what_the_binding_asks_for(
    bench, nats_server
):
    made = Chain(instance="agent.1", boot=BOOT)
    made.boot_event()
    made.calls(2)
    made.heartbeat()
    await nats_server.make_stream()
    async with collecting(bench, nats=nats(nats_server)) as collector:
        assert (await collector.post(made.events))[0] == 200
        await all_there(nats_server, made.events)
        await collector.handed_on(0)
        assert (
            await collector.metric('valetkey_collector_handoff_events_total{result="published"}')
            == 6
        )
        assert await collector.metric("valetkey_collector_handoff_age_seconds") == 0
    messages = await consumed(nats_server)
    assert [subject.removeprefix(f"{SUBJECT}.") for subject, _, _ in messages] == [
        "boot.none.agent%2E1",
        "decision.allowed.agent%2E1",
        "outcome.none.agent%2E1",
        "decision.allowed.agent%2E1",
        "outcome.none.agent%2E1",
        "heartbeat.none.agent%2E1",
    ]
    for number, (_, headers, payload) in enumerate(messages, 1):
        assert headers["content-type"] == "application/cloudevents+json"
        assert headers["Nats-Msg-Id"] == f"agent.1/{events.event_id(BOOT, number)}"
        assert events.read(payload).seq == number


@pytest.mark.parametrize("database", ["sqlite", "postgres"])
async def test_a_collector_that_is_killed_at_any_moment(bench, nats_server, database, request):
    """Each time somewhere between store, publish and note: in the end each event is there once."""
    changes = {"nats": nats(nats_server, batch=20)}
    if database == "postgres":
        changes["database"] = request.getfixturevalue("postgres").database()
    await nats_server.make_stream()
    made = Chain(boot=BOOT)
    made.boot_event()
    made.calls(400)
    dice = random.Random(3)
    acked = 0
    async with collecting(bench, **changes) as collector:
        for _ in range(4):
            until_then = acked + 200
            with contextlib.suppress(aiohttp.ClientError):
                while acked < min(until_then, len(made.events)):
                    status, answer = await collector.post(made.events[acked : acked + 40])
                    assert status == 200
                    acked = answer["acked"]
            await asyncio.sleep(dice.random() * 0.05)
            collector.program.kill()
            await collector.start()
        while acked < len(made.events):
            acked = (await collector.post(made.events[acked : acked + 40]))[1]["acked"]
        await all_there(nats_server, made.events)
        await collector.handed_on(0)


async def test_what_was_published_and_not_noted_is_found_in_the_stream(bench, nats_server):
    """The same beyond the stream's memory of ids: the position is set back, as a kill would leave it."""
    await nats_server.make_stream(duplicate_window=0.2)
    made = Chain(boot=BOOT).calls(10)
    changes = {"nats": nats(nats_server)}
    async with collecting(bench, **changes) as collector:
        assert (await collector.post(made.events))[0] == 200
        await all_there(nats_server, made.events)
        await collector.handed_on(0)
    with contextlib.closing(sqlite3.connect(bench.database)) as connection, connection:
        connection.execute("UPDATE handoffs SET cursor = 4, sequence = 4")
    more = made.calls(1)
    await asyncio.sleep(0.5)  # the stream has forgotten all ids
    async with collecting(bench, **changes) as collector:
        assert (await collector.post(more.events))[0] == 200
        await all_there(nats_server, more.events)
        resumed = await collector.program.event("handoff_resumed")
        assert resumed["seq"] == 20


async def test_a_server_that_is_killed_and_comes_again(bench, nats_server):
    """Batches are stored meanwhile; afterwards the stream has each event once, in order."""
    await nats_server.make_stream()
    made = Chain(boot=BOOT).calls(100)
    async with collecting(bench, nats=nats(nats_server, batch=16)) as collector:
        for first in range(0, 200, 20):
            if first == 60:
                nats_server.kill()
            if first == 140:
                await collector.comes_to("unreachable")
                assert await collector.metric("valetkey_collector_handoff_failing") == 1
                nats_server.start()
            assert (await collector.post(made.events[first : first + 20]))[0] == 200
        await all_there(nats_server, made.events)
        await collector.handed_on(0)
        assert (
            await collector.metric(
                'valetkey_collector_handoff_failures_total{reason="unreachable"}'
            )
            > 0
        )


async def test_where_settings_say_so_nothing_is_acknowledged_that_is_not_in_the_stream(
    bench, nats_server
):
    await nats_server.make_stream()
    made = Chain(boot=BOOT).calls(20)
    settings = nats(nats_server, acknowledge="handed_on", answer="2s")
    async with collecting(bench, nats=settings) as collector:
        assert await collector.post(made.events[:20]) == (200, {"boot": BOOT, "acked": 20})
        assert await payloads(nats_server) == made.events[:20]
        nats_server.kill()
        await collector.comes_to("unreachable")
        status, problem = await collector.post(made.events[20:])
        assert (status, problem["code"]) == (503, "audit.handoff_unavailable")
        nats_server.start()

        async def taken():
            return (await collector.post(made.events[20:]))[0] == 200

        await until(taken, "the batch that was refused is taken")
        assert await payloads(nats_server) == made.events


async def test_two_collectors_hand_on_one_record(bench, nats_server, postgres, tmp_path):
    """Both receive and both hand on, in turn; one is killed. Each event is there once, in order."""
    await nats_server.make_stream()
    url = postgres.database()
    chains = [Chain(instance=f"agent-{number}").calls(60) for number in range(4)]
    changes = {"database": url, "nats": nats(nats_server, batch=25, acknowledge="handed_on")}
    async with (
        collecting(bench, replica="1", **changes) as one,
        collecting(bench, replica="2", **changes) as other,
    ):

        async def deliver(number, made):
            at, acked = [one, other], 0
            if number % 2:
                at.reverse()
            while acked < len(made.events):
                try:
                    status, answer = await at[0].post(
                        made.events[acked : acked + 15], f"agent-{number}"
                    )
                except aiohttp.ClientError:
                    at.reverse()
                    continue
                assert status in {200, 503}, answer
                acked = answer["acked"] if status == 200 else acked
                if number == 0 and acked >= 60 and one.program.running:
                    one.program.kill()

        async with asyncio.timeout(90):
            await asyncio.gather(*(deliver(*each) for each in enumerate(chains)))
        found = await payloads(nats_server)
    assert len(found) == len(set(found)) == 480
    for made in chains:
        assert [raw for raw in found if events.read(raw).source == made.source] == made.events


UNFIT = {
    "there is none": (None, "no_stream"),
    "consumers delete from it": ({"retention": "workqueue"}, "misconfigured"),
    "other subjects as well": ({"subjects": [f"{SUBJECT}.>", "other.>"]}, "misconfigured"),
    "it acknowledges nothing": ({"no_ack": True}, "misconfigured"),
    "some per subject": ({"max_msgs_per_subject": 5}, "misconfigured"),
    "full": ({"max_msgs": 3}, "full"),
    "small messages": ({"max_msg_size": 100}, "too_large"),
}


@pytest.mark.parametrize(("changes", "reason"), UNFIT.values(), ids=UNFIT)
async def test_a_stream_that_can_not_have_the_record(bench, nats_server, changes, reason):
    """It is said why, the record is kept meanwhile, and goes on once the stream is as it should be."""
    if changes is not None:
        await nats_server.make_stream(**changes)
    made = Chain(boot=BOOT).calls(5)
    async with collecting(bench, nats=nats(nats_server)) as collector:
        assert (await collector.post(made.events))[0] == 200
        await collector.comes_to(reason)
        assert await collector.metric("valetkey_collector_handoff_failing") == 1
        assert await collector.metric(
            f'valetkey_collector_handoff_failures_total{{reason="{reason}"}}'
        )
        (line,) = [line for line in collector.program.log() if line["event"] == "handoff_failed"]
        assert line["code"] == reason

        async def seen():
            return await collector.metric("valetkey_collector_handoff_waiting") > 0

        await until(seen, "it is known that events wait")
        async with nats_server.jetstream() as stream:
            if changes is not None and reason != "full":
                await stream.delete_stream(STREAM)
        if reason == "full":
            async with nats_server.jetstream() as stream:
                await stream.update_stream(fitting())
        else:
            await nats_server.make_stream()
        await all_there(nats_server, made.events)
        await collector.handed_on(0)


async def test_a_stream_that_was_made_anew_gets_the_record_again(bench, nats_server):
    await nats_server.make_stream()
    made = Chain(boot=BOOT).calls(5)
    async with collecting(bench, nats=nats(nats_server)) as collector:
        assert (await collector.post(made.events))[0] == 200
        await all_there(nats_server, made.events)
        async with nats_server.jetstream() as stream:
            await stream.delete_stream(STREAM)
        await nats_server.make_stream()
        made.calls(1)
        assert (await collector.post(made.events[10:]))[0] == 200
        await all_there(nats_server, made.events)
        assert (await collector.program.event("stream_went_back"))["count"] == 10


async def test_somebody_else_who_writes_to_the_stream_is_noticed(bench, nats_server):
    await nats_server.make_stream()
    made = Chain(boot=BOOT).calls(5)
    async with collecting(bench, nats=nats(nats_server)) as collector:
        assert (await collector.post(made.events[:4]))[0] == 200
        await all_there(nats_server, made.events[:4])
        async with nats_server.jetstream() as stream:
            await stream.publish(f"{SUBJECT}.decision.allowed.agent", b"{}")
        assert (await collector.post(made.events[4:]))[0] == 200
        await all_there(nats_server, [*made.events[:4], b"{}", *made.events[4:]])
        await collector.program.event("stream_ahead")
        await collector.handed_on(0)
        reason = 'valetkey_collector_handoff_failures_total{reason="out_of_turn"}'
        assert await collector.metric(reason) == 1


async def test_a_record_that_was_restored_is_behind_its_stream(bench, nats_server):
    """What the backup lacks stays in the stream; what is delivered after it goes on behind that."""
    await nats_server.make_stream()
    made = Chain(boot=BOOT).calls(10)
    changes = {"nats": nats(nats_server)}
    async with collecting(bench, **changes) as collector:
        assert (await collector.post(made.events[:10]))[0] == 200
        await all_there(nats_server, made.events[:10])
        await collector.handed_on(10)
    shutil.copy(bench.database, bench.directory / "backup")
    async with collecting(bench, **changes) as collector:
        assert (await collector.post(made.events[10:16]))[0] == 200
        await all_there(nats_server, made.events[:16])
    shutil.copy(bench.directory / "backup", bench.database)
    async with collecting(bench, **changes) as collector:
        assert (await collector.post(made.events[16:]))[1]["acked"] == 10
        await all_there(nats_server, made.events)
        await collector.program.event("stream_ahead")
        assert (await collector.post(made.events[10:16]))[1]["acked"] == 20
        await collector.handed_on(10)
        duplicate = 'valetkey_collector_handoff_events_total{result="duplicate"}'
        assert await collector.metric(duplicate) == 6
    assert await payloads(nats_server) == made.events


def tls_config(directory, authority, *, users=""):
    certificate = authority.issue_cert("127.0.0.1")
    certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    certificate.private_key_pem.write_to_path(directory / "key.pem")
    authority.cert_pem.write_to_path(directory / "ca.pem")
    return (
        f'tls {{ cert_file: "{directory}/cert.pem", key_file: "{directory}/key.pem" }}\n'
        f"authorization {{ users: [{users}] }}\n"
    )


def new_key(path):
    """A user's seed in a file; its public half."""
    seed = nkeys.encode_seed(os.urandom(32), prefix=nkeys.PREFIX_BYTE_USER)
    path.write_bytes(seed + b"\n")
    path.chmod(0o600)
    return nkeys.from_seed(bytearray(seed)).public_key.decode()


async def test_over_tls_by_a_key_that_may_publish_and_nothing_else(bench, tmp_path):
    """And then by one that may not, one that nobody knows, another authority, and without TLS."""
    authority, server = trustme.CA(), NatsServer(tmp_path / "nats")
    may, may_not, admin = (new_key(tmp_path / name) for name in ("may", "may-not", "admin"))
    new_key(tmp_path / "stranger")
    asks = [f"$JS.API.STREAM.INFO.{STREAM}", f"$JS.API.STREAM.MSG.GET.{STREAM}"]
    publish = json.dumps([f"{SUBJECT}.>", *asks])
    permissions = f'{{publish: {publish}, subscribe: ["_INBOX.>"]}}'
    only_asks = f'{{publish: {json.dumps(asks)}, subscribe: ["_INBOX.>"]}}'
    users = (
        f"{{nkey: {may}, permissions: {permissions}}},"
        f"{{nkey: {may_not}, permissions: {only_asks}}}, {{nkey: {admin}}}"
    )
    server.configure(tls_config(tmp_path, authority, users=users))
    server.start()
    try:
        context = ssl.create_default_context()
        authority.configure_trust(context)
        as_admin = {"tls": context, "nkeys_seed": str(tmp_path / "admin")}
        async with server.jetstream(**as_admin) as stream:
            await stream.add_stream(fitting())
        made = Chain(boot=BOOT).calls(3)
        settings = nats(
            server,
            servers=[f"tls://127.0.0.1:{server.port}"],
            tls={"ca_file": str(tmp_path / "ca.pem")},
            nkey_file=str(tmp_path / "may"),
        )
        async with collecting(bench, nats=settings) as collector:
            assert (await collector.post(made.events))[0] == 200
            await collector.handed_on(6)
        async with server.jetstream(**as_admin) as stream:
            assert (await stream.stream_info(STREAM)).state.messages == 6
        made.calls(1)
        new_key(tmp_path / "other")
        trustme.CA().cert_pem.write_to_path(tmp_path / "other-ca.pem")
        for changes, reason in (
            ({"nkey_file": str(tmp_path / "may-not")}, "permission"),
            ({"nkey_file": str(tmp_path / "stranger")}, "unauthorized"),
            ({"nkey_file": str(tmp_path / "nowhere")}, "unauthorized"),
            ({"nkey_file": str(tmp_path / "ca.pem")}, "unauthorized"),
            (
                {"nkey_file": None, "credentials_file": str(tmp_path / "ca.pem")},
                "unauthorized",
            ),
            ({"tls": {"ca_file": str(tmp_path / "other-ca.pem")}}, "unreachable"),
        ):
            async with collecting(bench, nats=settings | changes) as collector:
                assert (await collector.post(made.events))[0] == 200
                await collector.comes_to(reason)
        server.stop()
        server.configure("")  # somebody in between who says that there is no TLS
        server.start()
        async with collecting(bench, nats=settings) as collector:
            await collector.comes_to("unreachable")
    finally:
        server.stop()


def test_nats_is_imported_only_where_settings_have_it(bench):
    """Neither by a collector without it, nor ever by a sidecar, broker or injector."""
    programs = (
        "valetkey.collector.app, valetkey.proxy.app, valetkey.broker.app, valetkey.injector.app"
    )
    code = f"import sys, {programs}; sys.exit('nats' in sys.modules or 'nkeys' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_the_record_proves_itself_in_the_stream(bench, nats_server, tmp_path):
    """As its consumers have it: whole, with an event twice; then cut, forged, and with a beginning gone."""
    await nats_server.make_stream(deny_delete=False, deny_purge=False)
    first = Chain(boot=BOOT)
    first.boot_event()
    first.calls(120)
    second = Chain(boot="00000000000000b2")
    second.boot_event(first)
    second.calls(3)
    async with collecting(bench, nats=nats(nats_server)) as collector:
        for raws in (first.events[100:], first.events[:100], second.events):
            assert (await collector.post(raws))[0] == 200
        await collector.handed_on(248)
    file = tmp_path / "stream.yaml"
    file.write_text(json.dumps(nats(nats_server)))

    async def verified():
        arguments = ["audit", "verify", "--stream", str(file), "--json"]
        result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
        assert result.stdout, repr(result.exception)
        return result.exit_code, json.loads(result.stdout)

    status, told = await verified()
    assert (status, told["damage"], told["notes"]) == (0, [], [])
    assert sorted((boot["boot"], boot["events"]) for boot in told["boots"]) == [
        (BOOT, 241),
        ("00000000000000b2", 7),
    ]
    async with nats_server.jetstream() as stream:
        await stream.publish(f"{SUBJECT}.boot.none.agent-1", first.events[0])
        assert (await verified())[1]["notes"] == ["1 events are in the stream more than once"]
        forged = first.events[0].replace(b"2026", b"2025", 1)
        await stream.publish(f"{SUBJECT}.boot.none.agent-1", forged)
        status, told = await verified()
        assert (status, len(told["damage"])) == (1, 1)
        assert f"message 250 has other bytes for {BOOT}-1" in told["damage"][0]
        await stream.delete_msg(STREAM, 250)
        await stream.delete_msg(STREAM, 200)
        status, told = await verified()
        deleted = [f"message {number} was deleted from the stream" for number in (200, 250)]
        assert (status, told["damage"]) == (1, deleted)
        await stream.purge_stream(STREAM, seq=243)
        status, told = await verified()
        assert (
            told["notes"][0] == "the stream begins with message 243: what came before is not in it"
        )
        assert all(boot["holds"] for boot in told["boots"])


async def test_a_stream_that_can_not_be_read(tmp_path, nats_server):
    file = tmp_path / "stream.yaml"
    file.write_text(json.dumps(nats(nats_server)))
    arguments = ["audit", "verify", "--stream", str(file)]
    result = await asyncio.to_thread(CliRunner().invoke, main, arguments)
    assert (result.exit_code, "no_stream" in result.stderr) == (2, True)
    result = await asyncio.to_thread(
        CliRunner().invoke, main, [*arguments, "--spool", str(tmp_path)]
    )
    assert "--stream stands alone" in result.stderr


def signed(claims, by, subject, name):
    """A JWT of NATS's own: signed by an nkey, its id the digest of what it says."""
    body = {"iat": 1_790_000_000, "iss": by.public_key.decode(), "name": name, "sub": subject}
    body |= {"nats": {"version": 2, **claims}}
    body["jti"] = base64.b32encode(hashlib.sha256(json.dumps(body).encode()).digest()).decode()[:52]
    parts = [{"typ": "JWT", "alg": "ed25519-nkey"}, body]
    text = b".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts
    )
    return (text + b"." + base64.urlsafe_b64encode(by.sign(text)).rstrip(b"=")).decode()


async def test_by_a_credentials_file(bench, tmp_path):
    """A server of an operator, whose users come with a JWT of their account and their key."""

    def key(prefix):
        seed = nkeys.encode_seed(os.urandom(32), prefix=prefix)
        return seed, nkeys.from_seed(bytearray(seed))

    (_, operator), (_, account), (_, system) = (
        key(nkeys.PREFIX_BYTE_OPERATOR),
        key(nkeys.PREFIX_BYTE_ACCOUNT),
        key(nkeys.PREFIX_BYTE_ACCOUNT),
    )
    seed, user = key(nkeys.PREFIX_BYTE_USER)
    unlimited = dict.fromkeys(
        ("subs", "data", "payload", "imports", "exports", "conn", "leaf", "mem_storage",
         "disk_storage", "streams", "consumer"), -1
    )  # fmt: skip
    limits = {"type": "account", "limits": unlimited | {"wildcards": True}}
    plain = {"type": "account", "limits": {"subs": -1, "conn": -1, "data": -1, "payload": -1}}
    public = {each: each.public_key.decode() for each in (operator, account, system, user)}
    operators = signed({"type": "operator"}, operator, public[operator], "operator")
    accounts = {
        public[account]: signed(limits, operator, public[account], "record"),
        public[system]: signed(plain, operator, public[system], "system"),
    }
    allowed = {"type": "user", "subs": -1, "data": -1, "payload": -1}
    users = signed(allowed, account, public[user], "collector")
    file = tmp_path / "collector.creds"
    file.write_text(
        f"-----BEGIN NATS USER JWT-----\n{users}\n------END NATS USER JWT------\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{seed.decode()}\n------END USER NKEY SEED------\n"
    )
    server = NatsServer(tmp_path / "nats")
    preload = ", ".join(f"{name}: {jwt}" for name, jwt in accounts.items())
    server.configure(
        f"operator: {operators}\nsystem_account: {public[system]}\n"
        f"resolver: MEMORY\nresolver_preload: {{ {preload} }}\n"
    )
    server.start()
    try:
        async with server.jetstream(user_credentials=str(file)) as stream:
            await stream.add_stream(fitting())
        made = Chain(boot=BOOT).calls(3)
        async with collecting(bench, nats=nats(server, credentials_file=str(file))) as collector:
            assert (await collector.post(made.events))[0] == 200
            await collector.handed_on(6)
    finally:
        server.stop()

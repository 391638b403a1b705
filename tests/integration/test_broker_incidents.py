"""Incidents by the admin API: what one call ends, how far it is, and when it is over."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from tests.integration.broker_support import (
    BOT,
    IDP,
    PAYMENTS,
    TICKETS,
    USERS,
    Served,
    World,
    serving,
)
from tests.integration.feed_support import Receiver
from tests.integration.test_broker_containment import active, code_of, issue
from tests.integration.test_broker_replicas import presented
from tests.support.canaries import CANARIES
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.core.incidents import Incident
from valetkey.broker.parts.incidents import IncidentsPart
from valetkey.cli.main import main
from valetkey.contracts import codes
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import BrokerError
from valetkey.contracts.jose import b64url

PATH = "/v1/incidents"
SUBJECT = {"issuer": IDP, "subject": BOT}


@pytest.fixture(params=["sqlite", "postgres"])
def world(request: pytest.FixtureRequest, tmp_path: Path) -> World:
    made = World(tmp_path, free_url())
    if request.param == "postgres":
        postgres: Postgres = request.getfixturevalue("postgres")
        made.overrides = {"database": postgres.database()}
    return made


async def opened(broker: Served, status: int = 201, **about: Any) -> dict[str, Any]:
    body = {"reason": "leaked in a log", **about}
    got, document, _ = await broker.manage("POST", PATH, json=body)
    assert got == status, document
    return dict(document)


async def shown(broker: Served, id_: str) -> dict[str, Any]:
    status, document, _ = await broker.manage("GET", f"{PATH}/{id_}")
    assert status == 200, document
    return dict(document)


async def closed(broker: Served, id_: str, *, role: str = "operator", **body: Any) -> Any:
    token = broker.world.admin("ada", role=role) if role == "admin" else broker.world.admin()
    body = {"reason": "over", **body}
    return await broker.manage("POST", f"{PATH}/{id_}/close", json=body, token=token)


def restart(world: World) -> None:
    """What a restarted workload has: a proof key of its own, and later tokens."""
    world.clock.advance(10)
    world.proof_key = ProofKey()


async def test_from_the_leak_to_its_end(world: World) -> None:
    async with serving(world) as broker:
        before = world.workload()
        token = (await issue(broker, world.form(before)))["access_token"]
        world.clock.advance(10)
        incident = await opened(broker, token=token, evidence="https://git.example/c/1")
        assert incident["state"] == "open"
        assert incident["about"]["kind"] == "token"
        assert (incident["opened_by"], incident["source"]) == (
            "olga of https://operations.demo.example",
            "admin",
        )
        assert incident["subject"] == {**SUBJECT, "epoch": 1, "attested_at": None}
        assert not await active(broker, token)
        assert await code_of(broker, world.form(before)) == "subject.contained"
        status, body, _ = await closed(broker, incident["id"])
        assert (status, body["code"]) == (409, "incident.open")
        restart(world)
        assert await code_of(broker, world.form(world.workload())) == "ok"
        assert (await shown(broker, incident["id"]))["subject"]["attested_at"] is not None
        status, body, _ = await closed(broker, incident["id"])
        assert (status, body["state"], body["forced"]) == (200, "closed", False)
        # What leaked is as worthless as before.
        assert not await active(broker, token)
        assert await code_of(broker, world.form(before)) == "subject.contained"
        actions = (await broker.manage("GET", "/v1/admin/actions"))[1]["items"]
        assert [one["action"] for one in actions] == ["incident.close", "incident.open"]
        assert actions[1]["details"]["contains"] == BOT
        assert (await broker.manage("GET", "/v1/admin/actions/verify"))[1]["broken_at"] is None


async def test_while_it_is_open_there_is_one(world: World) -> None:
    async with serving(world) as broker:
        first = await opened(broker, subject=SUBJECT)
        again = await opened(broker, 200, subject=SUBJECT)
        assert (again["id"], again["subject"]["epoch"]) == (first["id"], 1)
        other = await opened(broker, subject={"issuer": USERS, "subject": BOT})
        assert other["id"] != first["id"], "another issuer's subject of the same name"


async def test_another_leak_after_the_attestation_contains_again(world: World) -> None:
    async with serving(world) as broker:
        first = await opened(broker, subject=SUBJECT)
        restart(world)
        second = world.workload()
        assert await code_of(broker, world.form(second)) == "ok"
        world.clock.advance(10)
        again = await opened(broker, subject=SUBJECT, reason="once more")
        assert again["id"] == first["id"]
        assert again["subject"] == {**SUBJECT, "epoch": 2, "attested_at": None}
        assert (again["reason"], "renewed_at" in again) == ("once more", True)
        assert await code_of(broker, world.form(second)) == "subject.contained"
        restart(world)
        assert await code_of(broker, world.form(world.workload())) == "ok"
        assert (await closed(broker, first["id"]))[0] == 200


async def test_closed_by_force_it_contains_as_before(world: World) -> None:
    async with serving(world) as broker:
        before = world.workload()
        await issue(broker, world.form(before))
        world.clock.advance(10)
        incident = await opened(broker, subject=SUBJECT)
        status, body, _ = await closed(broker, incident["id"], force=True)
        assert (status, body["code"]) == (403, "service.forbidden"), "an operator"
        status, body, _ = await closed(broker, incident["id"], role="admin", force=True)
        assert (status, body["forced"]) == (200, True)
        assert await code_of(broker, world.form(before)) == "subject.contained"
        status, body, _ = await closed(broker, incident["id"], role="admin", force=True)
        assert (status, body["code"]) == (409, "incident.open"), "it is closed"
        actions = (await broker.manage("GET", "/v1/admin/actions"))[1]["items"]
        assert actions[0]["action"] == "incident.force_close"


async def test_a_workloads_own_token_leaked(world: World) -> None:
    """Long-lived as it is, it authenticates nobody any more."""
    async with serving(world) as broker:
        identity = world.workload()
        incident = await opened(broker, token=identity)
        assert incident["about"] == {"kind": "subject", "value": BOT, "issuer": IDP}
        world.proof_key = ProofKey()
        assert await code_of(broker, world.form(identity)) == "subject.contained"
        alice = world.user("alice")
        incident = await opened(broker, token=alice)
        assert incident["subject"] == {
            "issuer": USERS,
            "subject": "alice",
            "epoch": 1,
            "attested_at": None,
        }


async def test_its_client_says_that_a_token_is_exposed(world: World) -> None:
    """RFC 7009, and more than it: who may have the token may have what it was got with."""
    async with serving(world) as broker:
        own = world.workload()
        token = (await issue(broker, world.form(own)))["access_token"]
        form = presented(world, token)
        status, body, _ = await broker.exchange({**form, "reason": "exposd"}, path="/revoke")
        assert (status, body["code"]) == (400, "service.bad_request")
        assert await active(broker, token), "what is misspelt does not pass for a plain revocation"
        exposed = {**form, "reason": "exposed"}
        other = {**exposed, "client_assertion": world.workload("spiffe://demo.example/ns/x/sa/y")}
        status, body, _ = await broker.exchange(other, path="/revoke")
        assert (status, body["code"]) == (400, "service.forbidden"), "another's token"
        assert (await broker.exchange(exposed, path="/revoke"))[0] == 200
        assert not await active(broker, token)
        assert await code_of(broker, world.form(own)) == "subject.contained"
        (incident,) = (await broker.manage("GET", PATH))[1]["items"]
        assert (incident["source"], incident["opened_by"]) == ("revocation", f"{BOT} of {IDP}")
        actions = (await broker.manage("GET", "/v1/admin/actions"))[1]["items"]
        assert actions[0]["actor"] == "system:revocation"


@pytest.mark.parametrize("form", ["hex", "base64url"])
async def test_a_token_by_its_hash(world: World, form: str) -> None:
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        other = (await issue(broker, world.form(world.workload())))["access_token"]
        digest = hashlib.sha256(token.encode())
        named = digest.hexdigest() if form == "hex" else b64url(digest.digest())
        incident = await opened(broker, token_hash=named)
        assert "subject" not in incident
        assert incident["about"] == {"kind": "token_hash", "value": b64url(digest.digest())}
        assert not await active(broker, token)
        assert await active(broker, other)
        assert (await closed(broker, incident["id"]))[0] == 200
        assert not await active(broker, token)


@pytest.mark.parametrize(
    ("about", "audience", "scope"),
    [
        ({"grant": "bot-tickets"}, TICKETS, "tickets:read"),
        ({"target": "tickets"}, TICKETS, "tickets:read"),
        ({"target": PAYMENTS}, PAYMENTS, "payments:read"),
    ],
)
async def test_what_is_suspended_comes_back_and_its_old_tokens_do_not(
    world: World, about: dict[str, str], audience: str, scope: str
) -> None:
    async with serving(world) as broker:
        form = world.form(world.workload(), audience=audience, scope=scope)
        token = (await issue(broker, form))["access_token"]
        incident = await opened(broker, **about)
        assert not await active(broker, token)
        assert await code_of(broker, form) == "grant.suspended"
        world.clock.advance(2)
        assert (await closed(broker, incident["id"]))[0] == 200
        assert not await active(broker, token)
        world.clock.advance(1)
        again = await issue(broker, form)
        assert await active(broker, again["access_token"])


async def test_a_proof_key_leaked(world: World) -> None:
    async with serving(world) as broker:
        form = world.form(world.workload(), audience=PAYMENTS, scope="payments:read")
        token = (await issue(broker, form))["access_token"]
        incident = await opened(broker, key=world.proof_key.thumbprint)
        assert incident["rotations"] == []
        assert not await active(broker, token)
        assert await code_of(broker, form) == "actor.key_revoked"
        assert (await closed(broker, incident["id"]))[0] == 200
        assert await code_of(broker, form) == "actor.key_revoked", "it never gets sound again"
        world.proof_key = ProofKey()
        assert await code_of(broker, form) == "ok"


async def kids(broker: Served) -> set[str]:
    return {key["kid"] for key in json.loads((await broker.get("/jwks"))[1])["keys"]}


async def test_a_signing_key_of_ours_leaked(world: World) -> None:
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        (leaked,) = await kids(broker)
        incident = await opened(broker, key=leaked)
        assert not await active(broker, token)

        async def replaced() -> bool:
            rotations = (await shown(broker, incident["id"]))["rotations"]
            return [one["state"] for one in rotations] == ["done"]

        await until(replaced, "the key is replaced")
        assert len(await kids(broker)) == 1
        assert leaked not in await kids(broker)
        fresh = (await issue(broker, world.form(world.workload())))["access_token"]
        assert await active(broker, fresh)
        signals = await broker.broker.base.signals.newest(10)
        told = {(s.event.kind, s.event.value) for s in signals}  # type: ignore[union-attr]
        # Sidecars can't tell which of their tokens were signed with it: they drop all.
        assert {("target", TICKETS), ("target", PAYMENTS)} <= told


MISSPELT: list[tuple[dict[str, Any], str]] = [
    ({}, "exactly one"),
    ({"grant": "a", "target": "tickets"}, "exactly one"),
    ({"subject": {"issuer": "https://idp.demo.exampel", "subject": BOT}}, "no issuer"),
    ({"subject": {"issuer": IDP, "subject": " "}}, "empty"),
    ({"subject": {"issuer": IDP}}, "subject"),
    ({"target": "tickts"}, "neither a name nor an audience"),
    ({"key": "short"}, "thumbprint"),
    ({"token_hash": "x" * 64}, "SHA-256"),
    ({"token_hash": "a" * 44}, "SHA-256"),
    ({"grant": "bot-tickts"}, "neither in the file"),
    ({"grant": "bot-tickets", "reason": " "}, "reason is empty"),
    ({"grant": "bot-tickets", "reason": "r" * 1001}, "longer than"),
    ({"grant": "bot-tickets", "evidence": "\0"}, "NUL"),
    ({"grant": "g", "sbject": 1}, "sbject"),
    ({"grant": 7}, "grant"),
]


async def test_what_is_misspelt_ends_nothing(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        for body, reason in MISSPELT:
            status, document, _ = await broker.manage("POST", PATH, json={"reason": "r", **body})
            assert (status, document["code"]) == (400, "service.bad_request"), body
            assert reason in document["reason"], body
        assert (await broker.manage("GET", PATH))[1]["items"] == []


async def test_tokens_that_nobody_recognises(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        for name, unknown in (
            ("garbage", "x" * 50),
            ("changed", token[:-4] + ("AAAA" if token[-4:] != "AAAA" else "BBBB")),
            ("an administrator's", world.admin()),
            ("expired", world.workload(ttl=-600)),
            ("endless", "x" * 20_000),
        ):
            body = {"reason": "r", "token": unknown}
            status, document, _ = await broker.manage("POST", PATH, json=body)
            assert (status, document["code"]) == (422, "incident.token_unknown"), name
            assert unknown not in json.dumps(document)
        world.clock.advance(600)
        incident = await opened(broker, token=token)
        assert incident["subject"]["subject"] == BOT, (
            "an expired one of ours still says whose it was"
        )


async def test_roles_and_ids(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        viewer = world.admin("vera", role="viewer")
        body = {"reason": "r", "grant": "bot-tickets"}
        status, document, _ = await broker.manage("POST", PATH, json=body, token=viewer)
        assert (status, document["code"]) == (403, "service.forbidden")
        incident = await opened(broker, grant="bot-tickets")
        status, _, _ = await broker.manage("GET", f"{PATH}/{incident['id']}", token=viewer)
        assert status == 200
        close = f"{PATH}/{incident['id']}/close"
        assert (await broker.manage("POST", close, json={"reason": "r"}, token=viewer))[0] == 403
        for id_ in ("inc_none", "x" * 300):
            status, document, _ = await broker.manage("GET", f"{PATH}/{id_}")
            assert (status, document["code"]) == (404, "incident.unknown")


async def test_lists_by_state_in_pages(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        ids = []
        for number in range(5):
            incident = await opened(broker, subject={"issuer": IDP, "subject": f"bot-{number}"})
            ids.append(incident["id"])
        await closed(broker, ids[0], role="admin", force=True)
        found: list[str] = []
        after = ""
        for _ in range(3):
            query = "&after=" + after.replace("/", "%2F") if after else ""
            page = (await broker.manage("GET", f"{PATH}?state=all&limit=2{query}"))[1]
            found += [one["id"] for one in page["items"]]
            after = page.get("next", "")
        assert (sorted(found), after) == (sorted(ids), "")
        assert len((await broker.manage("GET", PATH))[1]["items"]) == 4
        assert len((await broker.manage("GET", f"{PATH}?state=closed"))[1]["items"]) == 1
        for query in ("state=opn", "after=x", "limit=0", "sate=open"):
            assert (await broker.manage("GET", f"{PATH}?{query}"))[0] == 400, query


async def test_opened_at_one_replica_it_is_in_force_at_the_other(
    tmp_path: Path, postgres: Postgres
) -> None:
    world = World(tmp_path, free_url(), overrides={"database": postgres.database()})
    async with serving(world) as one, serving(world, free_url()) as other:
        form = world.form(world.workload())
        token = (await issue(other, form))["access_token"]
        await opened(one, subject=SUBJECT)

        async def refused() -> bool:
            return await code_of(other, form) == "subject.contained"

        await until(refused, "the other replica refuses")
        assert not await active(other, token)
        restart(world)
        assert await code_of(other, world.form(world.workload())) == "ok"
        assert (await one.manage("GET", PATH))[1]["items"][0]["subject"]["attested_at"]


async def test_opened_by_many_at_once_it_is_one(tmp_path: Path, postgres: Postgres) -> None:
    world = World(tmp_path, free_url(), overrides={"database": postgres.database()})
    async with serving(world) as one, serving(world, free_url()) as other:
        answers = await asyncio.gather(
            *(
                replica.manage("POST", PATH, json={"reason": "r", "subject": SUBJECT})
                for replica in (one, other)
                for _ in range(10)
            )
        )
        assert sorted(status for status, _, _ in answers) == [*[200] * 19, 201]
        assert len({document["id"] for _, document, _ in answers}) == 1
        assert {document["subject"]["epoch"] for _, document, _ in answers} == {1}


class Flaky:
    """An issuer whose upstream does not answer at first."""

    name = "flaky"

    def __init__(self, failures: int) -> None:
        self.failures = failures
        self.tried = 0

    def concerns(self, incident: Incident) -> bool:
        return incident.kind == "subject"

    async def rotate(self, incident: Incident) -> str:
        self.tried += 1
        if self.tried <= self.failures:
            raise BrokerError(codes.SERVICE_UNAVAILABLE, "upstream is away")
        return f"a new secret for {incident.subject}"


def plug_in(broker: Served, rotator: Flaky) -> None:
    """As if settings had named an issuer of another kind."""
    part = next(part for part in broker.broker.parts if isinstance(part, IncidentsPart))
    part._rotators[rotator.name] = rotator
    broker.broker.base.response._rotators += (rotator,)


async def rotation(broker: Served, id_: str) -> dict[str, Any]:
    (one,) = (await shown(broker, id_))["rotations"]
    return dict(one)


async def test_an_issuer_is_asked_until_it_has_rotated(world: World) -> None:
    async with serving(world) as broker:
        flaky = Flaky(failures=2)
        plug_in(broker, flaky)
        incident = await opened(broker, subject=SUBJECT)
        for tries in (1, 2):

            async def tried(tries: int = tries) -> bool:
                return (await rotation(broker, incident["id"]))["attempts"] == tries

            await until(tried, f"{tries} attempts")
            at_present = await rotation(broker, incident["id"])
            assert at_present["state"] == "asked"
            world.clock.advance(10)

        async def done() -> bool:
            return (await rotation(broker, incident["id"]))["state"] == "done"

        await until(done, "the secret is replaced")
        at_present = await rotation(broker, incident["id"])
        assert at_present["detail"] == f"a new secret for {BOT}"
        assert flaky.tried == 3


class Endless(Flaky):
    """Its upstream never answers."""

    async def rotate(self, incident: Incident) -> str:
        self.tried += 1
        await asyncio.Event().wait()
        raise AssertionError(incident)


async def test_what_a_replica_left_half_done_another_does(world: World) -> None:
    endless, sound = Endless(failures=0), Flaky(failures=0)
    async with serving(world) as broker:
        plug_in(broker, endless)
        incident = await opened(broker, subject=SUBJECT)

        async def begun() -> bool:
            return endless.tried == 1

        await until(begun, "the issuer is asked")
    async with serving(world) as broker:
        plug_in(broker, sound)
        await asyncio.sleep(0.3)
        assert sound.tried == 0, "it may still be at work"
        world.clock.advance(61)

        async def done() -> bool:
            return (await rotation(broker, incident["id"]))["state"] == "done"

        await until(done, "the secret is replaced")
        assert (await rotation(broker, incident["id"]))["attempts"] == 2


async def test_how_far_it_is(tmp_path: Path) -> None:
    """Each sidecar that follows the feed is told, and its acknowledgement is the evidence."""
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        one, other = Receiver(world, broker), Receiver(world, broker)
        await one.begin(description="pod-1")
        await other.begin(description="pod-2")
        incident = await opened(broker, subject=SUBJECT)
        containment = incident["containment"]
        assert (containment["pending"], containment["seconds"]) == (2, None)
        (told,) = await one.take()
        assert (told.value, told.epoch, told.txn) == (BOT, 1, incident["id"])  # type: ignore[union-attr]

        async def pending(count: int) -> bool:
            at_present = (await shown(broker, incident["id"]))["containment"]
            return bool(at_present["pending"] == count)

        await until(lambda: pending(1), "one sidecar is left")
        world.clock.advance(1.5)
        await other.take()
        await until(lambda: pending(0), "no sidecar is left")
        containment = (await shown(broker, incident["id"]))["containment"]
        assert containment["seconds"] == 1.5
        assert {one["description"] for one in containment["sidecars"]} == {"pod-1", "pod-2"}

        async def noted() -> bool:
            found = await broker.broker.base.incidents.get(incident["id"])
            return found is not None and found.contained_at is not None

        await until(noted, "the broker has noted the end")
        _, metrics, _ = await broker.get("/metrics")
        assert b'valetkey_broker_incidents_total{source="admin"} 1.0' in metrics
        assert b"valetkey_broker_incident_contain_seconds_sum 1.5" in metrics


async def test_by_the_command_line(tmp_path: Path) -> None:
    world = World(tmp_path, free_url())
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        leaked = tmp_path / "leaked.token"
        CANARIES.allow(leaked)
        leaked.write_text(token + "\n")
        mine = tmp_path / "admin.token"
        CANARIES.allow(mine)
        mine.write_text(world.admin())
        env = {"VALETKEY_BROKER_URL": world.url, "VALETKEY_TOKEN_FILE": str(mine)}

        async def run(*arguments: str, status: int = 0, stdin: str | None = None) -> str:
            done = await asyncio.to_thread(
                CliRunner().invoke, main, ["incidents", *arguments], env=env, input=stdin
            )
            assert done.exit_code == status, done.output
            assert token not in done.output
            return str(done.output)

        output = await run("open", "--token-from", str(leaked), "--reason", "in a paste")
        assert f"{BOT} of {IDP}, has not attested itself anew" in output
        id_ = output.split()[1]
        assert not await active(broker, token)
        again = await run("open", "--token-from", "-", "--reason", "r", "--json", stdin=token)
        assert json.loads(again)["id"] == id_
        assert "not yet" in await run("list")
        assert json.loads(await run("list", "--json"))[0]["id"] == id_
        restart(world)
        await issue(broker, world.form(world.workload()))
        assert "attested anew at" in await run("show", id_)
        assert "closed" in await run("close", id_, "--reason", "restarted")
        assert "none" in await run("list")
        await run("open", "--subject", "x", "--reason", "r", status=2)
        await run("open", "--token-from", "-", "--reason", "r", status=2, stdin=" \n")
        await run("open", "--target", "tickts", "--reason", "r", status=1)

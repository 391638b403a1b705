"""GitHub's secret-scanning alerts: the raw body signed by a pinned key, or nothing is read."""

from __future__ import annotations

import base64
import hashlib
import io
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.integration.broker_support import BOT, Served, World, serving
from tests.integration.test_broker_containment import active, code_of, issue
from tests.integration.test_incident_transmitters import incidents
from tests.support.ports import free_url
from tests.support.postgres import Postgres
from valetkey.contracts.dpop import ProofKey
from valetkey.contracts.errors import ConfigError

PATH = "/v1/alerts/github"
URL = "https://github.com/octocat/hello/blob/0123/config.yml"


class Github:
    """It signs as GitHub does."""

    def __init__(self, world: World, curve: Any = None) -> None:
        self.key = ec.generate_private_key(curve or ec.SECP256R1())
        self.file = world.root / "github.json"
        world.root.mkdir(parents=True, exist_ok=True)
        world.overrides = {"incidents": {"github": {"keys_file": str(self.file)}}}
        self.publish()

    def publish(self, identifier: str = "key-1") -> None:
        pem = self.key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        entry = {"key_identifier": identifier, "key": pem.decode(), "is_current": True}
        self.file.write_text(json.dumps({"public_keys": [entry]}))

    def sign(self, body: bytes) -> str:
        return base64.b64encode(self.key.sign(body, ec.ECDSA(hashes.SHA256()))).decode()

    async def alert(
        self, served: Served, *tokens: str, body: bytes | None = None, **headers: str
    ) -> tuple[int, Any]:
        alerts = [
            {"token": token, "type": "valetkey_token", "url": URL, "source": "content"}
            for token in tokens
        ]
        raw = json.dumps(alerts).encode() if body is None else body
        sent = {
            "Content-Type": "application/json",
            "Github-Public-Key-Identifier": "key-1",
            "Github-Public-Key-Signature": self.sign(raw),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        data = io.BytesIO(raw)
        async with served.client.post(served.where + PATH, data=data, headers=sent) as response:
            return response.status, await response.json()


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path, free_url())


async def test_what_is_ours_is_contained_and_labelled(world: World) -> None:
    github = Github(world)
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        world.clock.advance(10)
        status, feedback = await github.alert(broker, token, "ghp_somebody_elses")
        assert status == 200
        assert feedback == [
            {
                "token_hash": hashlib.sha256(text.encode()).hexdigest(),
                "token_type": "valetkey_token",
                "label": label,
            }
            for text, label in ((token, "true_positive"), ("ghp_somebody_elses", "false_positive"))
        ]
        assert not await active(broker, token)
        (incident,) = await incidents(broker)
        assert (incident["source"], incident["subject"]["subject"]) == ("github", BOT)
        _, shown, _ = await broker.manage("GET", f"/v1/incidents/{incident['id']}")
        assert shown["evidence"] == URL


async def test_the_same_alert_again_contains_nobody_anew(world: World) -> None:
    """No time is in it, so whoever has caught one could send it for ever."""
    github = Github(world)
    async with serving(world) as broker:
        identity = world.workload()
        await issue(broker, world.form(identity))
        token = (await issue(broker, world.form(identity)))["access_token"]
        world.clock.advance(10)
        await github.alert(broker, identity, token)
        world.clock.advance(10)
        world.proof_key = ProofKey()
        own = world.workload()
        assert await code_of(broker, world.form(own)) == "ok"
        status, feedback = await github.alert(broker, identity, token)
        assert (status, {one["label"] for one in feedback}) == (200, {"true_positive"})
        assert await code_of(broker, world.form(own)) == "ok"


async def test_what_is_odd_about_an_alert_keeps_no_incident_from_opening(
    world: World, postgres: Postgres
) -> None:
    github = Github(world)
    world.overrides["database"] = postgres.database()
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        alert = {"token": token, "type": "t\0", "url": "https://x/\0" + "y" * 5000, "new": [1]}
        status, _ = await github.alert(broker, body=json.dumps([alert]).encode())
        assert status == 200
        assert not await active(broker, token)
        assert len(await incidents(broker)) == 1


async def test_a_token_that_has_expired_harms_nobody(world: World) -> None:
    github = Github(world)
    async with serving(world) as broker:
        token = (await issue(broker, world.form(world.workload())))["access_token"]
        world.clock.advance(200)
        _, feedback = await github.alert(broker, token)
        assert feedback[0]["label"] == "true_positive"
        assert await incidents(broker) == []


async def test_signatures_that_are_refused(world: World) -> None:
    github = Github(world)
    async with serving(world) as broker:
        body = b'[{"token":"x","type":"t","url":"","source":"commit"}]'
        good = github.sign(body)
        stranger = ec.generate_private_key(ec.SECP256R1()).sign(body, ec.ECDSA(hashes.SHA256()))
        for name, headers in (
            (
                "of another key",
                {"Github_Public_Key_Signature": base64.b64encode(stranger).decode()},
            ),
            ("by a key that is not pinned", {"Github_Public_Key_Identifier": "key-2"}),
            ("no base64", {"Github_Public_Key_Signature": "!" + good}),
            ("base64url", {"Github_Public_Key_Signature": "-_" + good[2:]}),
            ("no DER", {"Github_Public_Key_Signature": base64.b64encode(b"x" * 64).decode()}),
            ("empty", {"Github_Public_Key_Signature": ""}),
            ("no identifier", {"Github_Public_Key_Identifier": ""}),
        ):
            status, document = await github.alert(broker, body=body, **headers)
            assert (status, document["code"]) == (401, "service.unauthenticated"), name
        # The same list, written otherwise: what was signed are bytes.
        status, _ = await github.alert(
            broker, body=body.replace(b":", b": "), Github_Public_Key_Signature=good
        )
        assert status == 401
        async with broker.client.post(broker.where + PATH, data=body) as response:
            assert response.status == 401
        twice = [("Github-Public-Key-Identifier", "key-1")] * 2
        signature = [("Github-Public-Key-Signature", good)]
        async with broker.client.post(
            broker.where + PATH, data=body, headers=[*twice, *signature]
        ) as response:
            assert response.status == 401
        assert (await github.alert(broker, body=body))[0] == 200, "the control"


async def test_signed_bodies_that_are_no_alerts(world: World) -> None:
    github = Github(world)
    numbers = b'[{"token":1,"type":"t"}]'
    async with serving(world) as broker:
        for body in (b"", b"{}", b"[1]", b'[{"type":"t"}]', b"\xff", b"[" * 5000, numbers):
            status, document = await github.alert(broker, body=body)
            assert (status, document["code"]) == (400, "service.bad_request"), body[:20]


async def test_many_at_once_and_too_many(world: World) -> None:
    github = Github(world)
    async with serving(world) as broker:
        status, feedback = await github.alert(broker, *("t" * 500 for _ in range(900)))
        assert (status, len(feedback)) == (200, 900)
        assert (await github.alert(broker, *("t" for _ in range(1001))))[0] == 400
        assert (await github.alert(broker, *("t" * 1500 for _ in range(690))))[0] == 413


async def test_keys_are_read_again_and_bad_ones_are_not_taken(world: World) -> None:
    github = Github(world)
    async with serving(world) as broker:
        github.file.write_text("{}")
        await broker.broker.sweep()
        assert (await github.alert(broker, "x"))[0] == 200
        github.key = ec.generate_private_key(ec.SECP256R1())
        assert (await github.alert(broker, "x"))[0] == 401
        github.publish()
        await broker.broker.sweep()
        assert (await github.alert(broker, "x"))[0] == 200


@pytest.mark.parametrize("content", ["", "{}", '{"public_keys":[]}', "curve"])
async def test_a_file_without_keys_stops_the_start(world: World, content: str) -> None:
    github = Github(world, ec.SECP384R1() if content == "curve" else None)
    if content != "curve":
        github.file.write_text(content)
    with pytest.raises(ConfigError, match="no keys of GitHub"):
        async with serving(world):
            pass


async def test_without_settings_there_is_no_such_endpoint(world: World) -> None:
    github = Github(world)
    world.overrides = {}
    async with serving(world) as broker:
        assert (await github.alert(broker, "x"))[0] == 404

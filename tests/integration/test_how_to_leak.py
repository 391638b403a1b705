"""The commands of the page on leaked tokens, as they stand there, against a broker and a collector."""

from __future__ import annotations

import asyncio
import json
import re
import shlex
from collections.abc import AsyncIterator
from pathlib import Path

import aiohttp
import pytest_asyncio
from click.testing import CliRunner, Result

from tests.integration.broker_support import BOT, IDP, Served, World, claims_of, serving
from tests.integration.test_broker_containment import issue
from tests.support.canaries import CANARIES
from tests.support.chain import Chain, batch, decision_data
from tests.support.collector import CollectorBench
from tests.support.ports import free_url
from valetkey.cli.main import main

PAGE = Path(__file__).parents[2] / "docs/how-to/a-token-leaked.md"


def commands() -> list[str]:
    """Each command, whole, in the order of the page; those within the text too."""
    text = PAGE.read_text().replace("\\\n", " ")
    return re.findall(r"(?:^    |`)(valetkey [^`\n]*)", text, re.MULTILINE)


@pytest_asyncio.fixture
async def broker(tmp_path: Path) -> AsyncIterator[Served]:
    async with serving(World(tmp_path / "world", free_url())) as served:
        yield served


async def test_from_the_leak_to_the_end(broker: Served, tmp_path: Path) -> None:
    leaked = (await issue(broker, broker.world.form(broker.world.workload())))["access_token"]
    (tmp_path / "leaked.txt").write_text(leaked + "\n")
    (tmp_path / "operator.token").write_text(broker.world.admin())
    (tmp_path / "admin.token").write_text(broker.world.admin(role="admin"))
    for name in ("leaked.txt", "operator.token", "admin.token"):
        CANARIES.allow(tmp_path / name)
    claims = claims_of(leaked)
    bench = CollectorBench(tmp_path)
    async with bench.program() as program:
        url = f"http://127.0.0.1:{await program.listening()}"
        chain = Chain()
        named = {"jti": claims["jti"], "txn": claims["txn"]}
        for unmapped in ({"jti": "another"}, named):
            data = decision_data(actor={"app_uid": BOT}, unmapped=unmapped)
            chain.outcome(chain.decision(**data))
        async with (
            aiohttp.ClientSession() as session,
            session.post(
                f"{url}/v1/events", data=batch(chain.events), headers=bench.sidecar()
            ) as response,
        ):
            assert response.status == 200
        _, jwks, _ = await broker.get("/jwks")
        instead = {
            "leaked.txt": str(tmp_path / "leaked.txt"),
            "https://idp.example": IDP,
            "spiffe://acme/ns/a/sa/bot": BOT,
            "https://audit.example": url,
            "reader.jwt": str(bench.reader_token_file()),
            "KG9GS2HjSkGWGK_UJG26iw": claims["txn"],
            "KID": json.loads(jwks)["keys"][0]["kid"],
            "2026-11-29T08:00:00Z": "2026-10-01T00:00:00Z",
        }
        seen: dict[str, list[Result]] = {}

        async def run(line: str, role: str = "operator") -> Result:
            words = [
                instead.get(word, word) for word in shlex.split(line)[1:] if word != "--follow"
            ]
            env = {
                "VALETKEY_BROKER_URL": broker.world.url,
                "VALETKEY_TOKEN_FILE": str(tmp_path / f"{role}.token"),
            }
            done = await asyncio.to_thread(CliRunner().invoke, main, words, env=env)
            seen.setdefault(" ".join(words[:2]), []).append(done)
            return done

        for line in commands():
            done = await run(line)
            if line.startswith("valetkey incidents close"):
                # Its subject did nothing since: so the page says, and who may force it.
                assert (done.exit_code, "incident.open" in done.stderr) == (1, True), done.output
                done = await run(f"{line} --force", "admin")
            assert done.exit_code == 0, (line, done.output)
            if "inc_…" not in instead:
                instead["inc_…"] = re.findall(r"\binc_\S+", done.stdout)[0]
                assert f"token {claims['jti']}" in done.stdout
        assert {name: len(done) for name, done in seen.items()} == {
            "incidents open": 5,
            "incidents show": 1,
            "incidents close": 2,
            "audit tail": 4,
        }
        by_token, by_transaction, since, lately = (done.stdout for done in seen["audit tail"])
        assert by_token == by_transaction
        assert [len(shown.splitlines()) for shown in (by_token, since, lately)] == [2, 3, 1]
        assert "state             closed" in seen["incidents close"][-1].stdout
        found = json.loads(
            (await run(f"valetkey audit tail --collector {url} --token-file reader.jwt --json"
                       " --token-from leaked.txt")).stdout
        )  # fmt: skip
        assert found["outcome"]["data"]["http_response"]["code"] == 200

"""Calls that wait for a person, through real programs: held, refused with the id, let out once.

Broker and sidecar are processes; the approver speaks to the broker's admin API.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import pytest

from tests.support.fleet import Fleet, token_of
from tests.support.idp import Idp

CLOSE = "/api/tickets/7/close"


class Office(Fleet):
    """A fleet in which closing a ticket takes a person, and the people."""

    def __init__(self, directory: Path, *, hold: str = "10s", rule: Any = None) -> None:
        self.staff = Idp(directory / "staff", issuer="https://staff.test.example")
        super().__init__(directory)
        self.more_grants = [
            {"id": "bot-closes", "scopes": ["t:close"], "approval": rule or {"quorum": 1}}
        ]
        self.routes.append(
            self.route(
                "close-ticket",
                methods=["POST"],
                path="/api/tickets/{id}/close",
                scopes=["t:close"],
                approval={"hold": hold},
            )
        )
        self.broker_changes = {
            "approvals": {"deferred": True, "interval": "1s"},
            "admin": {
                "issuers": [self.staff.trust(self.broker_url, "admin")],
                "roles": [
                    {"role": "approver", "issuer": self.staff.issuer, "subjects": ["olga", "otto"]}
                ],
            },
        }

    async def manage(self, method: str, path: str, document: Any = None) -> dict[str, Any]:
        token = self.staff.mint("olga", self.broker_url)
        async with self.client.request(
            method,
            f"{self.broker_url}/v1/approvals{path}",
            json=document,
            headers={"Authorization": f"Bearer {token}"},
        ) as response:
            assert response.status == 200, await response.text()
            answer: dict[str, Any] = await response.json()
            return answer

    async def pending(self, count: int = 1) -> list[str]:
        """The ids of what is before people, once there are that many."""
        found: list[str] = []

        async def there() -> bool:
            page = await self.manage("GET", "?state=pending")
            found[:] = [item["id"] for item in page["items"]]
            return len(found) == count

        await self.until(there, f"{count} pending")
        return found

    async def decide(self, approval: str, verdict: str = "approve", **said: Any) -> None:
        await self.manage("POST", f"/{approval}/{verdict}", {"reason": "as agreed", **said})

    async def close(self, ticket: int = 7, **more: Any) -> tuple[int, dict[str, Any], Any]:
        path = f"/api/tickets/{ticket}/close"
        async with self.client.post(self.url + path, **more) as response:
            return response.status, await response.json(), response.headers

    async def decisions(self) -> list[dict[str, Any]]:
        return [
            event["data"] for event in await self.spooled("valetkey.call.decision.v1")
            if event["data"]["policy"]["uid"] == "close-ticket"
        ]  # fmt: skip


@asynccontextmanager
async def office(tmp_path: Path, **how: Any) -> AsyncIterator[Office]:
    at = Office(tmp_path, **how)
    async with at.running(collector=False):
        yield at


async def test_a_held_call_goes_through_when_it_is_approved_and_only_once(tmp_path: Path) -> None:
    async with office(tmp_path) as at:
        call = asyncio.ensure_future(
            at.close(headers={"X-Valetkey-Purpose": "duplicate of 6"}, data=b"{}")
        )
        (approval,) = await at.pending()
        assert at.received == []
        shown = await at.manage("GET", f"/{approval}")
        assert shown["untrusted"] == {"purpose": "duplicate of 6"}
        (detail,) = shown["request"]["authorization_details"]
        assert (detail["path"], detail["actions"], detail["exact"]) == (CLOSE, ["POST"], True)
        assert await at.metric("valetkey_calls_held") == 1
        await at.decide(approval)
        status, body, _ = await call
        assert (status, body) == (200, {"status": "open"})
        (request,) = at.received
        assert "X-Valetkey-Purpose" not in request.headers
        token = request.headers["Authorization"].partition(" ")[2]
        claims = jwt.decode(token, options={"verify_signature": False})
        assert (claims["approval"], claims["scope"]) == (approval, "t:close")
        assert await at.metric("valetkey_cache_entries") == 0
        assert await at.metric("valetkey_calls_held") == 0
        assert (await at.manage("GET", f"/{approval}"))["state"] == "used"

        again = asyncio.ensure_future(at.close())
        (other,) = await at.pending()
        assert other != approval
        await at.decide(other, "deny")
        status, body, headers = await again
        assert (status, body["code"], body["approval"]) == (403, "approval.denied", other)
        assert "Retry-After" not in headers
        assert len(at.received) == 1
        allowed, denied = await at.decisions()
        assert allowed["unmapped"]["approval"] == approval
        assert (denied["unmapped"]["code"], denied["unmapped"]["approval"]) == (
            "approval.denied", other,
        )  # fmt: skip


async def test_after_the_hold_403_with_the_id_and_the_repeat_passes_once_approved(
    tmp_path: Path,
) -> None:
    async with office(tmp_path, hold="1s") as at:
        status, body, headers = await at.close()
        assert status == 403
        assert headers["Content-Type"] == "application/problem+json"
        assert body["code"] == "approval.pending"
        assert re.fullmatch(r"apr_[\w-]{22}", body["approval"])
        assert int(headers["Retry-After"]) > 0
        assert (await at.close())[1]["approval"] == body["approval"], "the same request is one"
        await at.decide(body["approval"])
        assert (await at.close())[0] == 200
        status, again, _ = await at.close()
        assert (status, again["code"]) == (403, "approval.pending")
        assert again["approval"] != body["approval"]
        assert len(at.received) == 1


async def test_hundreds_of_held_calls_are_one_request_and_each_yes_is_one_call(
    tmp_path: Path,
) -> None:
    async with office(tmp_path, hold="60s") as at:
        calls = [asyncio.ensure_future(at.close()) for _ in range(200)]
        (approval,) = await at.pending()

        async def all_wait() -> bool:
            return await at.metric("valetkey_calls_held") == 200

        await at.until(all_wait, "all wait")
        assert (
            await at.metric("valetkey_broker_approvals_total", at.broker_url, event="requested")
            == 1
        )
        await at.decide(approval, uses=3)
        (other,) = await at.pending()  # that of all who came too late for the first
        assert other != approval
        await at.decide(other, "deny")
        results = await asyncio.gather(*calls)
        passed = [status for status, _, _ in results if status == 200]
        assert len(passed) == 3
        assert len(at.received) == 3
        assert len({request.headers["Authorization"] for request in at.received}) == 3
        others = {(body["code"], body["approval"]) for status, body, _ in results if status != 200}
        assert others == {("approval.denied", other)}


async def test_who_leaves_ends_the_wait_and_loses_nothing(tmp_path: Path) -> None:
    async with office(tmp_path) as at:
        call = asyncio.ensure_future(at.close())
        (approval,) = await at.pending()
        call.cancel()

        async def gone() -> bool:
            return await at.metric("valetkey_calls_held") == 0

        await at.until(gone, "nobody waits")
        await at.decide(approval)
        assert (await at.close())[0] == 200
        assert len(at.received) == 1


async def test_what_may_have_ended_meanwhile_does_not_cost_the_yes(tmp_path: Path) -> None:
    """The feed is begun anew while a call is held: everything counts as ended that came before."""
    async with office(tmp_path, hold="20s") as at:
        call = asyncio.ensure_future(at.close())
        (approval,) = await at.pending()
        before = await at.metric("valetkey_feed_afresh_total")
        at.broker.kill()
        with closing(sqlite3.connect(at.directory / "broker.db")) as database, database:
            database.execute("DELETE FROM feed_streams")
        at.broker.start()

        async def afresh() -> bool:
            return await at.metric("valetkey_feed_afresh_total") > before

        await at.until(afresh, "everything is dropped")
        await at.decide(approval)
        assert (await call)[0] == 200
        assert (await at.manage("GET", f"/{approval}"))["state"] == "used"
        assert (await at.manage("GET", "?state=pending"))["items"] == []
        assert len(at.received) == 1


async def test_the_broker_is_killed_while_calls_are_held(tmp_path: Path) -> None:
    async with office(tmp_path, hold="60s") as at:
        calls = [asyncio.ensure_future(at.close(ticket)) for ticket in (7, 8)]
        await at.pending(2)

        async def known() -> bool:
            return await at.metric("valetkey_exchanges_total", result="approval.pending") >= 2

        await at.until(known, "the sidecar has heard of both")
        at.broker.kill()
        await asyncio.sleep(1.5)
        assert not any(call.done() for call in calls)
        at.broker.start()
        await at.broker.ready(f"{at.broker_url}/readyz")
        first, second = await at.pending(2)
        await at.decide(first)
        await at.decide(second, "deny")
        results = await asyncio.gather(*calls)
        assert sorted(status for status, _, _ in results) == [200, 403]
        assert len(at.received) == 1
        assert {body.get("code") for _, body, _ in results} == {None, "approval.denied"}
        # Approved, then killed: what was acknowledged stands.
        call = asyncio.ensure_future(at.close(9))
        (third,) = await at.pending()
        # It polls once a second. A poll that the broker dies over may have spent the yes, and its
        # credential is lost with the answer: the sidecar stands still meanwhile.
        os.kill(at.sidecar.pid, signal.SIGSTOP)
        await at.decide(third)
        at.broker.kill()
        at.broker.start()
        await at.broker.ready(f"{at.broker_url}/readyz")
        os.kill(at.sidecar.pid, signal.SIGCONT)
        assert (await call)[0] == 200
        assert len(at.received) == 2


async def test_a_route_that_asks_lets_nothing_out_that_nobody_approved(tmp_path: Path) -> None:
    """The broker's grants ask nobody: a mistake in settings, which shows and opens nothing."""
    at = Office(tmp_path)
    del at.more_grants[0]["approval"]
    async with at.running(collector=False):
        status, body, _ = await at.close()
        assert (status, body["code"]) == (403, "approval.not_asked")
        assert at.received == []


async def test_a_route_that_does_not_ask_is_told_and_uses_each_yes_once(tmp_path: Path) -> None:
    """The broker asks for people, and the route's settings know nothing of it."""
    at = Office(tmp_path)
    del at.routes[-1]["approval"]
    async with at.running(collector=False):
        status, body, headers = await at.close()
        assert (status, body["code"], headers["Retry-After"]) == (403, "approval.required", "15")
        shown = await at.manage("GET", f"/{body['approval']}")
        assert shown["request"]["authorization_details"][0]["path"] == "/api/tickets/{id}/close"
        await at.decide(body["approval"], uses=2)
        await asyncio.sleep(1.1)  # a no is remembered for a second
        results = await asyncio.gather(*(at.close() for _ in range(10)))
        assert sorted(status for status, _, _ in results) == [200] * 2 + [403] * 8
        assert len(at.received) == 2
        assert await at.metric("valetkey_cache_entries") == 0


async def test_a_401_does_not_take_another_yes(tmp_path: Path) -> None:
    at = Office(tmp_path, rule={"quorum": 1})

    async def target(_request: aiohttp.web.Request) -> aiohttp.web.Response:
        return aiohttp.web.json_response({}, status=401)

    at.target = target
    async with at.running(collector=False):
        call = asyncio.ensure_future(at.close())
        (approval,) = await at.pending()
        await at.decide(approval, uses=2)
        assert (await call)[0] == 401
        assert (await at.manage("GET", f"/{approval}"))["uses_left"] == 1
        assert len(at.received) == 1


async def test_the_sidecar_is_stopped_while_calls_are_held(tmp_path: Path) -> None:
    at = Office(tmp_path, hold="30s")
    at.sidecar_changes = {"timeouts": {"drain": "500ms"}}
    async with at.running(collector=False):
        call = asyncio.ensure_future(at.close())
        await at.pending()
        assert await at.sidecar.stop() == 0
        status, body, _ = await call
        assert (status, body["code"]) == (503, "proxy.draining")
        assert at.received == []
        log = at.sidecar.log()
        assert not [line for line in log if line["event"] in {"call_broke", "background_failed"}]
        assert json.dumps(log).count("proxy.draining") <= 2


async def test_an_approved_call_that_lasts_is_cut_when_its_credential_is_revoked(
    tmp_path: Path,
) -> None:
    """At once: another credential would take another yes."""
    at = Office(tmp_path)
    at.sidecar_changes["broker"] = {"url": at.broker_url, "timeout": "2s", "revalidate": "1h"}

    async def target(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        response = aiohttp.web.StreamResponse()
        await response.prepare(request)
        await response.write(b"begun")
        await asyncio.sleep(30)
        return response

    at.target = target
    async with at.running(collector=False):
        call = asyncio.ensure_future(at.client.post(at.url + CLOSE))
        (approval,) = await at.pending()
        await at.decide(approval)
        async with await call as response:
            assert await response.content.readexactly(5) == b"begun"
            await at.revoke(token_of(at.received[0]))
            async with asyncio.timeout(15):  # it would last for twice that
                with pytest.raises(aiohttp.ClientPayloadError):
                    await response.content.read()
        assert await at.metric("valetkey_stream_rechecks_total", result="subject.revoked") == 1

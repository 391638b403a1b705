"""People are told: a webhook that an independent library verifies, and a real mail server.

The webhook's receiver is aiohttp on loopback, its signatures are verified by `standardwebhooks`;
the mail server is `aiosmtpd` on loopback.
"""

from __future__ import annotations

import asyncio
import base64
import email
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.message import Message
from email.policy import default
from pathlib import Path
from typing import Any

import pytest
import trustme
from aiohttp import web
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from standardwebhooks import Webhook, WebhookVerificationError

from tests.integration.approvals_support import Desk, desk, world_of
from tests.integration.broker_support import World, serving
from tests.support.canaries import CANARIES
from tests.support.ports import free_port, free_url
from tests.support.postgres import Postgres
from tests.support.waiting import until
from valetkey.broker.approval_settings import EmailSettings, WebhookSettings
from valetkey.broker.notify.courier import Undelivered
from valetkey.broker.notify.email import Email as SentEmail
from valetkey.broker.notify.webhook import Webhook as SentWebhook
from valetkey.broker.parts.approvals import ApprovalsPart
from valetkey.broker.store.notices import Notice
from valetkey.contracts.errors import ConfigError


class Receiver:
    """A webhook receiver that answers what it is told to, and keeps what came."""

    def __init__(self, secret: str) -> None:
        self.verifier = Webhook(secret)
        self.answers: list[web.Response] = []
        self.came: list[tuple[dict[str, str], bytes]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        self.came.append((dict(request.headers), await request.read()))
        return self.answers.pop(0) if self.answers else web.Response(status=204)

    def read(self, index: int) -> dict[str, Any]:
        headers, raw = self.came[index]
        document: dict[str, Any] = self.verifier.verify(raw, headers)
        return document

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.came) >= count, f"{count} notices")


@asynccontextmanager
async def receiving(secret: str) -> AsyncIterator[Receiver]:
    receiver = Receiver(secret)
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    receiver.url = f"http://127.0.0.1:{runner.addresses[0][1]}/hook"
    try:
        yield receiver
    finally:
        await runner.cleanup()


def secret_file(root: Path) -> tuple[Path, str]:
    root.mkdir(parents=True, exist_ok=True)
    secret = "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()
    path = root / "webhook.secret"
    path.write_text(secret + "\n")
    path.chmod(0o600)
    CANARIES.add(secret, name="webhook secret", allow=[path])
    return path, secret


def with_webhook(root: Path, url: str, path: Path, **more: Any) -> World:
    notices = {
        "webhooks": [{"name": "ops", "url": url, "secret_file": str(path)}],
        "link": "https://approvals.example/{id}",
    }
    more["approvals"] = {"notices": notices, **more.pop("approvals", {})}
    return world_of(root, **more)


async def test_a_webhook_carries_facts_and_a_link_and_never_a_token(tmp_path: Path) -> None:
    path, secret = secret_file(tmp_path)
    async with receiving(secret) as receiver:
        async with desk(with_webhook(tmp_path, receiver.url, path)) as at:
            user = at.world.user("alice")
            _, body = await at.ask(user=user, purpose="to tidy up", deferred=True)
            approval = body["approval_id"]
            await receiver.wait(1)
            told = receiver.read(0)
            assert told["type"] == "approval.requested"
            assert told["data"]["id"] == approval
            assert told["data"]["link"] == f"https://approvals.example/{approval}"
            assert told["data"]["untrusted"] == {"purpose": "to tidy up"}
            assert told["data"]["request"]["subject"]["subject"] == "alice"
            await at.approve(approval)
            await receiver.wait(2)
            assert receiver.read(1)["type"] == "approval.approved"
            other = await at.opened(path="/api/tickets/9/close")
            await at.decide(other, "deny")
            await receiver.wait(4)
            # Of the same moment, for this clock stands still: in any order.
            assert {receiver.read(n)["type"] for n in (2, 3)} == {
                "approval.requested", "approval.denied",
            }  # fmt: skip
        everything = b"".join(raw + str(headers).encode() for headers, raw in receiver.came)
        assert body["deferral_code"].encode() not in everything
        assert not CANARIES.found_in(everything)
        # A changed body, and another secret, do not verify.
        headers, raw = receiver.came[0]
        with pytest.raises(WebhookVerificationError):
            receiver.verifier.verify(raw.replace(b"alice", b"mallo"), headers)
        stranger = Webhook("whsec_" + base64.b64encode(b"x" * 32).decode())
        with pytest.raises(WebhookVerificationError):
            stranger.verify(raw, headers)


async def test_what_fails_is_sent_again_under_the_same_id_and_redirects_lead_nowhere(
    tmp_path: Path,
) -> None:
    path, secret = secret_file(tmp_path)
    async with receiving(secret) as receiver, receiving(secret) as trap:
        receiver.answers = [
            web.Response(status=500),
            web.Response(status=307, headers={"Location": trap.url}),
        ]
        world = with_webhook(tmp_path, receiver.url, path)
        async with desk(world) as at:
            await at.opened()
            await receiver.wait(1)
            for attempt in (2, 3):
                await asyncio.sleep(1.2)
                assert len(receiver.came) == attempt - 1, "not before its time"
                world.clock.advance(20)
                await receiver.wait(attempt)
            world.clock.advance(900)
            await asyncio.sleep(1.3)
            assert len(receiver.came) == 3, "delivered, and never again"
        assert trap.came == []
        assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 1
        assert len({raw for _, raw in receiver.came}) == 1


async def test_what_cannot_be_delivered_is_given_up_in_the_end(tmp_path: Path) -> None:
    path, _ = secret_file(tmp_path)
    nowhere = free_url()
    world = with_webhook(tmp_path, nowhere + "/hook", path)
    async with desk(world) as at:
        (part,) = (part for part in at.served.broker.parts if isinstance(part, ApprovalsPart))
        notices = part.courier._notices
        await at.opened()
        async with asyncio.timeout(10):
            while await notices.count():
                world.clock.advance(3600)
                await asyncio.sleep(0.05)
        _, raw, _ = await at.served.get("/metrics")
        assert b'valetkey_broker_notices_total{channel="ops",result="given_up"} 1.0' in raw


async def test_a_broker_that_dies_before_it_told_does_so_after_its_restart(tmp_path: Path) -> None:
    path, secret = secret_file(tmp_path)
    async with receiving(secret) as receiver:
        receiver.answers = [web.Response(status=503)]
        world = with_webhook(tmp_path, receiver.url, path)
        async with desk(world) as at:
            approval = await at.opened()
            await receiver.wait(1)
        world.clock.advance(130)  # the claim of the one that is gone has ended
        async with desk(world):
            await receiver.wait(2)
        assert receiver.read(1)["data"]["id"] == approval


async def test_of_two_replicas_one_tells(tmp_path: Path, postgres: Postgres) -> None:
    path, secret = secret_file(tmp_path)
    async with receiving(secret) as receiver:
        world = with_webhook(tmp_path, receiver.url, path, database=postgres.database())
        async with serving(world) as first, serving(world, free_url()) as second:
            for number in range(6):
                at = Desk((first, second)[number % 2])
                await at.opened(path=f"/api/tickets/{number}/close")
            await receiver.wait(6)
            await asyncio.sleep(1.2)
        assert len(receiver.came) == 6
        assert len({headers["webhook-id"] for headers, _ in receiver.came}) == 6


# --- mail --------------------------------------------------------------------------------------------


class Mailbox:
    """What aiosmtpd hands over: envelopes with the message's bytes."""

    def __init__(self) -> None:
        self.letters: list[tuple[list[str], Message]] = []
        self.refuse = 0

    async def handle_DATA(self, _server: Any, _session: Any, envelope: Any) -> str:
        if self.refuse:
            self.refuse -= 1
            return "451 try again"
        message = email.message_from_bytes(envelope.content, policy=default)
        self.letters.append((envelope.rcpt_tos, message))
        return "250 OK"

    async def wait(self, count: int) -> None:
        await until(lambda: len(self.letters) >= count, f"{count} letters")


@asynccontextmanager
async def mailing(mailbox: Mailbox, **how: Any) -> AsyncIterator[int]:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: SMTP(mailbox, hostname="mail.example", loop=loop, **how), "127.0.0.1", 0
    )
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await server.wait_closed()


def with_mail(root: Path, port: int, **more: Any) -> World:
    mail = {
        "name": "mail",
        "host": "127.0.0.1",
        "port": port,
        "security": "none",
        "sender": "valetkey@acme.example",
        "recipients": ["on-call@acme.example", "lead@acme.example"],
        **more,
    }
    return world_of(root, approvals={"notices": {"email": [mail]}})


async def test_a_mail_has_facts_and_marks_what_was_said(tmp_path: Path) -> None:
    mailbox = Mailbox()
    mailbox.refuse = 1
    async with mailing(mailbox) as port, desk(with_mail(tmp_path, port)) as at:
        approval = await at.opened(
            user=at.world.user("alice"), purpose="Subject: all good. Bcc: mallory@evil.example"
        )
        await until(lambda: failed(at, "mail"), "a failed mail is counted")
        at.world.clock.advance(20)
        await mailbox.wait(1)
    ((recipients, message),) = mailbox.letters
    assert recipients == ["on-call@acme.example", "lead@acme.example"]
    assert message["Subject"] == f"[valetkey] approval.requested: {approval}"
    assert message["From"] == "valetkey@acme.example"
    assert message["Bcc"] is None
    assert message["Auto-Submitted"] == "auto-generated"
    text = message.get_content()
    assert "POST /api/tickets/7/close" in text
    assert "acting for  alice of" in text
    facts, _, said = text.partition("UNTRUSTED, written by the side that asks:")
    assert "mallory" not in facts
    assert said.strip() == "> Subject: all good. Bcc: mallory@evil.example"
    assert not CANARIES.found_in(bytes(message))


async def test_a_receiver_that_hangs_holds_nobody_else_up(tmp_path: Path) -> None:
    path, _ = secret_file(tmp_path)
    hung = asyncio.Event()
    held: list[asyncio.StreamWriter] = []

    async def hang(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        hung.set()

    mailbox = Mailbox()
    silent = await asyncio.start_server(hang, "127.0.0.1", 0)
    try:
        async with mailing(mailbox) as port:
            world = with_mail(tmp_path, port)
            url = f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}/hook"
            hook = {"name": "ops", "url": url, "secret_file": str(path), "timeout": "60s"}
            world.overrides["approvals"]["notices"]["webhooks"] = [hook]
            async with desk(world) as at:
                await at.opened(path="/api/tickets/0/close")
                async with asyncio.timeout(15):
                    await hung.wait()
                for number in range(1, 10):
                    await at.opened(path=f"/api/tickets/{number}/close")
                await mailbox.wait(10)  # long before the other gives up
                assert len(held) == 1, "one at a time, also where nothing comes back"
    finally:
        for writer in held:
            writer.close()
        silent.close()
        await silent.wait_closed()


async def test_headers_cannot_be_injected(tmp_path: Path) -> None:
    """What a caller can choose (subject, path, purpose) stays in the body, on its own line."""
    mailbox = Mailbox()
    async with mailing(mailbox) as port, desk(with_mail(tmp_path, port)) as at:
        evil = "alice\r\nBcc: mallory@evil.example\r\n\r\nhello\x1b[31m"
        status, body = await at.ask(user=at.world.user(evil))
        assert (status, body["code"]) == (400, "approval.required"), body
        await mailbox.wait(1)
    ((recipients, message),) = mailbox.letters
    assert "mallory@evil.example" not in recipients
    assert message["Bcc"] is None
    text = message.get_content()
    assert "alice\\x0d\\x0aBcc: mallory@evil.example\\x0d\\x0a\\x0d\\x0ahello\\x1b[31m of" in text


async def test_over_starttls_with_a_password(tmp_path: Path) -> None:
    authority = trustme.CA()
    certificate = authority.issue_cert("localhost", "127.0.0.1")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate.configure_cert(context)
    ca_file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(str(ca_file))
    password = tmp_path / "password"
    password.write_text("correct horse\n")
    seen: list[tuple[bytes, bytes]] = []

    def authenticate(_server: Any, _session: Any, _envelope: Any, _how: str, data: Any) -> Any:
        assert isinstance(data, LoginPassword)
        seen.append((data.login, data.password))
        return AuthResult(success=data.password == b"correct horse")

    mailbox = Mailbox()
    how = {
        "tls_context": context, "require_starttls": True, "auth_required": True,
        "authenticator": authenticate,
    }  # fmt: skip
    more = {
        "security": "starttls", "ca_file": str(ca_file), "username": "valetkey",
        "password_file": str(password),
    }  # fmt: skip
    async with mailing(mailbox, **how) as port, desk(with_mail(tmp_path, port, **more)) as at:
        await at.opened()
        await mailbox.wait(1)
    assert seen == [(b"valetkey", b"correct horse")]
    # A server with a certificate of somebody else gets nothing.
    other = tmp_path / "other.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    more["ca_file"] = str(other)
    async with (
        mailing(mailbox, **how) as port,
        desk(with_mail(tmp_path / "again", port, **more)) as at,
    ):
        await at.opened()
        await until(lambda: failed(at, "mail"), "a failed mail is counted")
    assert len(mailbox.letters) == 1
    assert len(seen) == 1


BODY: dict[str, Any] = {
    "type": "approval.requested",
    "timestamp": "2026-11-29T12:00:00Z",
    "data": {
        "id": "apr-1",
        "state": "pending",
        "requires": {"quorum": 1},
        "request": {
            "workload": {"subject": "bot"},
            "subject": {"subject": "bot"},
            "target": "tickets",
            "audience": "https://tickets.example",
            "scopes": ["tickets:close"],
            "authorization_details": [],
        },
        "untrusted": {"purpose": ""},
    },
}


async def test_another_ca_is_taken_up_while_it_runs(tmp_path: Path) -> None:
    """Of the mail server, and of who gets webhooks: the next notice goes by it."""
    old, new = trustme.CA(), trustme.CA()
    ca_file = tmp_path / "ca.pem"
    old.cert_pem.write_to_path(str(ca_file))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    new.issue_cert("localhost", "127.0.0.1").configure_cert(context)
    path, _ = secret_file(tmp_path)
    taken: list[str] = []

    async def take(request: web.Request) -> web.Response:
        taken.append(await request.text())
        return web.Response(status=204)

    app = web.Application()
    app.router.add_post("/x", take)
    runner = web.AppRunner(app)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port, ssl_context=context).start()
    url = f"https://localhost:{port}/x"
    hook = await asyncio.to_thread(
        SentWebhook, WebhookSettings(name="ops", url=url, secret_file=path, ca_file=ca_file)
    )
    mailbox = Mailbox()
    try:
        async with mailing(mailbox, tls_context=context, require_starttls=True) as mail_port:
            mail = await asyncio.to_thread(
                SentEmail,
                EmailSettings(
                    name="mail", host="localhost", port=mail_port, sender="v@test.example",
                    recipients=("a@test.example",), ca_file=ca_file,
                ),
            )  # fmt: skip
            notice = Notice("n-1", "ops", BODY, 1.0, 1)
            for channel in (hook, mail):
                with pytest.raises(Undelivered):
                    await channel.deliver(notice, now=time.time())
            new.cert_pem.write_to_path(str(ca_file))
            for channel in (hook, mail):
                await channel.deliver(notice, now=time.time())
            await mailbox.wait(1)
        assert len(taken) == 1
    finally:
        await runner.cleanup()


async def failed(at: Desk, channel: str) -> bool:
    _, raw, _ = await at.served.get("/metrics")
    line = f'valetkey_broker_notices_total{{channel="{channel}",result="failed"}} 1.0'
    return line.encode() in raw


# --- settings -------------------------------------------------------------------------------------------

WEBHOOK = {"name": "ops", "url": "https://hooks.example/x", "secret_file": "SECRET"}
MAIL = {
    "name": "mail", "host": "smtp.example", "sender": "a@b.example", "recipients": ["c@d.example"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("approvals", "message"),
    [
        ({"interval": "0s"}, "interval is between"),
        ({"expires": "8d"}, "expires and valid are between"),
        ({"open": 0}, "open is between"),
        ({"notices": {"webhooks": [{**WEBHOOK, "url": "http://hooks.example"}]}}, "url is https"),
        ({"notices": {"webhooks": [{**WEBHOOK, "url": "https://a:b@c"}]}}, "neither userinfo"),
        ({"notices": {"webhooks": [{**WEBHOOK, "url": "ftp://a"}]}}, "url is https"),
        ({"notices": {"webhooks": [{**WEBHOOK, "name": "Ops!"}]}}, "name is lower-case"),
        ({"notices": {"webhooks": [WEBHOOK, WEBHOOK]}}, "the same name"),
        ({"notices": {"email": [{**MAIL, "recipients": []}]}}, "recipients is empty"),
        ({"notices": {"email": [{**MAIL, "sender": "a@b\r\nBcc: c@d"}]}}, "no mail address"),
        ({"notices": {"email": [{**MAIL, "recipients": ["a b@c"]}]}}, "no mail address"),
        ({"notices": {"email": [{**MAIL, "security": "none"}]}}, "for loopback only"),
        ({"notices": {"email": [{**MAIL, "username": "x"}]}}, "come together"),
        ({"notices": {"link": "javascript:x"}}, "link is a URL"),
    ],
)
def test_settings_that_are_refused(tmp_path: Path, approvals: dict[str, Any], message: str) -> None:
    world = world_of(tmp_path, approvals=approvals)
    with pytest.raises(ConfigError, match=message):
        world.settings()


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (b"whsec_" + base64.b64encode(b"x" * 32), 0o644, "open to group or others"),
        (b"whsec_" + base64.b64encode(b"x" * 8), 0o600, "24 to 64 bytes"),
        (base64.b64encode(b"x" * 32), 0o600, "whsec_ and base64"),
        (b"whsec_???", 0o600, "whsec_ and base64"),
        (None, 0o600, "can't be read"),
    ],
)
def test_a_webhook_secret_that_is_none(
    tmp_path: Path, content: bytes | None, mode: int, message: str
) -> None:
    path = tmp_path / "webhook.secret"
    if content is not None:
        path.write_bytes(content)
        path.chmod(mode)
    settings = WebhookSettings(name="ops", url="https://hooks.example/x", secret_file=path)
    with pytest.raises(ConfigError, match=message):
        SentWebhook(settings)


async def test_a_secret_that_cannot_be_used_stops_the_start(tmp_path: Path) -> None:
    world = with_webhook(tmp_path, "https://hooks.example/x", tmp_path / "missing")
    with pytest.raises(ConfigError, match="can't be read"):
        async with serving(world):
            raise AssertionError("it started")

"""Notices by mail: plain text, with facts first and what the asking side wrote below, marked.

``email.message`` refuses line breaks in headers, and no header holds anything that a caller wrote.
smtplib blocks, so it has a thread for the time that a delivery takes.
"""

from __future__ import annotations

import asyncio
import smtplib
import ssl
from datetime import UTC, datetime
from email.message import EmailMessage
from email.policy import SMTP
from email.utils import format_datetime
from pathlib import Path
from typing import Any

from valetkey.broker.approval_settings import EmailSettings
from valetkey.broker.notify.courier import Undelivered
from valetkey.broker.store.notices import Notice
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.plain_text import plain
from valetkey.contracts.secret import Secret
from valetkey.contracts.trusted_roots import TrustedRoots


class Email:
    """One mail server with its recipients. Raises `ConfigError` for files that can't be used."""

    def __init__(self, settings: EmailSettings) -> None:
        self.name = settings.name
        self._settings = settings
        self._password = (
            None if settings.password_file is None else _password(settings.password_file)
        )
        self._roots: TrustedRoots | None = None
        if settings.security != "none":
            self._roots = TrustedRoots(f"notices {settings.name}: ca_file", settings.ca_file)

    async def deliver(self, notice: Notice, *, now: float) -> None:
        """One attempt. Raises `Undelivered`."""
        message = self._message(notice, now)
        try:
            await asyncio.to_thread(self._send, message)
        except (smtplib.SMTPException, OSError, ssl.SSLError) as error:
            # What the server says may quote addresses or more; its type says enough.
            raise Undelivered(type(error).__name__) from error

    def _message(self, notice: Notice, now: float) -> EmailMessage:
        data = notice.body["data"]
        message = EmailMessage(policy=SMTP)
        message["From"] = self._settings.sender
        message["To"] = ", ".join(self._settings.recipients)
        message["Subject"] = f"[valetkey] {notice.body['type']}: {data['id']}"
        message["Date"] = format_datetime(datetime.fromtimestamp(now, UTC))
        # The same in every attempt, so that mail programs show repeats as one.
        message["Message-ID"] = f"<{notice.id}@{self._settings.sender.rpartition('@')[2]}>"
        message["Auto-Submitted"] = "auto-generated"  # RFC 3834 §5
        message.set_content(text_of(notice.body))
        return message

    def _send(self, message: EmailMessage) -> None:
        settings = self._settings
        timeout = float(settings.timeout)
        context = None
        if self._roots is not None:
            self._roots.refresh()
            context = self._roots.context
        server: smtplib.SMTP
        if settings.security == "tls":
            server = smtplib.SMTP_SSL(
                settings.host, settings.port, timeout=timeout, context=context
            )
        else:
            server = smtplib.SMTP(settings.host, settings.port, timeout=timeout)
        with server:
            if settings.security == "starttls":
                server.starttls(context=context)
            if settings.username is not None and self._password is not None:
                server.login(settings.username, self._password.reveal())
            server.send_message(message)


def text_of(body: dict[str, Any]) -> str:
    """The text of a mail."""
    data = body["data"]
    request = data["request"]
    lines = [
        f"{body['type']} at {body['timestamp']}",
        "",
        f"id          {data['id']}",
        f"workload    {_who(request['workload'])}",
    ]
    if request["subject"] != request["workload"]:
        lines.append(f"acting for  {_who(request['subject'])}")
    lines += [
        f"target      {request['target']} ({request['audience']})",
        f"scopes      {' '.join(request['scopes'])}",
    ]
    for detail in request["authorization_details"]:
        lines.append(f"call        {' '.join(detail['actions'])} {detail['path']}")
    lines += [
        f"approvers   {data['requires']['quorum']}",
        f"state       {data['state']}",
    ]
    if "link" in data:
        lines.append(f"look at     {data['link']}")
    lines.append(f"or          valetkey approvals show {data['id']}")
    purpose = data["untrusted"]["purpose"]
    if purpose:
        lines += ["", "UNTRUSTED, written by the side that asks:", f"> {purpose}"]
    return "\n".join(plain(line) for line in lines) + "\n"


def _who(party: dict[str, str]) -> str:
    return f"{party['subject']} of {party.get('issuer', 'any issuer')}"


def _password(path: Path) -> Secret:
    try:
        return Secret(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: password can't be read") from error

"""``valetkey approvals``: what is before people, and their decisions.

What the asking side wrote is shown last, marked, with every character escaped that a terminal would
obey or that turns the direction of text.
"""

from __future__ import annotations

from typing import Any, Final

import click

from valetkey.cli.group import Commands
from valetkey.cli.remote import Remote, broker_options
from valetkey.contracts.plain_text import plain

_PATH: Final = "/v1/approvals"
_STATES: Final = ("pending", "approved", "denied", "expired", "used", "ended", "revoked")


@click.group(cls=Commands)
def approvals() -> None:
    """What waits for a person to say yes, and saying it."""


@approvals.command("list")
@broker_options
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="How many of the newest.")
def list_(remote: Remote, state: str | None, limit: int) -> None:
    """List approvals, the newest first."""
    found = remote.pages(_PATH, limit=limit, state=state)
    if remote.as_json:
        remote.show(found, ())
        return
    columns = ("id", "state", "workload", "for", "target", "scopes", "call", "expires_at")
    remote.show([_row(document) for document in found], columns)


@approvals.command()
@broker_options
@click.argument("approval")
def show(remote: Remote, approval: str) -> None:
    """Show an APPROVAL: who asks for what, who has decided, and what the agent says of it."""
    document = remote.get(f"{_PATH}/{_id(approval)}")
    if remote.as_json:
        remote.show(document, ())
    else:
        click.echo(text_of(document), nl=False)


@approvals.command()
@broker_options
@click.argument("approval")
@click.option("--reason", required=True, help="Why: it goes on record.")
@click.option("--uses", type=click.IntRange(1, 10_000), help="How often it may be used.")
@click.option("--until", metavar="TIME", help="Until when, as in 2026-11-24T10:15:00Z.")
def approve(
    remote: Remote, approval: str, reason: str, uses: int | None, until: str | None
) -> None:
    """Say yes to an APPROVAL: for one use, or for --uses of them; --until alone for any number."""
    document: dict[str, Any] = {"reason": reason}
    document |= {"uses": uses} if uses is not None else {}
    document |= {"until": until} if until is not None else {}
    _decided(remote, remote.post(f"{_PATH}/{_id(approval)}/approve", document))


@approvals.command()
@broker_options
@click.argument("approval")
@click.option("--reason", required=True, help="Why: it goes on record.")
def deny(remote: Remote, approval: str, reason: str) -> None:
    """Say no to an APPROVAL, which ends it."""
    _decided(remote, remote.post(f"{_PATH}/{_id(approval)}/deny", {"reason": reason}))


@approvals.command()
@broker_options
@click.argument("approval")
@click.option("--reason", required=True, help="Why: it goes on record.")
def revoke(remote: Remote, approval: str, reason: str) -> None:
    """Take back an APPROVAL: the uses that are left."""
    _decided(remote, remote.post(f"{_PATH}/{_id(approval)}/revoke", {"reason": reason}))


def text_of(document: dict[str, Any]) -> str:
    """An approval as lines for a terminal."""
    request, requires = document["request"], document["requires"]
    lines = [
        ("id", document["id"]),
        ("state", document["state"]),
        ("workload", _who(request["workload"])),
    ]
    if request["subject"] != request["workload"]:
        lines.append(("acting for", _who(request["subject"])))
    lines += [("through", _who(actor)) for actor in request["actors"][1:]]
    lines += [
        ("target", f"{request['target']} ({request['audience']})"),
        ("scopes", " ".join(request["scopes"])),
    ]
    lines += [("call", _call(detail)) for detail in request["authorization_details"]]
    lines += [
        ("asked for by", ", ".join(requires["asked_for_by"])),
        ("approvers", _approvers(requires)),
        ("opened", document["opened_at"]),
        ("waits until", document["expires_at"]),
    ]
    lines += [("vote", _vote(vote)) for vote in document["votes"]]
    if "until" in document:
        left = document["uses_left"]
        lines.append(("uses left", "any number" if left is None else str(left)))
        lines.append(("usable until", document["until"]))
    text = "".join(f"{name:<13} {plain(value)}\n" for name, value in lines)
    purpose = document["untrusted"]["purpose"]
    if purpose:
        text += f"\nUNTRUSTED, written by the side that asks:\n> {plain(purpose)}\n"
    return text


def _row(document: dict[str, Any]) -> dict[str, Any]:
    request = document["request"]
    calls = [_call(detail) for detail in request["authorization_details"]]
    row = {
        "id": document["id"],
        "state": document["state"],
        "workload": request["workload"]["subject"],
        "target": request["target"],
        "scopes": " ".join(request["scopes"]),
        "call": ", ".join(calls),
        "expires_at": document["expires_at"],
    }
    if request["subject"] != request["workload"]:
        row["for"] = request["subject"]["subject"]
    return row


def _decided(remote: Remote, document: dict[str, Any]) -> None:
    if remote.as_json:
        remote.show(document, ())
        return
    missing = document["requires"]["quorum"] - sum(vote["approves"] for vote in document["votes"])
    more = f": {missing} more must approve" if document["state"] == "pending" else ""
    click.echo(f"{plain(document['id'])} is {document['state']}{more}")


def _call(detail: dict[str, Any]) -> str:
    call = f"{' '.join(detail['actions'])} {detail['path']}"
    mcp = detail.get("mcp")
    if mcp is None:
        return call
    return f"{call} [{', '.join((*mcp['methods'], *mcp.get('tools', ())))}]"


def _approvers(requires: dict[str, Any]) -> str:
    text = str(requires["quorum"])
    for each in requires["one_of_each"]:
        names = [f"role {name}" for name in each["roles"]]
        names += [f"group {name}" for name in each["groups"]]
        text += f", with {' or '.join(names)}"
    return text


def _vote(vote: dict[str, Any]) -> str:
    said = "yes" if vote["approves"] else "no"
    return f"{said}, {_who(vote['approver'])}: {vote['reason']}"


def _who(party: dict[str, str]) -> str:
    return f"{party['subject']} of {party.get('issuer', 'an issuer that its token did not name')}"


def _id(approval: str) -> str:
    """An id goes into a path: nothing else may."""
    if not approval.replace("_", "").replace("-", "").isalnum() or not approval.isascii():
        raise click.BadParameter("not the id of an approval", param_hint="APPROVAL")
    return approval

"""``valetkey incidents``: something leaked. Open an incident, watch it, close it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click

from valetkey.cli.fail import fail
from valetkey.cli.group import Commands
from valetkey.cli.remote import Document, Remote, broker_options

_PATH: Final = "/v1/incidents"
_STDIN: Final = "-"
# More than any token.
_MAX_TOKEN: Final = 64 << 10
_COLUMNS: Final = ("id", "state", "about", "attested", "opened_at", "reason")
_SHOWN: Final = (
    "id",
    "state",
    "about",
    "reason",
    "evidence",
    "source",
    "opened_at",
    "opened_by",
    "renewed_at",
    "subject",
    "containment",
    "pending",
    "tokens_expire_by",
    "rotations",
    "closed_at",
    "closed_by",
    "close_reason",
    "forced",
)


@click.group(cls=Commands)
def incidents() -> None:
    """Something leaked: stop it everywhere, and see how far that is."""


@incidents.command("open")
@broker_options
@click.option("--subject", metavar="SUB", help="A workload or user, with --issuer.")
@click.option("--issuer", metavar="ISS", help="The issuer that knows the subject.")
@click.option(
    "--token-from",
    metavar="FILE",
    type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path),
    help="A file with the token that leaked; - reads it from standard input.",
)
@click.option("--token-hash", metavar="HASH", help="The token's SHA-256, hex or base64url.")
@click.option("--grant", metavar="ID", help="A grant: nobody gets tokens under it meanwhile.")
@click.option("--key", metavar="THUMBPRINT", help="A proof key, or a signing key of the broker's.")
@click.option("--target", metavar="NAME", help="A target: nobody gets tokens for it meanwhile.")
@click.option("--reason", required=True, help="What happened.")
@click.option("--evidence", default="", help="Where it was seen: a URL, a ticket.")
def open_(
    remote: Remote,
    subject: str | None,
    issuer: str | None,
    token_from: Path | None,
    reason: str,
    evidence: str,
    **named: str | None,
) -> None:
    """Open an incident about exactly one thing. A token is never given on the command line."""
    body: dict[str, Any] = {"reason": reason, "evidence": evidence}
    body |= {name: value for name, value in named.items() if value is not None}
    if (subject is None) != (issuer is None):
        fail("--subject and --issuer come together")
    if subject is not None:
        body["subject"] = {"issuer": issuer, "subject": subject}
    if token_from is not None:
        body["token"] = _token(token_from)
    _show(remote, remote.post(_PATH, body))


@incidents.command("list")
@broker_options
@click.option("--state", type=click.Choice(["open", "closed", "all"]), default="open")
@click.option("--limit", type=click.IntRange(1, 10_000), default=50, help="How many of the last.")
def list_(remote: Remote, state: str, limit: int) -> None:
    """List incidents, the newest first."""
    found = remote.pages(_PATH, limit=limit, state=state)
    remote.show([_row(incident) for incident in found] if not remote.as_json else found, _COLUMNS)


@incidents.command()
@broker_options
@click.argument("incident")
def show(remote: Remote, incident: str) -> None:
    """Show how far an incident is: sidecars, attestation, rotations."""
    _show(remote, remote.get(f"{_PATH}/{quote(incident, safe='')}"))


@incidents.command()
@broker_options
@click.argument("incident")
@click.option("--reason", required=True, help="Why it is over.")
@click.option("--force", is_flag=True, help="Although its subject has not attested itself since.")
def close(remote: Remote, incident: str, reason: str, force: bool) -> None:
    """Close an incident whose subject has attested itself since."""
    _show(
        remote,
        remote.post(
            f"{_PATH}/{quote(incident, safe='')}/close", {"reason": reason, "force": force}
        ),
    )


def _token(path: Path) -> str:
    try:
        if str(path) == _STDIN:
            text = sys.stdin.read(_MAX_TOKEN + 1)
        else:
            with path.open(encoding="utf-8") as file:
                text = file.read(_MAX_TOKEN + 1)
    except (OSError, UnicodeDecodeError):
        fail("--token-from: can't be read as text")
    token = text.strip()
    if not token or len(text) > _MAX_TOKEN:
        fail("--token-from: empty, or longer than any token")
    return token


def _show(remote: Remote, incident: Document) -> None:
    remote.show(incident if remote.as_json else _lines(incident), _SHOWN)


def _about(incident: Document) -> str:
    about = incident["about"]
    issuer = f" of {about['issuer']}" if "issuer" in about else ""
    return f"{about['kind']} {about['value']}{issuer}"


def _row(incident: Document) -> Document:
    subject = incident.get("subject")
    attested = "" if subject is None else subject["attested_at"] or "not yet"
    return {**incident, "about": _about(incident), "attested": attested}


def _lines(incident: Document) -> Document:
    """One incident, for a person to read."""
    containment = incident["containment"]
    waiting = [one["subject"] for one in containment["sidecars"] if not one["acknowledged_at"]]
    acknowledged = len(containment["sidecars"]) - len(waiting)
    lines: Document = {**incident, "about": _about(incident)}
    lines["containment"] = f"{acknowledged} of {len(containment['sidecars'])} sidecars" + (
        f", in {containment['seconds']} s" if containment["seconds"] is not None else ""
    )
    if waiting:
        lines["pending"] = ", ".join(waiting)
    lines["tokens_expire_by"] = containment["tokens_expire_by"]
    subject = incident.get("subject")
    if subject is not None:
        attested = subject["attested_at"]
        lines["subject"] = f"{subject['subject']} of {subject['issuer']}, " + (
            f"attested anew at {attested}" if attested else "has not attested itself anew"
        )
    rotations = incident["rotations"]
    lines["rotations"] = "; ".join(
        f"{one['issuer']}: {one['state']} {one['detail']}".strip() for one in rotations
    )
    return {name: value for name, value in lines.items() if value != ""}

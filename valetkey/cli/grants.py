"""``valetkey grants``: who may have what, until when; giving it and taking it back."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

import click
import msgspec

from valetkey.cli.fail import fail
from valetkey.cli.group import Commands
from valetkey.cli.remote import Document, Remote, broker_options
from valetkey.contracts.errors import ConfigError
from valetkey.contracts.settings import Duration, convert, parse_yaml

_PATH: Final = "/v1/grants"
_STATES: Final = ("active", "pending", "used_up", "expired", "revoked")
_COLUMNS: Final = ("id", "source", "state", "workload", "target", "scopes", "not_after", "reason")
_LINES: Final = (
    "id", "source", "state", "unusable", "workload", "issuer", "target", "scopes", "on_behalf_of",
    "conditions", "approval", "ttl", "use", "window", "not_before", "not_after", "max_uses", "uses",
    "reason", "ticket", "owner", "created_at", "created_by", "created_by_issuer", "revoked_at",
    "revoked_by", "revoked_by_issuer", "revoked_reason",
)  # fmt: skip
_FILE: Final = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=Commands)
def grants() -> None:
    """Who may have what, until when; giving it, and taking it back."""


@grants.command("list")
@broker_options
@click.option("--workload", help="Only those that mean this workload, patterns included.")
@click.option("--target", help="Only those for this target.")
@click.option("--state", type=click.Choice(_STATES), help="Only those in this state.")
@click.option("--limit", type=click.IntRange(1, 100_000), help="At most so many.")
def list_(
    remote: Remote,
    workload: str | None,
    target: str | None,
    state: str | None,
    limit: int | None,
) -> None:
    """List grants, of the file and made by API, in the order of their ids."""
    found = remote.pages(_PATH, limit=limit, workload=workload, target=target, state=state)
    remote.show(found, _COLUMNS)


@grants.command()
@broker_options
@click.argument("grant")
def show(remote: Remote, grant: str) -> None:
    """Show a GRANT: all it says, who made it and why."""
    remote.show(remote.get(f"{_PATH}/{quote(grant, safe='')}"), _LINES)


@grants.command()
@broker_options
@click.option("--file", type=_FILE, help="The grant in YAML, as one of the grants file.")
@click.option("--id", "grant_id", help="Its id; without, one is made up.")
@click.option("--workload", help="The subject of the workload's token.")
@click.option("--issuer", help="The issuer of that token.")
@click.option("--target", help="The target's name in the broker's settings.")
@click.option("--scope", "scopes", multiple=True, help="A scope; repeat for more.")
@click.option("--for-users", is_flag=True, help="The workload may also act for users.")
@click.option("--ttl", help="The longest life of its tokens, as in 60s.")
@click.option("--not-before", metavar="TIME", help="From when on, as in 2026-11-29T20:00:00Z.")
@click.option("--not-after", metavar="TIME", help="Until when.")
@click.option("--for", "lasts", metavar="DURATION", help="Until so long from now, as in 2h.")
@click.option("--max-uses", type=click.IntRange(1), help="How many tokens.")
@click.option("--reason", help="Why: it goes on record.")
@click.option("--ticket", help="The ticket that it is for.")
@click.option("--owner", help="Who answers for it.")
def create(
    remote: Remote,
    file: Path | None,
    grant_id: str | None,
    scopes: tuple[str, ...],
    for_users: bool,
    lasts: str | None,
    **fields: str | int | None,
) -> None:
    """Make a grant: from a --file, from options, or from a file with options over it."""
    document = {} if file is None else _read(file)
    document |= {name: value for name, value in fields.items() if value is not None}
    if scopes:
        document["scopes"] = list(scopes)
    if for_users:
        document["on_behalf_of"] = "users"
    if lasts is not None:
        document["not_after"] = _after(lasts)
    if grant_id is not None:
        document["id"] = grant_id
    # Made up here and not by the broker: a command that is repeated by itself stays one grant.
    document.setdefault("id", f"jit-{secrets.token_hex(6)}")
    remote.show(remote.post(_PATH, document), _LINES)


@grants.command()
@broker_options
@click.argument("grant")
@click.option("--reason", required=True, help="Why: it goes on record.")
def revoke(remote: Remote, grant: str, reason: str) -> None:
    """Take a GRANT back; the tokens that rest on it end too."""
    ended = remote.post(f"{_PATH}/{quote(grant, safe='')}/revoke", {"reason": reason})
    remote.show(ended, ("id", "state", "revoked_at", "revoked_by", "revoked_reason"))


def _read(file: Path) -> Document:
    """One grant as plain data; the broker says what is wrong with it."""
    try:
        document = parse_yaml(file.read_text(encoding="utf-8"), str(file))
    except ConfigError as error:
        fail(str(error))
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{file}: can't be read: {error}")
    if not isinstance(document, dict) or "grants" in document:
        fail(f"{file}: write one grant, as an element of the grants file's list")
    return {name: _plain(value) for name, value in document.items()}


def _plain(value: Any) -> Any:
    """YAML reads times as times, JSON has them as text."""
    return value.isoformat() if isinstance(value, datetime) else value


def _after(lasts: str) -> str:
    try:
        until = datetime.now(UTC) + timedelta(seconds=convert(Duration, lasts))
    except msgspec.ValidationError:
        fail(f"--for {lasts}: a duration with a unit is meant, such as 30m or 2h")
    except OverflowError:
        fail(f"--for {lasts}: beyond any calendar")
    return until.isoformat(timespec="seconds")

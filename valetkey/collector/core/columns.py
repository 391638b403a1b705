"""What of an event can be asked for: the few members that the store keeps beside the bytes.

The sidecar writes OCSF API Activity, where members may be missing (a call denied before a route
matched has none). Whatever isn't of the expected kind counts as missing: the bytes are the
record, the columns only find it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from valetkey.contracts import events
from valetkey.contracts.times import from_rfc3339

# Longer values are cut: they are no names of ours, and an index entry has to fit a page.
_MAX_TEXT: Final = 256
# A sidecar lists as many as fit into an outcome, which are fewer.
_MAX_CREDENTIALS: Final = 32
NAMES: Final = ("jti", "txn", "approval")
"""What calls can be looked for by."""
_DECISIONS: Final = {
    events.OCSF_ACTION_ALLOWED: "allowed",
    events.OCSF_ACTION_DENIED: "denied",
}


class Columns(msgspec.Struct, frozen=True, gc=False):
    """``answers`` is, for an outcome, the sequence number of its decision (same boot), else 0.

    ``time`` is the sidecar's, in ms since the epoch, 0 where it is none. ``jti``, ``txn`` and
    ``approval`` are those of the credential that a decision rests on (``approval`` also one that
    it needs); ``more`` are those that an outcome names because the call went on with another one:
    each as kind and value between line feeds. `names` looks in both.
    """

    type: str
    workload: str
    route: str
    target: str
    decision: str
    code: str
    answers: int
    time: int
    jti: str
    txn: str
    approval: str
    more: str


def extract(type_: str, boot: str, time: str, data: dict[str, Any]) -> Columns:
    """The columns of one event: of its ``type``, ``boot``, ``time`` and ``data``."""
    unmapped = _object(data, "unmapped")
    action = data.get("action_id")
    return Columns(
        type_[:_MAX_TEXT],
        _text(_object(data, "actor"), "app_uid"),
        _text(_object(data, "policy"), "uid"),
        _text(_object(_object(data, "api"), "service"), "name"),
        _DECISIONS.get(action, "") if type(action) is int else "",
        _text(unmapped, "code"),
        _answers(unmapped.get("decision"), boot) if type_ == events.TYPE_OUTCOME else 0,
        _milliseconds(time),
        _text(unmapped, "jti"),
        _text(unmapped, "txn"),
        _text(unmapped, "approval"),
        _more(unmapped),
    )


def names(found: Columns, kind: str, value: str) -> bool:
    """Whether the event names that ``kind`` (of `NAMES`) of thing."""
    return bool(value) and (getattr(found, kind) == value or named(kind, value) in found.more)


def named(kind: str, value: str) -> str:
    """How it stands in ``more``."""
    return f"\n{kind} {value}\n"


def _more(unmapped: dict[str, Any]) -> str:
    listed = unmapped.get("credentials")
    credentials = listed[:_MAX_CREDENTIALS] if isinstance(listed, list) else []
    credentials.append(_object(unmapped, "stream"))  # its `jti` is that of the last one
    found = {
        f"{kind} {value}": None
        for credential in credentials
        if isinstance(credential, dict)
        for kind in NAMES
        if (value := _text(credential, kind)) and "\n" not in value
    }
    return "\n" + "\n".join(found) + "\n" if found else ""


def milliseconds(time: str) -> int:
    """RFC 3339 as ms since the epoch. Raises `ValueError`."""
    return round(from_rfc3339(time) * 1000)


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _text(parent: dict[str, Any], name: str) -> str:
    value = parent.get(name)
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _milliseconds(time: str) -> int:
    try:
        return milliseconds(time)
    except ValueError:
        return 0


def _answers(decision: object, boot: str) -> int:
    if not isinstance(decision, str):
        return 0
    of_boot, _, seq = decision.partition("-")
    digits = seq.isascii() and seq.isdigit() and len(seq) <= 18
    return int(seq) if of_boot == boot and digits else 0

"""What of an event can be asked for: the few members that the store keeps beside the bytes.

The sidecar writes OCSF API Activity, where members may be missing (a call denied before a route
matched has none). Whatever isn't of the expected kind counts as missing: the bytes are the
record, the columns only find it.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from valetkey.contracts import events

# Longer values are cut: they are no names of ours, and an index entry has to fit a page.
_MAX_TEXT: Final = 256
_DECISIONS: Final = {
    events.OCSF_ACTION_ALLOWED: "allowed",
    events.OCSF_ACTION_DENIED: "denied",
}


class Columns(msgspec.Struct, frozen=True, gc=False):
    """``answers`` is, for an outcome, the sequence number of its decision (same boot), else 0."""

    type: str
    workload: str
    route: str
    target: str
    decision: str
    code: str
    answers: int


def extract(type_: str, boot: str, data: dict[str, Any]) -> Columns:
    """The columns of one event."""
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
    )


def _object(parent: dict[str, Any], name: str) -> dict[str, Any]:
    value = parent.get(name)
    return value if isinstance(value, dict) else {}


def _text(parent: dict[str, Any], name: str) -> str:
    value = parent.get(name)
    return value[:_MAX_TEXT] if isinstance(value, str) else ""


def _answers(decision: object, boot: str) -> int:
    if not isinstance(decision, str):
        return 0
    of_boot, _, seq = decision.partition("-")
    digits = seq.isascii() and seq.isdigit() and len(seq) <= 18
    return int(seq) if of_boot == boot and digits else 0

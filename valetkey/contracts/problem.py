"""RFC 9457 problem details: the one place that turns a code into bytes for a caller.

The caller gets the code, its help and, where it exists, an identifier to ask about. The reason
in full (which claim, which grant, which file) goes to the record and the log only.
"""

from __future__ import annotations

from typing import Final

import msgspec

from valetkey.contracts.codes import Code

CONTENT_TYPE: Final = "application/problem+json"

# Relative so that the document names no host that we do not own (RFC 9457 §3.1.1 allows it).
_TYPE_PREFIX: Final = "/docs/codes#"


def render(code: Code, *, instance: str = "", reason: str = "", approval: str = "") -> bytes:
    """The ``application/problem+json`` body for ``code``.

    ``instance`` identifies the occurrence (RFC 9457 §3.1.5): the id of its decision event.
    ``reason`` is for administrators only: what is wrong with what they sent. ``approval`` is the id
    of what people have to approve.
    """
    document: dict[str, object] = {
        "type": _TYPE_PREFIX + code.name,
        "title": code.name.replace(".", ": ").replace("_", " "),
        "status": code.status,
        "code": code.name,
        "detail": code.help,
    }
    if instance:
        document["instance"] = instance
    if approval:
        document["approval"] = approval
    if reason:
        document["reason"] = reason
    return msgspec.json.encode(document)

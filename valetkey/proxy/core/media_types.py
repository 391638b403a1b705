"""Content-Type and Content-Encoding of what is read here: JSON or an event stream, in UTF-8.

A type that some reader may take for one of these, and another in another way, is neither.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final

# RFC 9110 §8.3.1: type and parameter names without case, the value quoted or not.
_UTF8: Final = rb'[ \t]*(?:;[ \t]*charset=("?)utf-8\1[ \t]*)?'
_JSON: Final = re.compile(rb"[ \t]*application/json" + _UTF8, re.IGNORECASE)
_EVENT_STREAM: Final = re.compile(rb"[ \t]*text/event-stream" + _UTF8, re.IGNORECASE)
# Clients look for the beginning, or for the type anywhere.
_MESSAGES: Final = re.compile(rb"json|event-stream", re.IGNORECASE)


def is_json(types: Sequence[bytes]) -> bool:
    """Whether this is JSON in UTF-8. ``types`` are the values of all Content-Type fields."""
    return len(types) == 1 and _JSON.fullmatch(types[0]) is not None


def is_event_stream(types: Sequence[bytes]) -> bool:
    """Whether this is an event stream (WHATWG HTML §9.2.5: always in UTF-8)."""
    return len(types) == 1 and _EVENT_STREAM.fullmatch(types[0]) is not None


def may_hold_messages(types: Sequence[bytes]) -> bool:
    """Whether some reader could take this for JSON or an event stream."""
    return any(_MESSAGES.search(value) is not None for value in types)


def is_plain(codings: Sequence[bytes]) -> bool:
    """Whether there is no content coding. ``codings`` are all Content-Encoding fields."""
    return not codings or (len(codings) == 1 and codings[0].strip().lower() == b"identity")

"""One JSON-RPC 2.0 message of MCP: what it asks for, read so that nobody can read it otherwise.

The sidecar decides on the method and, of ``tools/call``, on the tool. The body goes on byte for
byte, so the target must find the same two in it, whatever it reads with. What some reader takes
differently is refused (`strict_json`), and beside that: members that a reader which does not mind
case would take for ours, messages that are request and response at once, batches, and headers
that name another method or tool than the body does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from typing import Any, Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.contracts.mcp import METHOD_RESPONSE, METHOD_TOOLS_CALL, NameInvalid, check_name
from valetkey.proxy.core.media_types import is_json, is_plain
from valetkey.proxy.core.strict_json import NotStrict, read_strict

# JSON-RPC 2.0 §4 and §5.
_MEMBERS: Final = frozenset({"jsonrpc", "id", "method", "params", "result", "error"})
# MCP 2026-07-28, basic/transports/streamable-http, "Standard Request Headers": what Mcp-Name
# mirrors. Of other methods it may mirror something else, which nothing here depends on.
_MIRRORED: Final = {METHOD_TOOLS_CALL: "name", "prompts/get": "name", "resources/read": "uri"}
_SENTINEL: Final = ("=?base64?", "?=")


class Message:
    """A message: its method, and the tool if it calls one (otherwise empty).

    A response to a request of the server has the method `METHOD_RESPONSE`. ``mirror`` is what the
    header Mcp-Name has to say, ``None`` if it may say anything.
    """

    __slots__ = ("method", "mirror", "tool")

    def __init__(self, method: str, tool: str = "", mirror: str | None = None) -> None:
        self.method = method
        self.tool = tool
        self.mirror = mirror


def check_media_type(types: Sequence[bytes], codings: Sequence[bytes]) -> None:
    """Refuse a body that is not plainly JSON in UTF-8. Raises `CallerError`.

    ``types`` and ``codings`` are the values of all Content-Type and Content-Encoding fields.
    """
    if not is_json(types):
        raise CallerError(codes.MCP_MEDIA_TYPE, "Content-Type is not application/json in UTF-8")
    if not is_plain(codings):
        raise CallerError(codes.MCP_MEDIA_TYPE, "the body has a content coding")


def check_size(size: int, limit: int) -> None:
    """Refuse a body of more than ``limit`` bytes. Raises `CallerError`."""
    if size > limit:
        raise CallerError(codes.REQUEST_BODY_TOO_LARGE, "more than limits.message")


def read_message(raw: bytes) -> Message:
    """The message in a body. Raises `CallerError`; its reason holds nothing of the body."""
    try:
        value = read_strict(raw)
    except NotStrict as error:
        raise _malformed(str(error)) from error
    if isinstance(value, list):
        # MCP 2025-06-18 took batches out; a server that still reads them would carry out many
        # calls on one decision.
        raise CallerError(codes.MCP_BATCH, "an array at the top")
    if not isinstance(value, dict):
        raise _malformed("not an object")
    _check_members(value, _MEMBERS)
    if value.get("jsonrpc") != "2.0":
        raise _malformed("jsonrpc is not 2.0")
    if "method" not in value:
        return _response(value)
    if "result" in value or "error" in value:
        raise _malformed("request and response at once")
    method = _name(value["method"], "method")
    if method == METHOD_RESPONSE:
        raise _malformed(f"{METHOD_RESPONSE} is no method")
    if "id" in value and not _is_id(value["id"]):
        # MCP, basic: a string or an integer, and not null; with null, some take it for a
        # notification and others do not.
        raise _malformed("id is neither a string nor an integer")
    params = value.get("params", {})
    if not isinstance(params, dict | list):  # JSON-RPC 2.0 §4.2
        raise _malformed("params is neither an object nor an array")
    return _request(method, params)


def check_mirrors(message: Message, methods: Sequence[bytes], names: Sequence[bytes]) -> None:
    """Refuse headers that contradict the body. Raises `CallerError`.

    ``methods`` and ``names`` are the values of all Mcp-Method and Mcp-Name fields. Whatever
    routes or limits by them behind us would act on something that was not decided on (MCP
    2026-07-28, basic/transports/streamable-http, "Server Validation").
    """
    if len(methods) > 1 or len(names) > 1:
        raise CallerError(codes.MCP_HEADER_MISMATCH, "Mcp-Method or Mcp-Name more than once")
    if methods and methods[0].decode("latin-1").strip() != message.method:
        raise CallerError(codes.MCP_HEADER_MISMATCH, "Mcp-Method is not the body's method")
    if names and message.mirror is not None and _decoded(names[0]) != message.mirror:
        raise CallerError(codes.MCP_HEADER_MISMATCH, "Mcp-Name is not the body's name")


def _response(value: Mapping[str, Any]) -> Message:
    """JSON-RPC 2.0 §5: result or error, never both; only an error may be without an id."""
    if ("result" in value) == ("error" in value) or "params" in value:
        raise _malformed("neither a request nor a response")
    identifier = value.get("id")
    if not _is_id(identifier) and not (identifier is None and "error" in value):
        raise _malformed("a response without an id")
    return Message(METHOD_RESPONSE)


def _request(method: str, params: Any) -> Message:
    if method.casefold() == METHOD_TOOLS_CALL and method != METHOD_TOOLS_CALL:
        raise _malformed("tools/call in another case")
    member = _MIRRORED.get(method)
    if member is None:
        return Message(method)
    if not isinstance(params, dict):
        raise _malformed("params is not an object")
    _check_members(params, frozenset({member}))
    text = params.get(member)
    if method != METHOD_TOOLS_CALL:
        return Message(method, mirror=text if isinstance(text, str) else "")
    tool = _name(text, "params.name")
    return Message(method, tool, mirror=tool)


def _check_members(value: Mapping[str, Any], known: frozenset[str]) -> None:
    """Refuse members that some readers would take for one of ``known``.

    Go's encoding/json and others compare names without case, in Unicode; readers in C can take
    NUL for the end.
    """
    for name in value:
        if name not in known and name.partition("\0")[0].strip().casefold() in known:
            raise _malformed("a member whose name differs from a known one by case or controls")


def _name(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise _malformed(f"{what} is not a string")
    try:
        return check_name(value)
    except NameInvalid as error:
        raise _malformed(f"{what}: {error}") from error


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) and not isinstance(value, bool)


def _decoded(header: bytes) -> str | None:
    """The value of Mcp-Name ("Value Encoding"); ``None`` for an encoding that does not hold."""
    text = header.decode("latin-1").strip(" \t")
    before, after = _SENTINEL
    if not (text.startswith(before) and text.endswith(after) and len(text) >= len(before + after)):
        return text
    encoded = text[len(before) : -len(after)].encode("latin-1")
    try:
        decoded = base64.b64decode(encoded, validate=True)
        # Other spellings of the same bytes are for no reader to guess.
        return decoded.decode("utf-8") if base64.b64encode(decoded) == encoded else None
    except (binascii.Error, UnicodeDecodeError):
        return None


def _malformed(reason: str) -> CallerError:
    return CallerError(codes.MCP_MALFORMED, reason)

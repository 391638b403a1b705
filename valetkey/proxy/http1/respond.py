"""What the sidecar itself says on the wire: status lines, problem answers, TLS alerts."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from valetkey.contracts import codes, problem
from valetkey.contracts.codes import Code

_PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_LINES: Final = {
    (code, phrase): b"HTTP/1.1 %d %b\r\n" % (code, phrase) for code, phrase in _PHRASES.items()
}


# What RFC 9110 wants with a status: §15.5.8 a challenge; §15.5.6 the methods that would be taken,
# which here are those that routes can name.
_REQUIRED: Final = {
    407: b'proxy-authenticate: Basic realm="valetkey"\r\n',
    405: b"allow: GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS\r\n",
}


def status_line(status: int, reason: bytes) -> bytes:
    """A status line; the reason is the target's own, or empty."""
    return _LINES.get((status, reason)) or b"HTTP/1.1 %d %b\r\n" % (status, reason)


def problem_answer(
    code: Code, *, instance: str, connection: bytes, head_only: bool, approval: str = ""
) -> bytes:
    """A whole response with the problem for ``code``. ``connection`` is a header line or empty."""
    body = problem.render(code, instance=instance, approval=approval)
    extra = _REQUIRED.get(code.status, b"")
    retry = b"retry-after: %d\r\n" % code.retry_after if code.retry_after is not None else b""
    head = b"%bcontent-type: %b\r\ncache-control: no-store\r\ncontent-length: %d\r\n%b%b%b\r\n" % (
        status_line(code.status, _PHRASES.get(code.status, b"")),
        problem.CONTENT_TYPE.encode(),
        len(body),
        retry,
        extra,
        connection,
    )
    return head if head_only else head + body


# RFC 8446 §6, RFC 6066 §3: AlertDescription.
_ACCESS_DENIED: Final = 49
_DECODE_ERROR: Final = 50
_INTERNAL_ERROR: Final = 80
_UNRECOGNIZED_NAME: Final = 112
_ALERTS: Final = {
    codes.TLS_HELLO_MALFORMED: _DECODE_ERROR,
    codes.REQUEST_TIMEOUT: _DECODE_ERROR,
    codes.TLS_NO_SERVER_NAME: _UNRECOGNIZED_NAME,
    codes.TARGET_NO_MATCH: _UNRECOGNIZED_NAME,
}


def tls_alert(code: Code) -> bytes:
    """A fatal alert for a client whose hello was not answered: all that it could understand."""
    description = _INTERNAL_ERROR if code.status >= 500 else _ALERTS.get(code, _ACCESS_DENIED)
    return b"\x15\x03\x03\x00\x02\x02%c" % description

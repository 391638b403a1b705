"""What the sidecar itself says on the wire: status lines and problem answers."""

from __future__ import annotations

from http import HTTPStatus
from typing import Final

from valetkey.contracts import problem
from valetkey.contracts.codes import Code

_PHRASES: Final = {status.value: status.phrase.encode() for status in HTTPStatus}
_LINES: Final = {
    (code, phrase): b"HTTP/1.1 %d %b\r\n" % (code, phrase) for code, phrase in _PHRASES.items()
}


def status_line(status: int, reason: bytes) -> bytes:
    """A status line; the reason is the target's own, or empty."""
    return _LINES.get((status, reason)) or b"HTTP/1.1 %d %b\r\n" % (status, reason)


def problem_answer(code: Code, *, instance: str, connection: bytes, head_only: bool) -> bytes:
    """A whole response with the problem for ``code``. ``connection`` is a header line or empty."""
    body = problem.render(code, instance=instance)
    extra = b'proxy-authenticate: Basic realm="valetkey"\r\n' if code.status == 407 else b""
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

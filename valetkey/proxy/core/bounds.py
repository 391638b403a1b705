"""What a route takes of a call, where that is less than the sidecar would."""

from __future__ import annotations

from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError

UNBOUNDED: Final = 1 << 62


class Bounds:
    """Most bytes of a head, fields in it, and bytes of a body."""

    __slots__ = ("body_size", "fields", "head_size")

    def __init__(self, *, head_size: int | None, fields: int | None, body_size: int | None) -> None:
        self.head_size = UNBOUNDED if head_size is None else head_size
        self.fields = UNBOUNDED if fields is None else fields
        self.body_size = UNBOUNDED if body_size is None else body_size

    def check(self, *, head_size: int, fields: int, body_size: int) -> None:
        """Refuse a call that is beyond them. Raises `CallerError`.

        ``body_size`` is what is known of it: the length that was announced, or what came so far.
        """
        if head_size > self.head_size:
            raise CallerError(codes.REQUEST_HEAD_TOO_LARGE, "more than the route's head_size")
        if fields > self.fields:
            raise CallerError(codes.REQUEST_TOO_MANY_HEADERS, "more than the route's headers")
        if body_size > self.body_size:
            raise CallerError(codes.REQUEST_BODY_TOO_LARGE, "more than the route's body_size")

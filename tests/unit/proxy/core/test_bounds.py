"""What a route takes of a call: at the bound, and one beyond."""

from __future__ import annotations

from typing import Any

import pytest

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.bounds import Bounds

HEAD, FIELDS, BODY = {"head_size": 100}, {"fields": 5}, {"body_size": 1000}
CALL = {"head_size": 100, "fields": 5, "body_size": 1000}

CASES: list[tuple[dict[str, int], dict[str, int], Any]] = [
    (HEAD | FIELDS | BODY, {}, None),
    (HEAD | FIELDS | BODY, {"head_size": 101}, codes.REQUEST_HEAD_TOO_LARGE),
    (HEAD | FIELDS | BODY, {"fields": 6}, codes.REQUEST_TOO_MANY_HEADERS),
    (HEAD | FIELDS | BODY, {"body_size": 1001}, codes.REQUEST_BODY_TOO_LARGE),
    (FIELDS | BODY, {"head_size": 1 << 20}, None),
    (HEAD | BODY, {"fields": 1000}, None),
    (HEAD | FIELDS, {"body_size": 1 << 40}, None),
    ({"body_size": 0}, {}, codes.REQUEST_BODY_TOO_LARGE),
    ({"body_size": 0}, {"body_size": 0}, None),
    ({}, {"head_size": 1 << 40, "fields": 1 << 40, "body_size": 1 << 60}, None),
]


@pytest.mark.parametrize(("bounds", "call", "code"), CASES)
def test_bounds(bounds: dict[str, int], call: dict[str, int], code: Any) -> None:
    made = Bounds(**{"head_size": None, "fields": None, "body_size": None} | bounds)  # type: ignore[arg-type]
    if code is None:
        made.check(**CALL | call)
        return
    with pytest.raises(CallerError) as refused:
        made.check(**CALL | call)
    assert refused.value.code is code

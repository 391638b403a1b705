"""What a way in fixes for its calls, and what it refuses before anything is decided."""

from __future__ import annotations

import pytest

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.proxy.core.decision import admit
from valetkey.proxy.core.entry import REVERSE, CallerCheck, Entry


class Only:
    """A caller check that knows one value."""

    def admits(self, presented: list[bytes]) -> bool:
        return presented == [b"right"]


FORWARD = Entry(forward=True)
TUNNEL = Entry(origin="https://api.example")
ODD_PORT = Entry(origin="https://api.example:8443")
PLAIN = Entry(origin="http://api.example")
GUARDED = Entry(caller=Only())
LED = Entry(transparent=True, destination=("203.0.113.1", 80))
LED_ODD = Entry(transparent=True, destination=("2001:db8::1", 8080))
LED_TLS = Entry(transparent=True, destination=("203.0.113.1", 443))
DIRECT = Entry(transparent=True)
OWN = Entry(transparent=True, destination=("203.0.113.1", 80), own=True)


def test_only_a_bare_reverse_entry_has_nothing_to_check() -> None:
    check: CallerCheck = Only()
    assert REVERSE.plain
    assert Entry(target="tickets").plain
    assert not any(
        entry.plain for entry in (FORWARD, TUNNEL, PLAIN, LED, DIRECT, Entry(caller=check))
    )


def test_a_destination_fixes_the_port() -> None:
    assert (LED.port, LED_ODD.port, DIRECT.port) == (80, 8080, 0)
    inner = Entry(origin="https://api.example:8443", destination=("203.0.113.1", 8443))
    assert (inner.name, inner.port, inner.transparent) == ("api.example", 8443, False)


def test_an_origin_says_what_host_must_be() -> None:
    assert (TUNNEL.name, TUNNEL.port, TUNNEL.default_port) == ("api.example", 443, 443)
    assert (ODD_PORT.name, ODD_PORT.port) == ("api.example", 8443)
    assert (PLAIN.name, PLAIN.port, PLAIN.default_port) == ("api.example", 80, 80)
    assert Entry(origin="https://[::1]:8443").name == "[::1]"


CALLS = [
    ("reverse takes what comes", REVERSE, [], "", "any", 0, None),
    ("forward, absolute", FORWARD, [], "http://a.example", "a.example", 0, None),
    ("forward, origin-form", FORWARD, [], "", "a.example", 0, codes.REQUEST_NO_ORIGIN),
    ("tunnel", TUNNEL, [], "", "api.example", 0, None),
    ("tunnel, port said", TUNNEL, [], "", "api.example", 443, None),
    ("tunnel, the port of http", TUNNEL, [], "", "api.example", 80, codes.REQUEST_MISDIRECTED),
    ("tunnel, other name", TUNNEL, [], "", "other.example", 0, codes.REQUEST_MISDIRECTED),
    ("tunnel, no Host", TUNNEL, [], "", "", 0, codes.REQUEST_MISDIRECTED),
    ("tunnel, same origin", TUNNEL, [], "https://api.example", "api.example", 0, None),
    ("tunnel, other scheme", TUNNEL, [], "http://api.example", "api.example", 0,
     codes.REQUEST_MISDIRECTED),
    ("odd port", ODD_PORT, [], "", "api.example", 8443, None),
    ("odd port left out", ODD_PORT, [], "", "api.example", 0, codes.REQUEST_MISDIRECTED),
    ("guarded, right", GUARDED, [b"right"], "", "any", 0, None),
    ("guarded, nothing", GUARDED, [], "", "any", 0, codes.CALLER_UNAUTHENTICATED),
    ("redirected", LED, [], "", "any", 0, None),
    ("redirected, port said", LED, [], "", "any", 80, None),
    ("redirected, other port said", LED, [], "", "any", 443, codes.REQUEST_AMBIGUOUS_HOST),
    ("redirected from an odd port", LED_ODD, [], "", "any", 8080, None),
    ("redirected from an odd port, unsaid", LED_ODD, [], "", "any", 0,
     codes.REQUEST_AMBIGUOUS_HOST),
    ("redirected, no Host", LED, [], "", "", 0, codes.REQUEST_AMBIGUOUS_HOST),
    ("redirected, absolute", LED, [], "http://any", "any", 0, None),
    ("redirected, absolute for TLS", LED, [], "https://any:80", "any", 80,
     codes.REQUEST_AMBIGUOUS_HOST),
    ("redirected, a hello", LED_TLS, [], "any:443", "any", 443, None),
    ("not redirected", DIRECT, [], "", "any", 0, codes.REQUEST_NOT_REDIRECTED),
    ("not redirected, a hello", DIRECT, [], "any:7073", "any", 7073, codes.REQUEST_NOT_REDIRECTED),
    ("the sidecar's own", OWN, [], "", "any", 0, codes.REQUEST_LOOP),
    ("guarded, twice", GUARDED, [b"right", b"right"], "", "any", 0, codes.CALLER_UNAUTHENTICATED),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "entry", "presented", "origin", "host", "port", "code"),
    CALLS,
    ids=[c[0] for c in CALLS],
)
def test_admission(
    name: str, entry: Entry, presented: list[bytes], origin: str, host: str, port: int,
    code: Code | None,
) -> None:  # fmt: skip
    deny = admit(entry, presented, origin, host, port)
    assert (deny.code if deny is not None else None) is code

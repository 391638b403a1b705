"""A switch of protocols: what is asked of the target, and which answers are one.

The whole table of requests and answers, on the wire, is tests/integration/test_streams_upgrade.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from valetkey.contracts.errors import CallerError, TargetError
from valetkey.proxy.http1.head_reader import HeadReader
from valetkey.proxy.http1.upgrade import Upgrade

HEADS = HeadReader(max_size=65536, max_fields=100, subject_header="X-User")
KEY, ACCEPT = "dGhlIHNhbXBsZSBub25jZQ==", "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


def asked(*lines, upgrade="websocket", method="GET"):
    raw = [f"{method} / HTTP/1.1", "Host: h", "Connection: upgrade", f"Upgrade: {upgrade}", *lines]
    head = HEADS.request(("\r\n".join(raw) + "\r\n\r\n").encode("latin-1"))
    return Upgrade(head), head


def websocket(*lines):
    upgrade, head = asked(f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", *lines)
    upgrade.prepare(head)
    return upgrade


def answer(*lines, start="HTTP/1.1 101 Switching Protocols"):
    return HEADS.response(("\r\n".join([start, *lines]) + "\r\n\r\n").encode("latin-1"))


GOOD = ("Connection: Upgrade", "Upgrade: WebSocket", f"Sec-WebSocket-Accept: {ACCEPT}")


@pytest.mark.parametrize(
    ("spelled", "protocol"),
    [("websocket", "websocket"), ("WebSocket", "websocket"), ("SPDY/3.1", "spdy/3.1"), ("a, b", "a, b")],
)  # fmt: skip
def test_a_protocol_is_named_in_lower_case(spelled, protocol):
    assert asked(upgrade=spelled)[0].protocol == protocol


def test_a_websocket_handshake_is_written_anew():
    upgrade = websocket(
        "Sec-WebSocket-Protocol: a", "sec_websocket_protocol: bearer.x, b", "Sec-WebSocket-Extensions: x; y=1",
    )  # fmt: skip
    assert upgrade.lines.split(b"\r\n") == [
        b"connection: upgrade",
        b"upgrade: websocket",
        b"sec-websocket-key: " + KEY.encode(),
        b"sec-websocket-version: 13",
        b"sec-websocket-protocol: a, b",
        b"sec-websocket-extensions: x; y=1",
        b"",
    ]
    assert upgrade.dropped
    assert not websocket("Sec-WebSocket-Protocol: a").dropped


def test_another_protocol_s_handshake_is_the_two_lines():
    upgrade, head = asked(f"Sec-WebSocket-Key: {KEY}", upgrade="SPDY/3.1", method="POST")
    upgrade.prepare(head)
    assert upgrade.lines == b"connection: upgrade\r\nupgrade: SPDY/3.1\r\n"


@pytest.mark.parametrize("line", ["Content-Length: 1", "Transfer-Encoding: chunked"])
@pytest.mark.parametrize("upgrade", ["websocket", "spdy/3.1"])
def test_a_body_is_refused(line, upgrade):
    made, head = asked(
        f"Sec-WebSocket-Key: {KEY}", "Sec-WebSocket-Version: 13", line, upgrade=upgrade
    )
    with pytest.raises(CallerError, match="body"):
        made.prepare(head)


def test_a_length_of_nothing_is_no_body():
    made, head = asked("Content-Length: 0", upgrade="spdy/3.1")
    made.prepare(head)


def test_the_answer_for_the_workload_is_written_anew():
    upgrade = websocket("Sec-WebSocket-Protocol: a, b")
    made = upgrade.accepted(
        answer(*GOOD, "Sec-WebSocket-Protocol: b", "Keep-Alive: x", "Server: y", "DPoP-Nonce: z")
    )
    assert made.split(b"\r\n") == [
        b"HTTP/1.1 101 Switching Protocols",
        b"Sec-WebSocket-Accept: " + ACCEPT.encode(),
        b"Sec-WebSocket-Protocol: b",
        b"Server: y",
        b"via: 1.1 valetkey",
        b"connection: upgrade",
        b"upgrade: websocket",
        b"",
    ]


def test_a_subprotocol_that_was_dropped_can_not_be_chosen():
    upgrade = websocket("Sec-WebSocket-Protocol: a, bearer.x")
    with pytest.raises(TargetError, match="not offered"):
        upgrade.accepted(answer(*GOOD, "Sec-WebSocket-Protocol: bearer.x"))


def test_a_target_need_not_choose_a_subprotocol():
    assert websocket("Sec-WebSocket-Protocol: a").accepted(answer(*GOOD))


LINES = st.sampled_from([
    *GOOD, "Connection: close", "Connection: keep-alive, upgrade", "Upgrade: h2c", "Upgrade: websocket",
    "Content-Length: 0", "Transfer-Encoding: chunked", f"Sec-WebSocket-Accept: {KEY}",
    "Sec-WebSocket-Protocol: other", "X-Other: 1",
])  # fmt: skip


@given(st.lists(LINES, max_size=6), st.sampled_from(["HTTP/1.1", "HTTP/1.0"]))
@settings(deadline=None)
def test_only_what_rfc_6455_has_makes_a_tunnel(lines, version):
    """Every accepted answer has the right accept, once, names the protocol, and has no body."""
    try:
        head = answer(*lines, start=f"{version} 101 x")
        websocket().accepted(head)
    except TargetError:
        return
    fields = [line.lower() for line in lines]
    assert version == "HTTP/1.1"
    assert [f for f in lines if f.startswith("Sec-WebSocket-Accept")] == [GOOD[2]]
    assert fields.count("upgrade: websocket") == 1
    assert "upgrade: h2c" not in fields
    assert {"connection: upgrade", "connection: keep-alive, upgrade"} & set(fields)
    assert not {"content-length: 0", "transfer-encoding: chunked"} & set(fields)
    assert "sec-websocket-protocol: other" not in fields

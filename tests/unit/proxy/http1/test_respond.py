"""What the sidecar says itself: whole responses, whatever the code."""

from __future__ import annotations

import json
import ssl

import h11
import pytest

from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.proxy.http1.respond import problem_answer, status_line, tls_alert


def parse(raw: bytes, method: str) -> tuple[h11.Response, bytes]:
    """The one response in ``raw``, as a client reads it; nothing may be behind it."""
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=method, target="/", headers=[("host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(raw)
    head = client.next_event()
    assert isinstance(head, h11.Response)
    body = b""
    while isinstance(event := client.next_event(), h11.Data):
        body += bytes(event.data)
    assert isinstance(event, h11.EndOfMessage)
    assert client.trailing_data[0] == b""
    return head, body


@pytest.mark.parametrize("code", codes.all_codes(), ids=[code.name for code in codes.all_codes()])
def test_every_code_is_a_whole_response(code: Code) -> None:
    raw = problem_answer(code, instance="urn:x", connection=b"", head_only=False)
    head, body = parse(raw, "GET")
    headers = dict(head.headers)
    assert head.status_code == code.status
    assert headers[b"content-type"] == b"application/problem+json"
    assert headers[b"cache-control"] == b"no-store"
    assert headers.get(b"retry-after") == (
        None if code.retry_after is None else str(code.retry_after).encode()
    )
    # RFC 9110 §15.5.8, §15.5.6: what must come with these.
    assert (b"proxy-authenticate" in headers) == (code.status == 407)
    assert headers.get(b"allow") == (
        b"GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS" if code.status == 405 else None
    )
    document = json.loads(body)
    assert (document["code"], document["status"]) == (code.name, code.status)
    assert (document["detail"], document["instance"]) == (code.help, "urn:x")


def test_an_answer_to_head_has_the_length_and_no_body() -> None:
    whole = problem_answer(codes.ROUTE_NO_MATCH, instance="", connection=b"", head_only=False)
    head = problem_answer(codes.ROUTE_NO_MATCH, instance="", connection=b"", head_only=True)
    assert whole.startswith(head)
    assert head.endswith(b"\r\n\r\n")
    assert parse(head, "HEAD")[1] == b""


@pytest.mark.parametrize("line", [b"", b"connection: close\r\n", b"connection: keep-alive\r\n"])
def test_the_connection_line_is_one_of_the_heads(line: bytes) -> None:
    raw = problem_answer(codes.ROUTE_NO_MATCH, instance="", connection=line, head_only=False)
    assert raw.partition(b"\r\n\r\n")[0].count(b"connection:") == bool(line)
    parse(raw, "GET")


@pytest.mark.parametrize(
    ("status", "reason", "line"),
    [
        (200, b"OK", b"HTTP/1.1 200 OK\r\n"),
        (200, b"Fine", b"HTTP/1.1 200 Fine\r\n"),
        (404, b"", b"HTTP/1.1 404 \r\n"),
        (599, b"Odd", b"HTTP/1.1 599 Odd\r\n"),
    ],
)
def test_status_lines(status: int, reason: bytes, line: bytes) -> None:
    assert status_line(status, reason) == line


@pytest.mark.parametrize("code", codes.all_codes(), ids=lambda code: code.name)
def test_every_code_is_an_alert_that_a_tls_client_reads(code: Code) -> None:
    incoming = ssl.MemoryBIO()
    client = ssl.create_default_context().wrap_bio(
        incoming, ssl.MemoryBIO(), server_hostname="a.example"
    )
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    incoming.write(tls_alert(code))
    with pytest.raises(ssl.SSLError, match=r"ALERT|UNRECOGNIZED_NAME") as error:
        client.do_handshake()
    internal = error.value.reason == "TLSV1_ALERT_INTERNAL_ERROR"
    assert internal == (code.status >= 500)


def test_what_alerts_say() -> None:
    assert tls_alert(codes.TLS_HELLO_MALFORMED)[-1] == 50  # decode_error
    assert tls_alert(codes.TLS_NO_SERVER_NAME)[-1] == 112  # unrecognized_name
    assert tls_alert(codes.TARGET_NO_MATCH)[-1] == 112
    assert tls_alert(codes.REQUEST_NOT_REDIRECTED)[-1] == 49  # access_denied

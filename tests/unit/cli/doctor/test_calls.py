"""What the programs report is read; the programs themselves are in the integration tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from valetkey.cli.doctor.calls import Made, make, one_line, read_curl, read_git, read_reports
from valetkey.cli.doctor.outcome import Call
from valetkey.cli.doctor.process import Ran
from valetkey.cli.doctor.proxy_url import Redaction
from valetkey.cli.doctor.runtimes import PythonFacts, Runtime

HTTP, HTTPS = "http://valetkey.invalid/", "https://valetkey.invalid/"
BODY = '{"code":"target.no_match"}'


def line(url: str, **seen: object) -> str:
    return json.dumps({"client": "fetch", "url": url, **seen}) + "\n"


def test_reports() -> None:
    out = (
        "a greeting\n"
        + line(HTTP, status=403, content_type="t", via="v", body=BODY)
        + "{}\n"
        + line(HTTPS, error="Error: no")
    )
    assert read_reports("node", Ran(0, out, ""), ("fetch",), (HTTP, HTTPS)) == (
        Call("node fetch", HTTP, 403, "t", "v", BODY),
        Call("node fetch", HTTPS, error="Error: no"),
    )


UNREPORTED = [
    ("ended", None, "", Call("node fetch", HTTPS, timed_out=True)),
    ("broken", 1, "a\nSyntaxError\n", Call("node fetch", HTTPS, error="no report: SyntaxError")),
]


@pytest.mark.parametrize(
    ("name", "status", "err", "call"), UNREPORTED, ids=[case[0] for case in UNREPORTED]
)
def test_what_was_not_reported(name: str, status: int | None, err: str, call: Call) -> None:
    ran = Ran(status, line(HTTP, status=200), err)
    first, second = read_reports("node", ran, ("fetch",), (HTTP, HTTPS))
    assert (first.status, second) == (200, call)


CURL = f"HTTP/1.1 403 Forbidden\r\nContent-Type: a/b; c=d\r\nVia: 1.1 x\r\n\r\n{BODY}"
CURLS = [
    ("an answer", Ran(0, CURL, ""), Call("curl", HTTP, 403, "a/b; c=d", "1.1 x", BODY)),
    ("no answer", Ran(28, "", "curl: (28) timed out"), Call("curl", HTTP, timed_out=True)),
    ("ended", Ran(None, "", ""), Call("curl", HTTP, timed_out=True)),
    ("an error", Ran(60, "", "curl: (60) SSL problem\nMore details\n"), Call("curl", HTTP, error="curl: (60) SSL problem")),
    ("an error without words", Ran(2, "", ""), Call("curl", HTTP, error="exit status 2")),
    ("HTTP/0.9", Ran(0, "hello", ""), Call("curl", HTTP, error="no HTTP: hello")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ran", "call"), CURLS, ids=[case[0] for case in CURLS])
def test_curl(name: str, ran: Ran, call: Call) -> None:
    assert read_curl(HTTP, ran) == call


def trace(*lines: str, fatal: str = "") -> Ran:
    """As GIT_TRACE_CURL writes it."""
    text = "".join(f"12:25:24.749440 http.c:684              {line}\n" for line in lines)
    return Ran(128, "", f"{text}fatal: {fatal}\n" if fatal else text)


def received(*lines: str) -> list[str]:
    return ["<= Recv header, 0000000024 bytes (0x00000018)", *(f"<= Recv header: {line}" for line in lines), "<= Recv header:"]  # fmt: skip


ANSWER = [
    *received("HTTP/1.1 403 Forbidden", "content-type: a/b", "via: 1.1 x"),
    "<= Recv data, 0000000026 bytes (0x0000001a)",
    '<= Recv data: {"code":"target',
    '<= Recv data: .no_match"}',
    "== Info: Connection #0 to host 127.0.0.1 left intact",
]
ASKED = [
    *received("HTTP/1.1 407 Proxy Authentication Required", "content-type: p/q"),
    '<= Recv data: {"code":"caller.unauthenticated"}',
]
TUNNEL = [*received("HTTP/1.1 200 Connection established"), "== Info: CONNECT phase completed"]
SEEN = Call("git", HTTPS, 403, "a/b", "1.1 x", BODY)
GITS = [
    ("an answer", trace(*ANSWER, fatal="403"), SEEN),
    ("an answer in a tunnel", trace(*TUNNEL, *ANSWER, fatal="403"), SEEN),
    ("a token asked for first", trace(*ASKED, *ANSWER, fatal="403"), SEEN),
    ("a token asked for by the tunnel", trace(*ASKED, *TUNNEL, *ANSWER, fatal="403"), SEEN),
    ("an untrusted certificate", trace(*ASKED, *TUNNEL, fatal="server certificate verification failed"), Call("git", HTTPS, error="fatal: server certificate verification failed")),
    ("a tunnel refused", trace(*received("HTTP/1.1 403 Forbidden"), "== Info: CONNECT tunnel failed, response 403", fatal="CONNECT tunnel failed, response 403"), Call("git", HTTPS, error="fatal: CONNECT tunnel failed, response 403")),
    ("no answer at all", trace(fatal="Could not resolve host: x"), Call("git", HTTPS, error="fatal: Could not resolve host: x")),
    ("words that are no error", Ran(129, "", "usage: git\n"), Call("git", HTTPS, error="usage: git")),
    ("ended", Ran(None, "", "x"), Call("git", HTTPS, timed_out=True)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "ran", "call"), GITS, ids=[case[0] for case in GITS])
def test_git(name: str, ran: Ran, call: Call) -> None:
    assert read_git(HTTPS, ran) == call


def test_one_line() -> None:
    assert one_line(" a\n\tb  c ") == "a b c"
    assert len(one_line("x" * 1000)) == 401


def script(directory: Path, text: str) -> str:
    file = directory / "program"
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(0o755)
    return str(file)


def made(runtime: Runtime, *urls: str, timeout: float = 5, secrets: tuple[str, ...] = ()) -> list[Made]:  # fmt: skip
    return make([runtime], urls or (HTTP,), timeout=timeout, redact=Redaction(secrets))


def test_a_token_in_a_message_does_not_stay(tmp_path: Path) -> None:
    program = script(tmp_path, "echo 'curl: (5) no proxy caller-secret http://a:b@c' >&2; exit 5")
    [one] = made(Runtime("curl", program, "8"), secrets=("http://u:caller-secret@h:1",))
    assert one.calls == (Call("curl", HTTP, error="curl: (5) no proxy … http://…@c"),)


def test_each_python_client_is_a_program_of_its_own() -> None:
    facts = PythonFacts("3", clients={"aiohttp": "3", "urllib3": "2"})
    found = made(Runtime("python", sys.executable, "3.11", python=facts), "http://127.0.0.1:1/")
    assert [call.client for each in found for call in each.calls] == [
        "python urllib",
        "python aiohttp",
    ]
    assert all(call.error for each in found for call in each.calls)


def test_runtimes_that_can_not_be_asked(tmp_path: Path) -> None:
    assert made(Runtime("go", "/go", "", "it does not end")) == []
    [jre] = made(Runtime("java", "/j", "21.0.1", compiler=False))
    [old] = made(Runtime("java", "/j", "1.8.0"))
    assert "no compiler" in jre.trouble
    assert "no compiler" in old.trouble
    [go] = made(Runtime("go", script(tmp_path, "echo 'no disk' >&2; exit 1"), "1.26"))
    assert go.trouble == "the probe could not be built: no disk"
    assert jre.calls == old.calls == go.calls == ()


def test_old_nodes_have_no_fetch(tmp_path: Path) -> None:
    program = script(tmp_path, "exit 0")
    for version, clients in (("16.20.0", ["node https"]), ("18.0.0", ["node fetch", "node https"])):
        [one] = made(Runtime("node", program, version))
        assert [call.client for call in one.calls] == clients

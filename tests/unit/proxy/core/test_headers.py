"""What of a head goes on, what is dropped, and what makes the call a refusal."""

from __future__ import annotations

import pytest

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.headers import (
    HANDSHAKE,
    HOP_BY_HOP,
    MANAGED,
    OVERRIDES,
    SINGLE,
    Field,
    HeaderPolicy,
    check_connection,
    check_overrides,
    check_single,
    normal,
    request_fields,
    response_fields,
    session_fields,
)

SUBJECT = "X-Valetkey-Subject"


def policy(injected: str | None = None, passed: tuple[str, ...] = ()) -> HeaderPolicy:
    return HeaderPolicy.of(injected=injected, subject_header=SUBJECT, passed=passed)


def fields(*lines: str) -> list[Field]:
    return [
        (normal(name), name.encode(), value.encode())
        for name, _, value in (line.partition(": ") for line in lines)
    ]


def sent(*lines: str, listed: set[str] | None = None, by: HeaderPolicy | None = None) -> list[str]:
    raw, _ = request_fields(fields(*lines), frozenset(listed or set()), by or policy())
    return raw.decode().split("\r\n")[:-1]


def dropped(*lines: str, by: HeaderPolicy | None = None) -> tuple[str, ...]:
    return request_fields(fields(*lines), frozenset(), by or policy())[1]


def test_end_to_end_fields_keep_order_and_spelling() -> None:
    lines = ["Accept: */*", "x-odd_NAME: 1", "ACCEPT: text/html", "Content-Type: a/b"]
    assert sent(*lines) == lines


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP))
def test_hop_by_hop_fields_end_here(name: str) -> None:
    assert sent(f"{name.title()}: x", "Accept: y") == ["Accept: y"]
    assert dropped(f"{name}: x") == ()


@pytest.mark.parametrize("name", ["Host", "Content-Length", "Via", "content_length", "HOST"])
def test_what_the_sidecar_writes_itself_is_not_copied(name: str) -> None:
    assert sent(f"{name}: x") == []


@pytest.mark.parametrize("name", sorted(HANDSHAKE))
def test_what_belongs_to_a_handshake_is_not_copied_and_not_listed(name: str) -> None:
    assert sent(f"{name.title()}: x", "Accept: y") == ["Accept: y"]
    with pytest.raises(CallerError):
        check_connection(frozenset({name}), policy())


@pytest.mark.parametrize("name", sorted(MANAGED))
@pytest.mark.parametrize("spelling", [str.lower, str.upper, str.title])
@pytest.mark.parametrize("mark", ["-", "_", "."])
def test_every_copy_of_a_credential_is_dropped_in_every_spelling(
    name: str, spelling: object, mark: str
) -> None:
    written = spelling(name.replace("-", mark))  # type: ignore[operator]
    line = f"{written}: secret"
    assert sent(line, "Accept: */*", line) == ["Accept: */*"]
    assert dropped(line, line) == (name, name)


MIXED = ["X_Api-Key", "x-API_key", "X_API_KEY", "X.Api~Key", "x!api|key"]


@pytest.mark.parametrize("name", MIXED)
def test_mixed_separators_are_the_same_name(name: str) -> None:
    assert sent(f"{name}: secret") == []


def test_the_injected_header_and_the_users_token_are_managed() -> None:
    own = policy(injected="X-Vendor_Token")
    assert sent("x_vendor-token: mine", "X-Valetkey-Subject: user", "A: b", by=own) == ["A: b"]
    assert dropped("x_vendor-token: mine", by=own) == ("x-vendor-token",)
    assert sent("X-Vendor-Token: mine") == ["X-Vendor-Token: mine"]  # not managed elsewhere


def test_pass_headers_let_through_what_is_listed_and_nothing_else() -> None:
    own = policy(passed=("Cookie",))
    assert sent("Cookie: a=b", "X-Api-Key: c", by=own) == ["Cookie: a=b"]


@pytest.mark.parametrize("name", ["Authorization", "DPoP", "Proxy-Authorization", "Txn-Token"])
def test_credentials_of_our_own_kind_can_never_be_passed(name: str) -> None:
    assert sent(f"{name}: x", by=policy(passed=(name,))) == []


def test_the_injected_header_cannot_be_passed() -> None:
    assert sent("X-Key: x", by=policy(injected="X-Key", passed=("X-Key",))) == []


def test_what_connection_lists_is_dropped() -> None:
    assert sent("X-Hop: 1", "X_Hop: 2", "Accept: a", listed={"x-hop"}) == ["Accept: a"]


LISTED = [
    ("unknown name", {"x-hop"}, False),
    ("nothing", set(), False),
    ("authorization", {"authorization"}, True),
    ("an API key", {"x-api-key"}, True),
    ("cookie", {"cookie"}, True),
    ("host", {"host"}, True),
    ("content-length", {"content-length"}, True),
    ("content-type", {"content-type"}, True),
    ("traceparent", {"traceparent"}, True),
    ("via", {"via"}, True),
    ("x-forwarded-for", {"x-forwarded-for"}, True),
    ("expect", {"expect"}, True),
    ("one bad among good", {"x-hop", "dpop"}, True),
    ("the injected header", {"x-vendor-token"}, True),
    ("the user's token", {"x-valetkey-subject"}, True),
]


@pytest.mark.parametrize(("name", "listed", "refused"), LISTED, ids=[case[0] for case in LISTED])
def test_connection_lists(name: str, listed: set[str], refused: bool) -> None:
    own = policy(injected="X-Vendor-Token")
    if not refused:
        check_connection(frozenset(listed), own)
        return
    with pytest.raises(CallerError) as error:
        check_connection(frozenset(listed), own)
    assert error.value.code is codes.REQUEST_CONNECTION_HEADER


def test_a_passed_cookie_can_still_not_be_listed() -> None:
    with pytest.raises(CallerError):
        check_connection(frozenset({"cookie"}), policy(passed=("Cookie",)))


def names(*lines: str) -> dict[str, list[bytes]]:
    made: dict[str, list[bytes]] = {}
    for name, _, value in fields(*lines):
        made.setdefault(name, []).append(value)
    return made


OVERRIDING = [
    *((name, f"{name}: x") for name in sorted(OVERRIDES - {"forwarded"})),
    ("in another spelling", "X_HTTP.Method_OVERRIDE: DELETE"),
    ("forwarded host", "Forwarded: for=10.0.0.1;host=evil.example"),
    ("forwarded host first", "Forwarded: host=evil.example"),
    ("forwarded host in a list", "Forwarded: for=a, HOST = evil.example"),
]


@pytest.mark.parametrize(("name", "line"), OVERRIDING, ids=[case[0] for case in OVERRIDING])
def test_what_makes_another_call_of_it_is_refused(name: str, line: str) -> None:
    with pytest.raises(CallerError) as refused:
        check_overrides(names("Accept: a", line), policy())
    assert refused.value.code is codes.REQUEST_OVERRIDE


def test_overrides_that_are_passed_go_on_and_no_others() -> None:
    own = policy(passed=("X-HTTP-Method-Override", "Forwarded"))
    lines = ("x-http-method-override: GET", "Forwarded: host=a")
    check_overrides(names(*lines), own)
    assert sent(*lines, by=own) == list(lines)
    with pytest.raises(CallerError):
        check_overrides(names("X-HTTP-Method: GET"), own)


@pytest.mark.parametrize(
    "line", ["Forwarded: for=10.0.0.1;proto=http", "Forwarded: for=ghost", "X-Forwarded-For: a"]
)
def test_what_only_tells_where_a_call_came_from_goes_on(line: str) -> None:
    check_overrides(names(line), policy())


def test_an_injected_header_is_no_override() -> None:
    """It is dropped, as all that comes in under the name of the credential."""
    check_overrides(names("X-Host: a"), policy(injected="X-Host"))


@pytest.mark.parametrize("name", SINGLE)
def test_what_has_one_value_has_one_value(name: str) -> None:
    check_single(names(f"{name}: a", "Accept: b", "Accept: c"))
    with pytest.raises(CallerError) as refused:
        check_single(names(f"{name}: a", f"{name.replace('-', '_').upper()}: a"))
    assert refused.value.code is codes.REQUEST_REPEATED_HEADER


def test_a_call_whose_answer_is_read_asks_for_the_whole_and_no_coding() -> None:
    lines = sent(
        "Accept-Encoding: gzip", "Range: bytes=0-1", "If-Range: x", "Accept: a/b", "TE: trailers",
        by=policy().for_reading(),
    )  # fmt: skip
    assert lines == ["Accept: a/b", "accept-encoding: identity"]


RESPONSES = [
    ("content type", "Content-Type: a/b", True),
    ("cookie", "Set-Cookie: a=b", False),
    ("cookie with underscore", "Set_Cookie: a=b", False),
    ("cookie of old", "Set-Cookie2: a=b", False),
    ("optional challenge", "Optional-WWW-Authenticate: Basic", False),
    ("authentication control", "Authentication-Control: logout-timeout=5", False),
    ("proxy authentication info", "Proxy-Authentication-Info: x", False),
    ("proxy connection", "Proxy-Connection: keep-alive", False),
    ("proxy support", "Proxy-Support: Session-Based-Authentication", False),
    ("proxy status", "Proxy-Status: edge; error=x", True),
    ("a way around", 'Alt-Svc: h3=":443"', False),
    ("location", "Location: https://elsewhere.example/", True),
    ("challenge", 'WWW-Authenticate: Bearer realm="x"', False),
    ("challenge with underscore", "WWW_Authenticate: x", False),
    ("authentication info", "Authentication-Info: x", False),
    ("nonce", "DPoP-Nonce: x", False),
    ("proxy challenge", "Proxy-Authenticate: x", False),
    ("length", "Content-Length: 5", False),
    ("coding", "Transfer-Encoding: chunked", False),
    ("connection", "Connection: close", False),
    ("keep-alive", "Keep-Alive: timeout=5", False),
    ("upgrade", "Upgrade: h2c", False),
    ("trailer", "Trailer: x", False),
    ("listed", "X-Hop: 1", False),
]


@pytest.mark.parametrize(("name", "line", "kept"), RESPONSES, ids=[case[0] for case in RESPONSES])
def test_response_fields(name: str, line: str, kept: bool) -> None:
    made = response_fields(fields(line, "Date: now"), frozenset({"x-hop"}))
    assert made == (f"{line}\r\nDate: now\r\n" if kept else "Date: now\r\n").encode()


def test_session_fields() -> None:
    made = session_fields(fields("Set-Cookie: a=b; Path=/", "Date: now", "SET-COOKIE: c=d"))
    assert made == b"Set-Cookie: a=b; Path=/\r\nSET-COOKIE: c=d\r\n"


@pytest.mark.parametrize(
    ("passed", "passes"), [([], False), (["Cookie"], True), (["cookie"], True), (["X-A"], False)]
)
def test_sessions_come_back_where_cookies_go_in(passed: list[str], passes: bool) -> None:
    policy = HeaderPolicy.of(injected=None, subject_header="X-S", passed=passed)
    assert policy.passes_sessions is passes

"""Causes are reported once, and what went well is not held against anybody."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from pathlib import Path

import pytest
import trustme

from tests.support.ports import free_port
from tests.support.recording import Recording
from valetkey.cli.doctor import findings
from valetkey.cli.doctor.examine import (
    Plan,
    about_calls,
    choose,
    examine,
    read_authority,
    refuted,
    to_judge,
)
from valetkey.cli.doctor.findings import Finding, Kind
from valetkey.cli.doctor.outcome import Call, Judged, Outcome
from valetkey.cli.doctor.proxy_url import Endpoint
from valetkey.cli.doctor.sidecar import Listener
from valetkey.cli.doctor.trust import Files, Store
from valetkey.cli.doctor.variables import Variables
from valetkey.cli.doctor.where import Where
from valetkey.contracts import codes, problem

NOW = dt.datetime.now(dt.UTC)
FILES = Files(bundle="/b.pem", ca="/ca.pem", java="/t.p12", java_password="changeit")
HTTP, HTTPS = "http://valetkey.invalid/", "https://valetkey.invalid/"
STORES = (
    Store(("node fetch", "node https"), (), "export NODE_EXTRA_CA_CERTS=/ca.pem"),
    Store(("curl",), (), "export CURL_CA_BUNDLE=/b.pem"),
)


def went(client: str, url: str, outcome: Outcome, detail: str = "x") -> Judged:
    return Judged(Call(client, url), outcome, detail)


def finding(kind: Kind, subject: str = "s") -> Finding:
    return Finding(kind, subject, "d", "a")


# --- calls that need no finding, and those that do ------------------------------------------------

EXPLAINED = [
    ("no proxy", went("curl", HTTP, "direct"), finding(findings.PROXY_UNSET)),
    ("no http proxy", went("curl", HTTP, "direct"), finding(findings.HTTP_PROXY_UNSET)),
    ("in capitals", went("curl", HTTP, "direct"), finding(findings.HTTP_PROXY_UPPERCASE_ONLY)),
    ("a CGI script", went("go net/http", HTTP, "direct"), finding(findings.REQUEST_METHOD_SET)),
    ("no https proxy", went("curl", HTTPS, "direct"), finding(findings.HTTPS_PROXY_UNSET)),
    ("excluded", went("curl", HTTPS, "direct"), finding(findings.NO_PROXY_TARGET)),
    ("node", went("node fetch", HTTPS, "direct"), finding(findings.NODE_IGNORES_PROXY)),
    ("java", went("java HttpClient", HTTP, "direct"), finding(findings.JAVA_IGNORES_PROXY)),
    ("git", went("git", HTTP, "unreachable"), finding(findings.GIT_PROXY_ELSEWHERE)),
    ("java elsewhere", went("java HttpClient", HTTP, "elsewhere"), finding(findings.JAVA_PROXY_ELSEWHERE)),
    ("no CA in its store", went("curl", HTTPS, "untrusted"), finding(findings.STORE_WITHOUT_CA, "x, curl")),
    ("another CA", went("curl", HTTPS, "untrusted"), finding(findings.CA_MISMATCH)),
    ("a token", went("curl", HTTP, "refused"), finding(findings.TOKEN_MISSING)),
    ("a wrong token", went("curl", HTTPS, "refused"), finding(findings.TOKEN_REFUSED)),
    ("no interception", went("curl", HTTPS, "refused"), finding(findings.INTERCEPTION_OFF)),
    ("a sidecar that refuses", went("curl", HTTPS, "refused"), finding(findings.LISTENER_REFUSES)),
    ("no listener", went("curl", HTTPS, "unreachable"), finding(findings.LISTENER_UNREACHABLE)),
    ("another proxy", went("curl", HTTP, "elsewhere"), finding(findings.PROXY_ELSEWHERE)),
    ("another proxy that is gone", went("curl", HTTP, "unreachable"), finding(findings.PROXY_ELSEWHERE)),
    ("another server", went("curl", HTTPS, "refused"), finding(findings.LISTENER_FOREIGN)),
]  # fmt: skip
UNEXPLAINED = [
    ("no https proxy, by http", went("curl", HTTP, "direct"), finding(findings.HTTPS_PROXY_UNSET), "call_direct"),
    ("no http proxy, by https", went("curl", HTTPS, "direct"), finding(findings.HTTP_PROXY_UNSET), "call_direct"),
    ("node's trouble, by curl", went("curl", HTTPS, "direct"), finding(findings.NODE_IGNORES_PROXY), "call_direct"),
    ("another's store", went("curl", HTTPS, "untrusted"), finding(findings.STORE_WITHOUT_CA, "git"), "call_untrusted"),
    ("no interception, by http", went("curl", HTTP, "refused"), finding(findings.INTERCEPTION_OFF), "call_refused"),
    ("no listener, and a refusal", went("curl", HTTP, "refused"), finding(findings.LISTENER_UNREACHABLE), "call_refused"),
    ("the admin port", went("curl", HTTP, "unreachable"), finding(findings.ADMIN_UNREACHABLE), "call_unreachable"),
    ("silence", went("curl", HTTP, "timeout"), finding(findings.PROXY_ELSEWHERE), "call_timeout"),
    ("a defect", went("curl", HTTP, "failed"), finding(findings.PROXY_UNSET), "call_failed"),
    ("another answer", went("curl", HTTP, "elsewhere"), finding(findings.TOKEN_MISSING), "call_elsewhere"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "call", "cause"), EXPLAINED, ids=[case[0] for case in EXPLAINED])
def test_a_call_with_a_known_cause_adds_nothing(name: str, call: Judged, cause: Finding) -> None:
    assert about_calls([call], [cause], STORES, FILES) == []


@pytest.mark.parametrize(
    ("name", "call", "other", "code"), UNEXPLAINED, ids=[case[0] for case in UNEXPLAINED]
)
def test_a_call_without_one_is_a_finding(
    name: str, call: Judged, other: Finding, code: str
) -> None:
    [found] = about_calls([call], [other], STORES, FILES)
    assert found.kind.name == f"doctor.{code}"
    assert found.is_wrong
    assert found.detail == f"{call.call.url}: x"


def test_calls_that_went_the_same_way_are_one_finding() -> None:
    judged = [
        went("curl", HTTP, "direct"),
        went("curl", HTTPS, "direct"),
        went("git", HTTP, "through"),
        went("node fetch", HTTPS, "untrusted"),
        went("node https", HTTPS, "untrusted"),
        went("curl", HTTPS, "untrusted"),
        went("ruby", HTTPS, "untrusted"),
    ]
    found = about_calls(judged, [], STORES, FILES)
    assert [(each.kind.name, each.subject, each.action) for each in found[1:]] == [
        ("doctor.call_untrusted", "node fetch, node https", "export NODE_EXTRA_CA_CERTS=/ca.pem"),
        ("doctor.call_untrusted", "curl", "export CURL_CA_BUNDLE=/b.pem"),
        ("doctor.call_untrusted", "ruby", "Give this client /b.pem as its trust store"),
    ]
    assert (found[0].kind, found[0].subject) == (findings.CALL_DIRECT, "curl")


def test_what_to_do_about_a_refusal_depends_on_what_was_said() -> None:
    judged = [
        went("curl", HTTPS, "refused", "response 407"),
        went("java HttpClient", HTTPS, "refused", "Proxy Authentication Required"),
        went("git", HTTPS, "refused", "response 403"),
    ]
    token, java, other = about_calls(judged, [], STORES, FILES)
    assert "token" in token.action
    assert "disabledSchemes" in java.action
    assert "403" in other.action


# --- what calls showed not to be so ---------------------------------------------------------------

REFUTED = [
    ("trusted after all", findings.STORE_WITHOUT_CA, "git, curl", [went("curl", HTTPS, "through")], False),
    ("trusted, by another", findings.STORE_WITHOUT_CA, "git", [went("curl", HTTPS, "through")], True),
    ("http says nothing of trust", findings.STORE_WITHOUT_CA, "curl", [went("curl", HTTP, "through")], True),
    ("node, by a preload", findings.NODE_IGNORES_PROXY, "node 20", [went("node fetch", HTTP, "through")], False),
    ("node, one of two", findings.NODE_IGNORES_PROXY, "node 24.1", [went("node fetch", HTTP, "through"), went("node https", HTTP, "direct")], True),
    ("node, by java", findings.NODE_IGNORES_PROXY, "node 20", [went("java HttpClient", HTTP, "through")], True),
    ("no calls", findings.JAVA_IGNORES_PROXY, "java 21", [], True),
    ("another finding", findings.PROXY_UNSET, "curl", [went("curl", HTTPS, "through")], True),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind", "subject", "calls", "stays"), REFUTED, ids=[case[0] for case in REFUTED]
)
def test_what_stays(name: str, kind: Kind, subject: str, calls: list[Judged], stays: bool) -> None:
    one = finding(kind, subject)
    assert refuted([one], calls) == ([one] if stays else [])


# --- which listener is the sidecar's --------------------------------------------------------------

DEFAULT, ONE, OTHER = (Endpoint("127.0.0.1", port) for port in (7072, 1, 2))


def test_what_was_said_holds() -> None:
    where = Where(listeners=(ONE,), stated=True)
    assert choose(where, {ONE: Listener("unreachable"), OTHER: Listener("sidecar")}) == (ONE,)


@pytest.mark.parametrize("state", ["sidecar", "refuses", "token missing", "token refused"])
def test_else_what_answers_as_one(state: str) -> None:
    listeners = {ONE: Listener("foreign"), OTHER: Listener(state)}  # type: ignore[arg-type]
    assert choose(Where(), listeners) == (OTHER,)


def test_else_the_default() -> None:
    assert choose(Where(), {ONE: Listener("foreign"), OTHER: Listener("unreachable")}) == (DEFAULT,)


def test_those_that_variables_lead_to_count() -> None:
    given = Variables({"https_proxy": OTHER.url, "HTTP_PROXY": "http://h:9"})
    assert to_judge(given, (ONE, OTHER)) == {OTHER: "https_proxy"}
    assert to_judge(given, (ONE, DEFAULT)) == {ONE: "http_proxy"}


# --- the CA ---------------------------------------------------------------------------------------


def test_the_authority(tmp_path: Path) -> None:
    file = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(file))
    authority, found = read_authority(file, NOW)
    assert authority is not None
    assert found == []
    for moment in (authority.begins, authority.ends):
        away = moment + (dt.timedelta(days=1) if moment > NOW else -dt.timedelta(days=1))
        same, [expired] = read_authority(file, away)
        assert same == authority
        assert expired.kind is findings.CA_EXPIRED
        assert f"{authority.ends:%Y-%m-%d}" in expired.detail


def test_no_authority(tmp_path: Path) -> None:
    _, [unknown] = read_authority(None, NOW)
    assert (unknown.kind, unknown.is_wrong) == (findings.CA_UNKNOWN, False)
    _, [missing] = read_authority(tmp_path / "no", NOW)
    assert (missing.kind, missing.detail) == (findings.CA_UNREADABLE, "No such file or directory")
    file = tmp_path / "ca.pem"
    file.write_text("nothing")
    _, [unusable] = read_authority(file, NOW)
    assert (unusable.kind, unusable.detail) == (findings.CA_UNREADABLE, "no certificate in PEM")


# --- all of it ------------------------------------------------------------------------------------


@pytest.fixture
def proxy() -> Iterator[Recording]:
    """Answers every request as a sidecar without interception does."""
    refusals = {
        code: b"HTTP/1.1 403 x\r\nContent-Type: %b\r\nContent-Length: %d\r\n\r\n%b"
        % (problem.CONTENT_TYPE.encode(), len(problem.render(code)), problem.render(code))
        for code in (codes.TARGET_NO_MATCH, codes.TUNNEL_NOT_INTERCEPTED)
    }
    with Recording() as recording:
        recording.answer = refusals[codes.TARGET_NO_MATCH]
        yield recording


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """PATH with nothing on it."""
    monkeypatch.setenv("PATH", str(tmp_path))
    return tmp_path


@pytest.fixture
def curl(path: Path) -> Path:
    """A curl that goes through, by what it prints."""
    file = path / "curl"
    body = problem.render(codes.TARGET_NO_MATCH).decode()
    file.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = --version ]; then echo "curl 8.1.0"; exit; fi\n'
        f"printf 'HTTP/1.1 403 x\\r\\nContent-Type: {problem.CONTENT_TYPE}\\r\\n\\r\\n%s' '{body}'\n"
    )
    file.chmod(0o755)
    return file


def test_transparent_mode_has_no_proxy_to_look_for(curl: Path) -> None:
    plan = Plan(Where(admin=""), urls=("http://api.example/",), transparent=True)
    report = examine(plan, {}, NOW)
    assert report.is_good
    assert [each.outcome for each in report.calls] == ["through"]
    assert (report.sidecars, report.listeners) == ((), {})
    curl.write_text("#!/bin/sh\nexit 3\n")
    report = examine(plan, {}, NOW)
    assert [each.kind for each in report.findings] == [
        findings.RUNTIME_UNUSABLE,
        findings.CA_UNKNOWN,
    ]


def test_a_good_environment(proxy: Recording, curl: Path) -> None:
    proxy.replies(proxy.answer, then="close")
    proxy.replies(b"HTTP/1.1 200 x\r\n\r\n", then="close")
    environ = dict.fromkeys(("http_proxy", "https_proxy"), f"http://127.0.0.1:{proxy.port}")
    report = examine(Plan(Where(admin=""), urls=(HTTP,)), environ, NOW)
    assert report.is_good
    assert [each.kind for each in report.findings] == [findings.CA_UNKNOWN]
    assert report.sidecars == (Endpoint("127.0.0.1", proxy.port),)
    assert list(report.listeners) == [Endpoint("127.0.0.1", proxy.port)]
    assert [(each.call.client, each.outcome) for each in report.calls] == [("curl", "through")]


def test_a_bare_environment(path: Path) -> None:
    where = Where(
        listeners=(Endpoint("127.0.0.1", free_port()),),
        admin=f"http://127.0.0.1:{free_port()}",
        ca_file=path / "ca.pem",
    )
    report = examine(Plan(where), {"REQUEST_METHOD": "GET"}, NOW)
    assert not report.is_good
    assert [each.kind for each in report.findings] == [
        findings.PROXY_UNSET,
        findings.REQUEST_METHOD_SET,
        findings.LISTENER_UNREACHABLE,
        findings.ADMIN_UNREACHABLE,
        findings.CA_UNREADABLE,
    ]
    assert report.calls == ()
    assert report.runtimes == ()


def test_another_listener_than_the_stated_one(proxy: Recording, path: Path) -> None:
    """It is a sidecar's, but not the one that was meant."""
    for _ in range(2):
        proxy.replies(proxy.answer, then="close")
    stated = Endpoint("127.0.0.1", free_port())
    environ = dict.fromkeys(("http_proxy", "https_proxy"), f"http://127.0.0.1:{proxy.port}")
    where = Where(listeners=(stated,), stated=True, admin="")
    report = examine(Plan(where, make_calls=False), environ, NOW)
    assert [each.kind for each in report.findings] == [
        findings.PROXY_ELSEWHERE,
        findings.PROXY_ELSEWHERE,
        findings.LISTENER_UNREACHABLE,
        findings.CA_UNKNOWN,
    ]


def test_a_host_that_is_called_must_not_be_excluded(proxy: Recording, path: Path) -> None:
    for _ in range(2):
        proxy.replies(proxy.answer, then="close")
    environ = {
        **dict.fromkeys(("http_proxy", "https_proxy"), f"http://127.0.0.1:{proxy.port}"),
        "NO_PROXY": ".invalid",
    }
    report = examine(Plan(Where(admin=""), make_calls=False), environ, NOW)
    assert findings.NO_PROXY_TARGET in {each.kind for each in report.findings}

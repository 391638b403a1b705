"""Each way in which the variables can be wrong, and that right ones are."""

from __future__ import annotations

import pytest

from valetkey.cli.doctor.proxy_url import Endpoint
from valetkey.cli.doctor.variables import Host, Variables, judge

SIDECAR = Endpoint("127.0.0.1", 7072)
PROXY = SIDECAR.url
GOOD = {"http_proxy": PROXY, "HTTP_PROXY": PROXY, "https_proxy": PROXY, "HTTPS_PROXY": PROXY}
HOSTS = (Host("api.example.com", 443), Host("10.1.2.3", 8080))

CASES = [
    ("all is well", GOOD, []),
    ("lower case alone", {"http_proxy": PROXY, "https_proxy": PROXY}, []),
    ("another spelling of loopback", {**GOOD, "HTTPS_PROXY": "http://localhost:7072", "https_proxy": "http://localhost:7072"}, []),
    ("with a token", dict.fromkeys(GOOD, "http://u:t@127.0.0.1:7072"), []),
    ("no proxy for others", {**GOOD, "NO_PROXY": "localhost,127.0.0.1,.internal"}, []),
    ("nothing", {}, ["proxy_unset"]),
    ("empty values", dict.fromkeys(GOOD, " "), ["proxy_unset"]),
    ("ALL_PROXY alone", {"ALL_PROXY": PROXY}, ["proxy_unset"]),
    ("http alone", {"http_proxy": PROXY}, ["https_proxy_unset"]),
    ("https alone", {"https_proxy": PROXY}, ["http_proxy_unset"]),
    ("capitals alone", {"HTTP_PROXY": PROXY, "HTTPS_PROXY": PROXY}, ["http_proxy_uppercase_only"]),
    ("two values", {**GOOD, "HTTPS_PROXY": "http://127.0.0.1:7072/"}, ["proxy_spellings_differ"]),
    ("no scheme", {**GOOD, "http_proxy": "127.0.0.1:7072"}, ["proxy_malformed", "proxy_spellings_differ"]),
    ("TLS to the proxy", {**GOOD, "https_proxy": "https://127.0.0.1:7072", "HTTPS_PROXY": "https://127.0.0.1:7072"}, ["proxy_scheme", "proxy_scheme"]),
    ("SOCKS", {**GOOD, "ALL_PROXY": "socks5://127.0.0.1:7072"}, ["proxy_scheme"]),
    ("another port", {**GOOD, "http_proxy": "http://127.0.0.1:8080", "HTTP_PROXY": "http://127.0.0.1:8080"}, ["proxy_elsewhere", "proxy_elsewhere"]),
    ("another host", {**GOOD, "all_proxy": "http://proxy.example:3128"}, ["proxy_elsewhere"]),
    ("everything excluded", {**GOOD, "NO_PROXY": "*"}, ["no_proxy_everything"]),
    ("everything among others", {**GOOD, "no_proxy": "localhost,*"}, ["no_proxy_everything"]),
    ("a target excluded", {**GOOD, "NO_PROXY": "example.com"}, ["no_proxy_target"]),
    ("a network excluded", {**GOOD, "NO_PROXY": "10.0.0.0/8"}, ["no_proxy_target"]),
    ("both spellings exclude", {**GOOD, "no_proxy": "10.1.2.3", "NO_PROXY": "example.com"}, ["no_proxy_spellings_differ", "no_proxy_target", "no_proxy_target"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "environ", "found"), CASES, ids=[case[0] for case in CASES])
def test_variables(name: str, environ: dict[str, str], found: list[str]) -> None:
    judged = judge(Variables.of(environ), sidecars=[SIDECAR], hosts=HOSTS, cgi=False)
    assert sorted(each.kind.name for each in judged) == [f"doctor.{name}" for name in found]


def actions(environ: dict[str, str]) -> dict[str, tuple[str, str, str]]:
    judged = judge(Variables.of(environ), sidecars=[SIDECAR], hosts=HOSTS, cgi=True)
    return {each.kind.name: (each.subject, each.detail, each.action) for each in judged}


def test_what_to_do_is_said_in_the_variables_own_words() -> None:
    found = actions(
        {
            "HTTP_PROXY": "http://u:secret@proxy.example:3128",
            "https_proxy": PROXY,
            "HTTPS_PROXY": "https://127.0.0.1:7072",
            "no_proxy": "*,example.com",
        }
    )
    assert found == {
        "doctor.http_proxy_uppercase_only": (
            "HTTP_PROXY",
            "http_proxy is not set",
            'export http_proxy="$HTTP_PROXY"',
        ),
        "doctor.proxy_elsewhere": (
            "HTTP_PROXY",
            "it names proxy.example:3128, the sidecar's is 127.0.0.1:7072",
            "export HTTP_PROXY=http://127.0.0.1:7072",
        ),
        "doctor.proxy_scheme": (
            "HTTPS_PROXY",
            "it begins with https://",
            "Write it with http://, for https:// targets too: HTTPS_PROXY=http://127.0.0.1:7072",
        ),
        "doctor.proxy_spellings_differ": (
            "https_proxy, HTTPS_PROXY",
            "https_proxy and HTTPS_PROXY are not the same",
            'export HTTPS_PROXY="$https_proxy" if the lower-case value is the right one',
        ),
        "doctor.no_proxy_everything": ("no_proxy", "it holds *", "Take * out of no_proxy"),
        "doctor.no_proxy_target": (
            "no_proxy",
            "example.com excludes api.example.com for some clients",
            "Take example.com out of no_proxy",
        ),
        "doctor.request_method_set": ("REQUEST_METHOD", "it is set", "unset REQUEST_METHOD"),
    }


def test_any_listener_of_the_sidecar_will_do() -> None:
    other = Endpoint("127.0.0.1", 7073)
    given = Variables.of({**GOOD, "https_proxy": other.url, "HTTPS_PROXY": other.url})
    assert judge(given, sidecars=[SIDECAR, other], hosts=HOSTS, cgi=False) == []


def test_where_they_lead_and_with_what() -> None:
    given = Variables.of(
        {
            "http_proxy": "http://127.0.0.1:7072",
            "HTTP_PROXY": "http://u:secret-token@localhost:7072",
            "https_proxy": "https://proxy.example",
            "HTTPS_PROXY": "nonsense",
        }
    )
    assert given.endpoints() == {SIDECAR: "http_proxy"}
    credentials = given.credentials(SIDECAR)
    assert credentials is not None
    assert credentials.reveal() == "dTpzZWNyZXQtdG9rZW4="
    assert given.credentials(Endpoint("proxy.example", 443)) is None
    assert "secret-token" not in repr(given)
    assert given.shown() == {
        "http_proxy": "http://127.0.0.1:7072",
        "HTTP_PROXY": "http://…@localhost:7072",
        "https_proxy": "https://proxy.example",
        "HTTPS_PROXY": "nonsense",
    }

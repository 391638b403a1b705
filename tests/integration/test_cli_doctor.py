"""``valetkey doctor`` beside a real sidecar, with the runtimes that are on this machine."""

from __future__ import annotations

import json
import os
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import trustme

from tests.support.canaries import CANARIES
from tests.support.clients import BIN, needs_clients, without_ambient
from tests.support.ports import free_port
from tests.support.recording import Recording
from tests.support.sidecar import Sidecar, World, target, whole

pytest_plugins = ["tests.support.wire_fixtures"]
pytestmark = [
    needs_clients,
    pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed"),
]

TOKEN = "caller-token-0123456789abcdef"
FORWARD, GUARDED, REVERSE = range(3)
_PROGRAMS = {"python": "python3"}


@dataclass
class Site:
    """A sidecar that intercepts, and what it published."""

    sidecar: Sidecar
    upstream: Recording
    files: Path

    def proxy(self, listener: int = FORWARD, token: str = "") -> str:
        userinfo = f"workload:{token}@" if token else ""
        return f"http://{userinfo}127.0.0.1:{self.sidecar.ports[listener]}"

    def environment(self, *, proxy: str = "", trust: bool = True, **more: str) -> dict[str, str]:
        """All that each runtime needs."""
        proxy = proxy or self.proxy()
        host, _, port = proxy.rpartition("//")[2].rpartition("@")[2].partition(":")
        bundle = str(self.files / "bundle.pem")
        java = [
            f"-D{scheme}.proxy{what}={value}"
            for scheme in ("http", "https")
            for what, value in (("Host", host), ("Port", port))
        ]
        environ = {"NODE_USE_ENV_PROXY": "1"}
        for name in ("http_proxy", "https_proxy"):
            environ[name] = environ[name.upper()] = proxy
        if trust:
            java += [
                f"-Djavax.net.ssl.trustStore={self.files / 'trust.p12'}",
                "-Djavax.net.ssl.trustStorePassword=changeit",
            ]
            environ |= {
                "SSL_CERT_FILE": bundle,
                "REQUESTS_CA_BUNDLE": bundle,
                "CURL_CA_BUNDLE": bundle,
                "GIT_SSL_CAINFO": bundle,
                "NODE_EXTRA_CA_CERTS": str(self.files / "ca.pem"),
            }
        return {**environ, "JAVA_TOOL_OPTIONS": " ".join(java), **more}

    def doctor(self, environ: dict[str, str], *arguments: str, ca: bool = True) -> Seen:
        """The command as a program of its own, with nothing of this shell's but the paths."""
        done = subprocess.run(
            (
                sys.executable, "-m", "valetkey.cli", "doctor", "--json",
                "--admin", f"http://127.0.0.1:{self.sidecar.admin}",
                *(("--ca-file", str(self.files / "ca.pem")) if ca else ()),
                *arguments,
            ),
            env={
                **without_ambient(),
                # The Python that has clients to be asked; no settings of git's but the tests'.
                "PATH": f"{BIN}:{os.environ['PATH']}",
                "GIT_CONFIG_GLOBAL": os.devnull,
                "GIT_CONFIG_NOSYSTEM": "1",
                **environ,
            },
            capture_output=True,
            text=True,
            timeout=110,
            check=False,
        )  # fmt: skip
        CANARIES.check(done.stdout + done.stderr, "output of valetkey doctor")
        assert done.stdout, done.stderr
        return Seen(done.returncode, json.loads(done.stdout))


@dataclass
class Seen:
    """Exit status and report."""

    status: int
    report: dict[str, Any]

    @property
    def codes(self) -> set[str]:
        """Codes of what is wrong, without their family."""
        return {
            each["code"].removeprefix("doctor.")
            for each in self.report["findings"]
            if each["level"] == "wrong"
        }

    @property
    def outcomes(self) -> dict[str, dict[str, str]]:
        """Client to scheme to outcome."""
        found: dict[str, dict[str, str]] = {}
        for call in self.report["calls"]:
            found.setdefault(call["client"], {})[call["url"].partition(":")[0]] = call["outcome"]
        return found

    def went(self) -> set[str]:
        return {call["outcome"] for call in self.report["calls"]}


@pytest.fixture(scope="module")
def site(wire_world: World, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    files = tmp_path_factory.mktemp("doctor")
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(context)
    authority.cert_pem.write_to_path(str(files / "upstream.pem"))
    token_file = files / "caller"
    token_file.write_text(TOKEN)
    CANARIES.add(TOKEN, name="token of the guarded listener", allow=[token_file])
    with Recording(context=context) as upstream:
        made = wire_world.sidecar(
            "doctor",
            {
                "plain": target(
                    f"https://localhost:{upstream.port}",
                    ca_file=str(files / "upstream.pem"),
                    allow_networks=["127.0.0.0/8", "::1/128"],
                )
            },
            routes=[{**whole("plain"), "match": {"methods": ["GET"], "path": "/a"}}],
            listeners=[
                {"bind": "127.0.0.1:0", "mode": "forward"},
                {"bind": "127.0.0.1:0", "mode": "forward", "token_file": str(token_file)},
                {"bind": "127.0.0.1:0"},
            ],
            interception={
                "certificate_file": str(files / "ca.pem"),
                "bundle_file": str(files / "bundle.pem"),
                "truststore_file": str(files / "trust.p12"),
            },
        )
        yield Site(made, upstream, files)
        assert made.defects() == []
        made.stop()


# What makes no call is not installed here; CI has all of them.
HERE = tuple(
    name
    for name in ("curl", "git", "python", "java", "go")
    if shutil.which(_PROGRAMS.get(name, name))
)
CLIENTS = {
    "curl": ("curl",),
    "git": ("git",),
    "python": ("python urllib", "python requests", "python httpx", "python aiohttp"),
    "java": ("java HttpClient",),
    "go": ("go net/http",),
}


def only(*names: str) -> list[str]:
    """Options for these runtimes, as far as they are here."""
    return [word for name in names if name in HERE for word in ("--runtime", name)]


def clients(*names: str) -> set[str]:
    return {client for name in names if name in HERE for client in CLIENTS[name]}


def _all(*names: str, went: tuple[str, str]) -> dict[str, dict[str, str]]:
    """That each client of these runtimes went these ways, by http and by https."""
    return {client: dict(zip(("http", "https"), went, strict=True)) for client in clients(*names)}


CURL = ("--runtime", "curl")


@pytest.mark.parametrize("name", CLIENTS)
def test_each_runtime_is_here(name: str) -> None:
    if name not in HERE:
        pytest.skip(f"{name} is not installed")


def test_runtimes_that_are_set_up_go_through(site: Site) -> None:
    seen = site.doctor(site.environment(), *only(*HERE))
    assert (seen.codes, seen.status) == (set(), 0)
    assert seen.outcomes == _all(*HERE, went=("through", "through"))
    assert seen.report["ok"] is True
    [listener] = seen.report["listeners"]
    assert (listener["state"], listener["leaf_verifies"]) == ("sidecar", True)
    assert site.upstream.requests == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_node_goes_through_from_the_version_on_that_can(site: Site) -> None:
    seen = site.doctor(site.environment(), "--runtime", "node")
    [runtime] = seen.report["runtimes"]
    release = tuple(map(int, runtime["version"].split(".")))
    if release >= (24, 5) or (22, 21) <= release < (23,):
        assert (seen.codes, seen.status, seen.went()) == (set(), 0, {"through"})
    else:
        assert (seen.codes, seen.status) == ({"node_ignores_proxy"}, 1)
        assert seen.outcomes["node https"] == {"http": "direct", "https": "direct"}


def test_runtimes_without_variables_go_around(site: Site) -> None:
    asked = ("curl", "git", "python", "java")
    seen = site.doctor({}, "--proxy", site.proxy(), *only(*asked))
    assert seen.status == 1
    assert seen.outcomes == _all(*asked, went=("direct", "direct"))
    own = {"java_ignores_proxy"} if "java" in HERE else set()
    assert seen.codes == {"proxy_unset", "store_without_ca"} | own


def test_runtimes_without_the_ca_trust_nobody(site: Site) -> None:
    asked = ("curl", "git", "python", "java")
    seen = site.doctor(site.environment(trust=False), *only(*asked))
    assert (seen.codes, seen.status) == ({"store_without_ca"}, 1)
    assert seen.outcomes == _all(*asked, went=("through", "untrusted"))
    told = {client for each in seen.report["findings"] for client in each["subject"].split(", ")}
    assert told >= clients(*asked)


def test_without_a_ca_file_the_calls_alone_tell(site: Site) -> None:
    seen = site.doctor(site.environment(trust=False), *CURL, ca=False)
    assert seen.codes == {"call_untrusted"}
    assert {each["code"] for each in seen.report["findings"]} >= {"doctor.ca_unknown"}


def test_the_listeners_token(site: Site) -> None:
    """It opens the listener, its absence is named, and it is in no output (a canary)."""
    environ = site.environment(proxy=site.proxy(GUARDED, TOKEN))
    good = site.doctor(environ, *only("curl", "git", "python"))
    assert (good.codes, good.went()) == (set(), {"through"})
    assert good.report["variables"]["http_proxy"].startswith("http://…@127.0.0.1:")
    missing = site.doctor(site.environment(proxy=site.proxy(GUARDED)), *CURL)
    assert (missing.codes, missing.went()) == ({"token_missing"}, {"refused"})
    wrong = site.environment(proxy=site.proxy(GUARDED, "another-token-0123456789"))
    refused = site.doctor(wrong, *CURL)
    assert (refused.codes, refused.went()) == ({"token_refused"}, {"refused"})


def test_lower_case_counts_for_curl(site: Site) -> None:
    environ = site.environment()
    del environ["http_proxy"]
    seen = site.doctor(environ, *only("curl", "go"))
    assert seen.codes == {"http_proxy_uppercase_only"}
    assert seen.outcomes["curl"] == {"http": "direct", "https": "through"}
    if "go" in HERE:
        assert seen.outcomes["go net/http"] == {"http": "through", "https": "through"}


def test_what_no_proxy_excludes_goes_around(site: Site) -> None:
    seen = site.doctor(site.environment(NO_PROXY="localhost,.invalid"), *CURL)
    assert seen.codes == {"no_proxy_target"}
    assert seen.went() == {"direct"}


def test_another_listener_of_the_sidecar_is_no_proxy(site: Site) -> None:
    seen = site.doctor(site.environment(proxy=site.proxy(REVERSE)), *CURL, "--proxy", site.proxy())
    assert seen.codes == {"proxy_elsewhere"}
    assert [each["state"] for each in seen.report["listeners"]] == ["foreign", "sidecar"]


def test_nothing_listens(site: Site) -> None:
    proxy = f"http://127.0.0.1:{free_port()}"
    seen = site.doctor(site.environment(proxy=proxy), "--proxy", proxy, *CURL)
    assert seen.codes == {"listener_unreachable"}
    assert seen.went() == {"unreachable"}


def test_a_ca_file_of_another_sidecar(site: Site, tmp_path: Path) -> None:
    other = tmp_path / "ca.pem"
    trustme.CA().cert_pem.write_to_path(str(other))
    seen = site.doctor(
        site.environment(trust=False, CURL_CA_BUNDLE=str(other)),
        *CURL, "--ca-file", str(other), ca=False,
    )  # fmt: skip
    assert "ca_mismatch" in seen.codes
    assert seen.outcomes == {"curl": {"http": "through", "https": "untrusted"}}


def test_a_url_of_a_target(site: Site) -> None:
    """It is called once, and `Via` shows which way the answer came."""
    url = f"https://localhost:{site.upstream.port}"
    seen = site.doctor(site.environment(), *CURL, "--url", f"{url}/a", "--url", f"{url}/b")
    assert (seen.codes, seen.went()) == (set(), {"through"})
    details = [call["detail"] for call in seen.report["calls"]]
    assert details == ["200 from the target", "403 route.no_match"]
    assert [request.line for request in site.upstream.requests] == [b"GET /a HTTP/1.1"]
    site.upstream.clear()


def test_settings_say_where_all_is(site: Site, tmp_path: Path) -> None:
    settings = json.loads((site.sidecar.directory / "proxy.yaml").read_text())
    ports = iter(site.sidecar.ports)
    for listener in settings["listeners"]:
        listener["bind"] = f"127.0.0.1:{next(ports)}"
    file = tmp_path / "proxy.yaml"
    file.write_text(json.dumps(settings))
    seen = site.doctor(
        site.environment(NO_PROXY="localhost"),
        "--config", str(file), *CURL, ca=False,
    )  # fmt: skip
    assert seen.codes == {"no_proxy_target"}  # the target is on localhost here
    assert seen.went() == {"through"}
    assert seen.report["ca"]["subject"].endswith("O=Valetkey interception CA")


def test_what_it_asked_is_on_record_as_refused(site: Site) -> None:
    refused = [
        event["data"]["unmapped"].get("code")
        for event in site.sidecar.events()
        if event["data"].get("action_id") == 2
    ]
    assert set(refused) <= {
        "target.no_match", "route.no_match", "caller.unauthenticated", "request.connect_denied",
        "interception.untrusted", "interception.handshake_failed",
    }  # fmt: skip

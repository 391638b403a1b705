"""Which store each client uses, and what is said of one without the CA."""

from __future__ import annotations

import pytest

from valetkey.cli.doctor.runtimes import PythonFacts, Runtime
from valetkey.cli.doctor.trust import (
    SYSTEM_FILES,
    Files,
    Holding,
    Place,
    Store,
    judge,
    stores,
    system_store,
    verification_off,
)

FILES = Files(bundle="/b.pem", ca="/ca.pem", java="/t.p12", java_password="changeit")
SYSTEM = tuple(Place("pem", path) for path in SYSTEM_FILES)
EVERY = {"requests": "2", "httpx": "0.28", "aiohttp": "3", "urllib3": "2"}
PYTHON = Runtime(
    "python",
    "/usr/bin/python3",
    "3.13.0",
    python=PythonFacts("3.13.0", "/ssl/cert.pem", "/ssl/certs", "/certifi.pem", EVERY),
)
JAVA = Runtime("java", "/usr/bin/java", "21", properties={"java.home": "/jvm"})
GO_DIRECTORIES = (Place("directory", "/etc/ssl/certs"), Place("directory", "/etc/pki/tls/certs"))


def pem(path: str, variable: str = "") -> Place:
    return Place("pem", path, variable)


def hashed(path: str, variable: str = "SSL_CERT_DIR") -> Place:
    return Place("hashed", path, variable)


def places(runtime: Runtime, **environ: str) -> dict[str, tuple[Place, ...]]:
    """The places of each client."""
    return {
        client: store.places
        for store in stores(runtime, environ, FILES)
        for client in store.clients
    }


def runtime(name: str, **config: str) -> Runtime:
    found = {f"http.{key.lower()}": value for key, value in config.items()}
    return Runtime(name, f"/usr/bin/{name}", "1.0", config=found)


RULES = [
    ("curl", runtime("curl"), {}, "curl", SYSTEM),
    ("curl's own variable", runtime("curl"), {"CURL_CA_BUNDLE": "/c", "SSL_CERT_FILE": "/s"}, "curl", (pem("/c", "CURL_CA_BUNDLE"),)),
    ("curl with OpenSSL's", runtime("curl"), {"SSL_CERT_FILE": "/s", "SSL_CERT_DIR": "/d"}, "curl", (hashed("/d"), pem("/s", "SSL_CERT_FILE"))),
    ("git", runtime("git"), {"CURL_CA_BUNDLE": "/c", "SSL_CERT_FILE": "/s"}, "git", SYSTEM),
    ("git's own variable", runtime("git", sslCAInfo="/g"), {"GIT_SSL_CAINFO": "/v"}, "git", (pem("/v", "GIT_SSL_CAINFO"),)),
    ("git's setting", runtime("git", sslCAInfo="/g"), {}, "git", (pem("/g", "git http.sslCAInfo"),)),
    ("urllib", PYTHON, {}, "python urllib", (pem("/ssl/cert.pem"), hashed("/ssl/certs", ""))),
    ("aiohttp", PYTHON, {"SSL_CERT_FILE": "/s"}, "python aiohttp", (pem("/s", "SSL_CERT_FILE"), hashed("/ssl/certs", ""))),
    ("urllib3", PYTHON, {"SSL_CERT_DIR": "/d:/e"}, "python urllib3", (pem("/ssl/cert.pem"), hashed("/d"), hashed("/e"))),
    ("httpx", PYTHON, {"REQUESTS_CA_BUNDLE": "/r"}, "python httpx", (pem("/certifi.pem"),)),
    ("httpx with a file", PYTHON, {"SSL_CERT_FILE": "/s", "SSL_CERT_DIR": "/d"}, "python httpx", (pem("/s", "SSL_CERT_FILE"),)),
    ("httpx with a directory", PYTHON, {"SSL_CERT_DIR": "/d"}, "python httpx", (hashed("/d"),)),
    ("requests", PYTHON, {"SSL_CERT_FILE": "/s"}, "python requests", (pem("/certifi.pem"),)),
    ("requests' own variable", PYTHON, {"REQUESTS_CA_BUNDLE": "/r", "CURL_CA_BUNDLE": "/c"}, "python requests", (pem("/r", "REQUESTS_CA_BUNDLE"),)),
    ("requests with curl's", PYTHON, {"CURL_CA_BUNDLE": "/c"}, "python requests", (pem("/c", "CURL_CA_BUNDLE"),)),
    ("node", runtime("node"), {"SSL_CERT_FILE": "/s"}, "node fetch", (Place("built in", ""),)),
    ("node's own variable", runtime("node"), {"NODE_EXTRA_CA_CERTS": "/n"}, "node https", (pem("/n", "NODE_EXTRA_CA_CERTS"), Place("built in", ""))),
    ("node with the system's", runtime("node"), {"NODE_USE_SYSTEM_CA": "1"}, "node fetch", (*SYSTEM, Place("built in", ""))),
    ("node with OpenSSL's", runtime("node"), {"NODE_OPTIONS": "--a --use-openssl-ca", "SSL_CERT_FILE": "/s"}, "node fetch", (pem("/s", "SSL_CERT_FILE"), Place("built in", ""))),
    ("node without", runtime("node"), {"NODE_OPTIONS": "--use-openssl-cafe", "NODE_USE_SYSTEM_CA": "0"}, "node fetch", (Place("built in", ""),)),
    ("java", JAVA, {"SSL_CERT_FILE": "/s"}, "java HttpClient", (Place("java", "/jvm/lib/security/jssecacerts"), Place("java", "/jvm/lib/security/cacerts"))),
    ("java's property", Runtime("java", "/j", "21", properties={"javax.net.ssl.trustStore": "/t", "javax.net.ssl.trustStorePassword": "pw"}), {}, "java HttpClient", (Place("java", "/t", "javax.net.ssl.trustStore", "pw"),)),
    ("go", runtime("go"), {}, "go net/http", (*SYSTEM, *GO_DIRECTORIES)),
    ("go with a file", runtime("go"), {"SSL_CERT_FILE": "/s"}, "go net/http", (pem("/s", "SSL_CERT_FILE"), *GO_DIRECTORIES)),
    ("go with directories", runtime("go"), {"SSL_CERT_DIR": "/d:/e"}, "go net/http", (*SYSTEM, Place("directory", "/d", "SSL_CERT_DIR"), Place("directory", "/e", "SSL_CERT_DIR"))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "found", "environ", "client", "expected"), RULES, ids=[case[0] for case in RULES]
)
def test_where_a_client_looks(
    name: str, found: Runtime, environ: dict[str, str], client: str, expected: tuple[Place, ...]
) -> None:
    assert places(found, **environ)[client] == expected


def test_only_clients_that_are_installed_are_judged() -> None:
    bare = Runtime("python", "/p", "3.13", python=PythonFacts("3.13", "/f", "/d"))
    assert list(places(bare)) == ["python urllib"]
    assert stores(Runtime("node", "/n", "", "it does not end"), {}, FILES) == []


# --- judgement ------------------------------------------------------------------------------------

HOLDS = Holding(readable=True, holds_ca=True, count=140)
ALONE = Holding(readable=True, holds_ca=True, count=1)
OTHERS = Holding(readable=True, count=139)
NOTHING = Holding(readable=False)
JUDGED: list[tuple[str, dict[Place, Holding], list[str]]] = [
    ("the CA among others", {pem("/a", "V"): HOLDS}, []),
    ("the CA beside others", {pem("/a", "V"): ALONE, hashed("/d"): OTHERS}, []),
    ("the CA alone", {pem("/a", "V"): ALONE}, ["store_ca_only"]),
    ("the CA alone, beside built-in roots", {pem("/a", "V"): ALONE, Place("built in", ""): Holding(readable=True)}, []),
    ("no CA", {pem("/a", "V"): OTHERS}, ["store_without_ca"]),
    ("no CA in any place", {pem("/a"): OTHERS, hashed("/d"): OTHERS}, ["store_without_ca"]),
    ("a variable that leads nowhere", {pem("/a", "V"): NOTHING}, ["store_unreadable", "store_without_ca"]),
    ("a default that is not there", {pem("/a"): NOTHING, pem("/b"): HOLDS}, []),
    ("nowhere to look", {}, ["store_without_ca"]),
]  # fmt: skip


@pytest.mark.parametrize(("name", "held", "found"), JUDGED, ids=[case[0] for case in JUDGED])
def test_stores(name: str, held: dict[Place, Holding], found: list[str]) -> None:
    store = Store(("curl",), tuple(held), "export X=/b.pem")
    judged = judge(store, lambda place: held[place])
    assert [each.kind.name for each in judged] == [f"doctor.{name}" for name in found]
    assert all("export X=/b.pem" in each.action for each in judged)


def test_what_is_said_of_a_store_without_the_ca() -> None:
    [store] = stores(runtime("node"), {"NODE_EXTRA_CA_CERTS": "/n"}, FILES)
    [finding] = judge(store, lambda _place: OTHERS)
    assert finding.subject == "node fetch, node https"
    assert finding.detail == "not in NODE_EXTRA_CA_CERTS=/n, its built-in roots"
    assert finding.action == "export NODE_EXTRA_CA_CERTS=/ca.pem"


def test_each_client_has_a_fix_of_its_own() -> None:
    fixes = {
        client: store.fix
        for each in (PYTHON, JAVA, *map(runtime, ("curl", "git", "node", "go")))
        for store in stores(each, {}, FILES)
        for client in store.clients
    }
    java = "-Djavax.net.ssl.trustStore=/t.p12 -Djavax.net.ssl.trustStorePassword=changeit"
    assert fixes == {
        "python urllib": "export SSL_CERT_FILE=/b.pem",
        "python aiohttp": "export SSL_CERT_FILE=/b.pem",
        "python urllib3": "export SSL_CERT_FILE=/b.pem",
        "python httpx": "export SSL_CERT_FILE=/b.pem",
        "python requests": "export REQUESTS_CA_BUNDLE=/b.pem",
        "java HttpClient": f'export JAVA_TOOL_OPTIONS="$JAVA_TOOL_OPTIONS {java}"',
        "curl": "export CURL_CA_BUNDLE=/b.pem",
        "git": "export GIT_SSL_CAINFO=/b.pem",
        "node fetch": "export NODE_EXTRA_CA_CERTS=/ca.pem",
        "node https": "export NODE_EXTRA_CA_CERTS=/ca.pem",
        "go net/http": "export SSL_CERT_FILE=/b.pem",
    }


def test_the_system_store_is_the_first_that_is_there() -> None:
    assert system_store(lambda path: path == SYSTEM_FILES[2]) == Place("pem", SYSTEM_FILES[2])
    assert system_store(lambda _path: False) is None


OFF = [
    ("nothing", {}, runtime("git"), []),
    ("git's variable", {"GIT_SSL_NO_VERIFY": ""}, runtime("git"), ["GIT_SSL_NO_VERIFY"]),
    ("git's setting", {}, runtime("git", sslVerify="False"), ["git http.sslVerify"]),
    ("git's setting, on", {}, runtime("git", sslVerify="true"), []),
    ("node's variable", {"NODE_TLS_REJECT_UNAUTHORIZED": "0"}, runtime("node"), ["NODE_TLS_REJECT_UNAUTHORIZED"]),
    ("node's variable, on", {"NODE_TLS_REJECT_UNAUTHORIZED": "1"}, runtime("node"), []),
    ("node's variable, no node", {"NODE_TLS_REJECT_UNAUTHORIZED": "0"}, runtime("git"), []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "environ", "found", "subjects"), OFF, ids=[case[0] for case in OFF]
)
def test_verification_that_is_off(
    name: str, environ: dict[str, str], found: Runtime, subjects: list[str]
) -> None:
    judged = list(verification_off([found], environ))
    assert [each.subject for each in judged] == subjects
    assert all(each.kind.name == "doctor.verification_off" and each.is_wrong for each in judged)

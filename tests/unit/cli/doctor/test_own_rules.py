from __future__ import annotations

import pytest

from valetkey.cli.doctor.own_rules import judge
from valetkey.cli.doctor.proxy_url import Endpoint
from valetkey.cli.doctor.runtimes import Runtime
from valetkey.cli.doctor.trust import Files
from valetkey.cli.doctor.variables import Host

SIDECARS = (Endpoint("127.0.0.1", 7072), Endpoint("127.0.0.1", 7074))
HOSTS = (Host("api.example.com", 443), Host("valetkey.invalid", 80))
FILES = Files(bundle="/b.pem", ca="/ca.pem", java="/t.p12", java_password="changeit")
OPTIONS = (
    "-Dhttp.proxyHost=127.0.0.1 -Dhttp.proxyPort=7072 -Dhttps.proxyHost=127.0.0.1 "
    "-Dhttps.proxyPort=7072 -Djavax.net.ssl.trustStore=/t.p12 "
    "-Djavax.net.ssl.trustStorePassword=changeit"
)


def java(**properties: str) -> Runtime:
    given = {
        "http.proxyHost": "127.0.0.1",
        "http.proxyPort": "7072",
        "https.proxyHost": "localhost",
        "https.proxyPort": "7074",
        **{key.replace("_", "."): value for key, value in properties.items()},
    }
    return Runtime("java", "/j", "21.0.1", properties=given)


def node(version: str) -> Runtime:
    return Runtime("node", "/n", version)


def git(**config: str) -> Runtime:
    return Runtime(
        "git", "/g", "2.47", config={f"http.{key}": each for key, each in config.items()}
    )


ON = {"NODE_USE_ENV_PROXY": "1"}
CASES = [
    ("node", node("24.5.0"), ON, []),
    ("node by option", node("24.5.0"), {"NODE_OPTIONS": "--x --use-env-proxy"}, []),
    ("node, backported", node("22.21.0"), ON, []),
    ("node, of next year", node("26.0.0"), ON, []),
    ("node without the variable", node("24.5.0"), {}, ["node_ignores_proxy"]),
    ("node with another value", node("24.5.0"), {"NODE_USE_ENV_PROXY": "true"}, ["node_ignores_proxy"]),
    ("node with another option", node("24.5.0"), {"NODE_OPTIONS": "--no-use-env-proxy"}, ["node_ignores_proxy"]),
    ("node before", node("22.20.0"), ON, ["node_ignores_proxy"]),
    ("node between", node("23.11.0"), ON, ["node_ignores_proxy"]),
    ("node whose modules ignore it", node("24.4.1"), ON, ["node_ignores_proxy"]),
    ("java", java(), {}, []),
    ("java without", Runtime("java", "/j", "21"), {}, ["java_ignores_proxy"]),
    ("java for http alone", java(https_proxyHost=""), {}, ["java_ignores_proxy"]),
    ("java elsewhere", java(http_proxyHost="proxy.example"), {}, ["java_proxy_elsewhere"]),
    ("java, another port", java(https_proxyPort="1"), {}, ["java_proxy_elsewhere"]),
    ("java, no port", java(https_proxyPort="x"), {}, ["java_proxy_elsewhere"]),
    ("java around", java(http_nonProxyHosts="localhost|*.example.com"), {}, ["java_non_proxy_hosts"]),
    ("java around all", java(http_nonProxyHosts="*"), {}, ["java_non_proxy_hosts"]),
    ("java around others", java(http_nonProxyHosts="localhost|127.*|[::1]"), {}, []),
    ("git", git(), {}, []),
    ("git's setting", git(proxy="127.0.0.1:7072"), {}, []),
    ("git elsewhere", git(proxy="http://proxy.example:3128"), {}, ["git_proxy_elsewhere"]),
    ("git by SOCKS", git(proxy="socks5://127.0.0.1:7072"), {}, ["git_proxy_elsewhere"]),
    ("git without", git(proxy=""), {}, ["git_proxy_elsewhere"]),
    ("curl", Runtime("curl", "/c", "8.0"), {}, []),
    ("one that does not run", Runtime("node", "/n", "", "exit status 2"), {}, []),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "runtime", "environ", "found"), CASES, ids=[case[0] for case in CASES]
)
def test_rules(name: str, runtime: Runtime, environ: dict[str, str], found: list[str]) -> None:
    judged = judge(runtime, environ, sidecars=SIDECARS, hosts=HOSTS, files=FILES)
    assert [each.kind.name for each in judged] == [f"doctor.{name}" for name in found]


def action(runtime: Runtime) -> tuple[str, str]:
    [finding] = judge(runtime, {}, sidecars=SIDECARS, hosts=HOSTS, files=FILES)
    return finding.detail, finding.action


def test_what_to_do_about_node() -> None:
    assert action(node("24.9.0"))[1] == "export NODE_USE_ENV_PROXY=1"
    assert "EnvHttpProxyAgent" in action(node("18.20.4"))[1]


def test_what_to_do_about_java() -> None:
    assert action(Runtime("java", "/j", "21")) == (
        "not set: http.proxyHost, https.proxyHost",
        f'export JAVA_TOOL_OPTIONS="{OPTIONS}"',
    )
    around = java(http_nonProxyHosts="x|*.INVALID")
    assert action(around) == (
        "*.INVALID excludes valetkey.invalid",
        "Take *.INVALID out of -Dhttp.nonProxyHosts",
    )


def test_gits_token_is_not_shown() -> None:
    detail, _ = action(git(proxy="http://user:secret@proxy.example:1"))
    assert detail == "it names http://proxy.example:1, the sidecar's is http://127.0.0.1:7072"

"""Runtimes with rules of their own for proxies: Node, Java, git."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from valetkey.cli.doctor import findings
from valetkey.cli.doctor.findings import Finding
from valetkey.cli.doctor.proxy_url import Endpoint, ProxyUrlError, endpoint_of, parse
from valetkey.cli.doctor.runtimes import Runtime
from valetkey.cli.doctor.trust import Files
from valetkey.cli.doctor.variables import Host

_USE_ENV_PROXY: Final = "export NODE_USE_ENV_PROXY=1"
_NODE_TOO_OLD: Final = (
    "Take Node ≥ 24.5 (or 22 from 22.21 on) and export NODE_USE_ENV_PROXY=1, or in the program: "
    "setGlobalDispatcher(new EnvHttpProxyAgent()) of the undici package"
)


def judge(
    runtime: Runtime,
    environ: Mapping[str, str],
    *,
    sidecars: Sequence[Endpoint],
    hosts: Sequence[Host],
    files: Files,
) -> list[Finding]:
    """What is wrong with a runtime's own proxy settings."""
    if runtime.trouble:
        return []
    match runtime.name:
        case "node":
            return list(_node(runtime, environ))
        case "java":
            return list(_java(runtime, sidecars, hosts, files))
        case "git":
            return list(_git(runtime, sidecars))
        case _:
            return []


def _node(runtime: Runtime, environ: Mapping[str, str]) -> Iterator[Finding]:
    subject = f"node {runtime.version}"
    release = runtime.release
    if not (release >= (24, 5) or (22, 21) <= release < (23,)):
        seen = "this version has no NODE_USE_ENV_PROXY for all of its clients"
        yield findings.NODE_IGNORES_PROXY.found(subject, seen, fix=_NODE_TOO_OLD)
    elif environ.get("NODE_USE_ENV_PROXY") != "1" and not re.search(
        r"(?:^|\s)--use-env-proxy(?:\s|$)", environ.get("NODE_OPTIONS", "")
    ):
        seen = "NODE_USE_ENV_PROXY is not 1"
        yield findings.NODE_IGNORES_PROXY.found(subject, seen, fix=_USE_ENV_PROXY)


def java_options(sidecar: Endpoint, files: Files) -> str:
    """What makes a JVM use the sidecar and trust it."""
    parts = [
        f"-D{scheme}.proxy{what}={value}"
        for scheme in ("http", "https")
        for what, value in (("Host", sidecar.host), ("Port", sidecar.port))
    ]
    return " ".join([*parts, files.java_options])


def _java(
    runtime: Runtime, sidecars: Sequence[Endpoint], hosts: Sequence[Host], files: Files
) -> Iterator[Finding]:
    subject = f"java {runtime.version}"
    options = java_options(sidecars[0], files)
    unset = [
        f"{scheme}.proxyHost"
        for scheme in ("http", "https")
        if not runtime.properties.get(f"{scheme}.proxyHost")
    ]
    if unset:
        seen = f"not set: {', '.join(unset)}"
        yield findings.JAVA_IGNORES_PROXY.found(subject, seen, options=options)
    for scheme, default in (("http", "80"), ("https", "443")):
        host = runtime.properties.get(f"{scheme}.proxyHost", "")
        if not host:
            continue
        port = runtime.properties.get(f"{scheme}.proxyPort", default)
        endpoint = endpoint_of(host, int(port) if port.isdecimal() else 0)
        if endpoint not in sidecars:
            seen = f"{scheme}.proxyHost leads to {endpoint}, the sidecar's is {sidecars[0]}"
            yield findings.JAVA_PROXY_ELSEWHERE.found(subject, seen, options=options)
    # One property for both schemes (java.net networking properties).
    for pattern in runtime.properties.get("http.nonProxyHosts", "").split("|"):
        names = [host.name for host in hosts if _matches(pattern, host.name)]
        if names:
            seen = f"{pattern} excludes {', '.join(dict.fromkeys(names))}"
            yield findings.JAVA_NON_PROXY_HOSTS.found(subject, seen, entry=pattern)


def _matches(pattern: str, host: str) -> bool:
    """``*`` stands at the beginning or the end."""
    if not pattern:
        return False
    words = ".*".join(re.escape(part) for part in pattern.lower().split("*"))
    return re.fullmatch(words, host.lower()) is not None


def _git(runtime: Runtime, sidecars: Sequence[Endpoint]) -> Iterator[Finding]:
    value = runtime.config.get("http.proxy")
    if value is None:
        return
    try:
        # git takes host:port as curl does.
        url = parse(value if "://" in value else f"http://{value}")
    except ProxyUrlError as error:
        seen = f"it is set: {error}" if value else "it is empty, which means no proxy"
        yield findings.GIT_PROXY_ELSEWHERE.found("git http.proxy", seen)
        return
    if url.endpoint not in sidecars or url.scheme != "http":
        seen = f"it names {url.scheme}://{url.endpoint}, the sidecar's is {sidecars[0].url}"
        yield findings.GIT_PROXY_ELSEWHERE.found("git http.proxy", seen)

"""The proxy variables: judged by what common clients make of them.

Lower case wins over capitals in curl, Python, Go, Node, .NET and Ruby; some read one spelling only.
An empty value is no value.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from valetkey.cli.doctor import findings, no_proxy
from valetkey.cli.doctor.findings import Finding
from valetkey.cli.doctor.proxy_url import Endpoint, ProxyUrl, ProxyUrlError, parse, shown
from valetkey.contracts.secret import Secret

PROXY_VARIABLES: Final = (
    "http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY",
)  # fmt: skip
NO_PROXY_VARIABLES: Final = ("no_proxy", "NO_PROXY")


@dataclass(frozen=True, slots=True)
class Host:
    """A host that should be called through the sidecar."""

    name: str
    port: int


@dataclass(frozen=True, slots=True)
class Variables:
    """The proxy variables of an environment: name to value, those that are not empty."""

    values: Mapping[str, str] = field(repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Variables:
        names = (*PROXY_VARIABLES, *NO_PROXY_VARIABLES)
        return cls({name: environ[name] for name in names if environ.get(name, "").strip()})

    def proxies(self) -> dict[str, ProxyUrl]:
        """Those of the proxy variables that can be read."""
        found = {}
        for name in PROXY_VARIABLES:
            if name in self.values:
                try:
                    found[name] = parse(self.values[name])
                except ProxyUrlError:
                    continue  # `judge` names it
        return found

    def endpoints(self) -> dict[Endpoint, str]:
        """Where they lead by plain HTTP, each with the first variable that says so."""
        found: dict[Endpoint, str] = {}
        for name, url in self.proxies().items():
            if url.scheme == "http":
                found.setdefault(url.endpoint, name)
        return found

    def credentials(self, endpoint: Endpoint) -> Secret | None:
        """What clients show at an endpoint: of the first variable that holds something."""
        urls = self.proxies().values()
        found = (url.credentials for url in urls if url.endpoint == endpoint and url.credentials)
        return next(found, None)

    def first(self, *names: str) -> str:
        """The first of these that is set; empty if none is."""
        return next((self.values[name] for name in names if name in self.values), "")

    def shown(self) -> dict[str, str]:
        """All of them, without tokens."""
        return {name: shown(value) for name, value in self.values.items()}


def judge(
    variables: Variables,
    *,
    sidecars: Sequence[Endpoint],
    hosts: Sequence[Host],
    cgi: bool,
) -> list[Finding]:
    """What is wrong with them.

    ``sidecars`` are the forward listeners that the variables may name, the one to recommend first.
    ``cgi``: whether REQUEST_METHOD is set.
    """
    proxy = sidecars[0].url
    found = [
        *_unset(variables, proxy),
        *_values(variables, sidecars),
        *_spellings(variables),
        *_exclusions(variables, hosts),
    ]
    if cgi:
        found.append(findings.REQUEST_METHOD_SET.found("REQUEST_METHOD", "it is set"))
    return found


def _unset(variables: Variables, proxy: str) -> Iterator[Finding]:
    http = variables.first("http_proxy", "HTTP_PROXY")
    https = variables.first("https_proxy", "HTTPS_PROXY")
    everything = variables.first("all_proxy", "ALL_PROXY")
    seen = (
        "ALL_PROXY is set, but Go, Node and others do not read it"
        if everything
        else "it is not set"
    )
    if not http and not https:
        yield findings.PROXY_UNSET.found("HTTP_PROXY, HTTPS_PROXY", seen, proxy=proxy)
    elif not http:
        yield findings.HTTP_PROXY_UNSET.found("HTTP_PROXY", seen, proxy=proxy)
    elif not https:
        yield findings.HTTPS_PROXY_UNSET.found("HTTPS_PROXY", seen, proxy=proxy)
    if variables.first("HTTP_PROXY") and not variables.first("http_proxy"):
        yield findings.HTTP_PROXY_UPPERCASE_ONLY.found("HTTP_PROXY", "http_proxy is not set")


def _values(variables: Variables, sidecars: Sequence[Endpoint]) -> Iterator[Finding]:
    proxy = sidecars[0].url
    for name in PROXY_VARIABLES:
        if name not in variables.values:
            continue
        try:
            url = parse(variables.values[name])
        except ProxyUrlError as error:
            yield findings.PROXY_MALFORMED.found(name, str(error), variable=name, proxy=proxy)
            continue
        if url.scheme != "http":
            seen = f"it begins with {url.scheme}://"
            yield findings.PROXY_SCHEME.found(name, seen, variable=name, proxy=proxy)
        elif url.endpoint not in sidecars:
            seen = f"it names {url.endpoint}, the sidecar's is {sidecars[0]}"
            yield findings.PROXY_ELSEWHERE.found(name, seen, variable=name, proxy=proxy)


def _spellings(variables: Variables) -> Iterator[Finding]:
    for lower in ("http_proxy", "https_proxy", "all_proxy"):
        upper = lower.upper()
        if _differ(variables, lower):
            seen = f"{lower} and {upper} are not the same"
            yield findings.PROXY_SPELLINGS_DIFFER.found(
                f"{lower}, {upper}", seen, lower=lower, upper=upper
            )
    if _differ(variables, "no_proxy"):
        seen = "no_proxy and NO_PROXY are not the same"
        yield findings.NO_PROXY_SPELLINGS_DIFFER.found("no_proxy, NO_PROXY", seen)


def _differ(variables: Variables, lower: str) -> bool:
    one, other = variables.first(lower), variables.first(lower.upper())
    return bool(one and other) and one != other


def _exclusions(variables: Variables, hosts: Sequence[Host]) -> Iterator[Finding]:
    for name in NO_PROXY_VARIABLES:
        value = variables.first(name)
        if no_proxy.EVERYTHING in no_proxy.entries(value):
            yield findings.NO_PROXY_EVERYTHING.found(name, "it holds *", variable=name)
        seen: dict[str, list[str]] = {}
        for host in hosts:
            if entry := no_proxy.excluding(value, host.name, host.port):
                seen.setdefault(entry, []).append(host.name)
        for entry, names in seen.items():
            what = f"{entry} excludes {', '.join(dict.fromkeys(names))} for some clients"
            yield findings.NO_PROXY_TARGET.found(name, what, variable=name, entry=entry)

"""The whole examination: facts are gathered, judged, and put together into one report.

A cause is reported once. Where a finding explains why calls failed (no proxy set, no CA in a trust
store), the failed calls stand in the table of calls and add no finding of their own; where a call
went well, what its client's settings made doubtful is not held against them.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from valetkey.cli.doctor import calls, findings, own_rules, runtimes, sidecar, trust, variables
from valetkey.cli.doctor.certificates import Authority, NoAuthority, authority_in
from valetkey.cli.doctor.findings import Finding, Kind
from valetkey.cli.doctor.outcome import Judged, Outcome, judge
from valetkey.cli.doctor.proxy_url import Endpoint, Redaction
from valetkey.cli.doctor.runtimes import Runtime
from valetkey.cli.doctor.sidecar import Listener
from valetkey.cli.doctor.store_files import StoreFiles
from valetkey.cli.doctor.trust import Files, Store
from valetkey.cli.doctor.variables import Variables
from valetkey.cli.doctor.where import Where, host_of
from valetkey.contracts.diagnosis import DIAGNOSIS_HOST

DEFAULT_URLS: Final = (f"http://{DIAGNOSIS_HOST}/", f"https://{DIAGNOSIS_HOST}/")
# The sidecar is on the same host: what takes longer does not answer.
_PATIENCE: Final = 5.0


@dataclass(frozen=True, slots=True)
class Plan:
    """What to examine. ``timeout``: seconds for each live call.

    ``transparent``: the kernel leads calls to the sidecar, so there is no proxy to look for, and
    ``urls`` are of hosts that can be resolved.
    """

    where: Where
    urls: tuple[str, ...] = DEFAULT_URLS
    names: tuple[str, ...] = runtimes.NAMES
    make_calls: bool = True
    timeout: float = 10.0
    transparent: bool = False


@dataclass(frozen=True, slots=True)
class Report:
    """Everything that was seen and found. ``sidecars``: the listeners that were taken for one."""

    variables: Variables
    sidecars: tuple[Endpoint, ...]
    listeners: dict[Endpoint, Listener]
    authority: Authority | None
    runtimes: tuple[Runtime, ...]
    calls: tuple[Judged, ...] = ()
    findings: tuple[Finding, ...] = field(default=())

    @property
    def is_good(self) -> bool:
        return not any(finding.is_wrong for finding in self.findings)


def examine(plan: Plan, environ: Mapping[str, str], now: dt.datetime) -> Report:
    """Look at everything; takes as long as the slowest runtime."""
    where = plan.where
    found: list[Finding] = []
    given = Variables.of(environ)
    present = runtimes.find(plan.names)
    authority, about_ca = read_authority(where.ca_file, now)

    listeners: dict[Endpoint, Listener] = {}
    sidecars: tuple[Endpoint, ...] = ()
    if not plan.transparent:
        listeners = _ask(given, where, where.ca_file if authority else None)
        sidecars = choose(where, listeners)
        found += _about_the_way(plan, given, environ, present, sidecars)
        for endpoint, variable in to_judge(given, sidecars).items():
            found += sidecar.judge_listener(endpoint, variable, listeners[endpoint])
    found += [
        findings.RUNTIME_UNUSABLE.found(f"{each.name} {each.executable}", each.trouble)
        for each in present
        if each.trouble
    ]
    if where.admin:
        found += sidecar.judge_admin(where.admin, sidecar.ask_admin(where.admin, timeout=_PATIENCE))
    found += about_ca
    found += trust.verification_off(present, environ)
    stores = [store for runtime in present for store in trust.stores(runtime, environ, where.files)]
    if authority is not None:
        found += _stores(stores, StoreFiles(authority.der))

    redact = Redaction(given.values.values())
    made = (
        calls.make(present, plan.urls, timeout=plan.timeout, redact=redact)
        if plan.make_calls
        else []
    )
    found += [
        findings.RUNTIME_NOT_CALLED.found(
            f"{each.runtime.name} {each.runtime.version}", each.trouble
        )
        for each in made
        if each.trouble
    ]
    judged = [judge(call) for each in made for call in each.calls]
    found = refuted(found, judged)
    found += about_calls(judged, found, stores, where.files)
    return Report(
        given, sidecars, listeners, authority, tuple(present), tuple(judged), tuple(found)
    )


def _about_the_way(
    plan: Plan,
    given: Variables,
    environ: Mapping[str, str],
    present: Sequence[Runtime],
    sidecars: Sequence[Endpoint],
) -> list[Finding]:
    """What is wrong with the variables, and with what runtimes have in their place."""
    hosts = (*plan.where.hosts, *(host_of(url) for url in plan.urls))
    cgi = "REQUEST_METHOD" in environ
    found = variables.judge(given, sidecars=sidecars, hosts=hosts, cgi=cgi)
    for runtime in present:
        found += own_rules.judge(
            runtime, environ, sidecars=sidecars, hosts=hosts, files=plan.where.files
        )
    return found


def read_authority(file: Path | None, now: dt.datetime) -> tuple[Authority | None, list[Finding]]:
    """The interception CA's certificate, if there is one to be had, and what is wrong with it."""
    if file is None:
        return None, [findings.CA_UNKNOWN.found("interception CA", "no file was named")]
    try:
        authority = authority_in(file.read_bytes())
    except (OSError, NoAuthority) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        return None, [findings.CA_UNREADABLE.found(str(file), reason or type(error).__name__)]
    if not authority.holds_at(now):
        seen = f"valid from {authority.begins:%Y-%m-%d %H:%M} to {authority.ends:%Y-%m-%d %H:%M}"
        return authority, [findings.CA_EXPIRED.found(str(file), f"{seen} UTC")]
    return authority, []


def _ask(given: Variables, where: Where, ca_file: Path | None) -> dict[Endpoint, Listener]:
    """What answers where variables lead and where the sidecar was said to be.

    The default listener is asked only if nobody named another one that is a sidecar's.
    """
    asked: dict[Endpoint, Listener] = {}

    def ask(endpoint: Endpoint) -> None:
        credentials = given.credentials(endpoint)
        asked[endpoint] = sidecar.ask_listener(endpoint, credentials, ca_file, timeout=_PATIENCE)

    for endpoint in given.endpoints():
        ask(endpoint)
    if where.stated or not _proven(asked):
        for endpoint in where.listeners:
            if endpoint not in asked:
                ask(endpoint)
    return asked


def _proven(listeners: Mapping[Endpoint, Listener]) -> tuple[Endpoint, ...]:
    return tuple(
        endpoint
        for endpoint, listener in listeners.items()
        if listener.state not in {"unreachable", "foreign"}
    )


def choose(where: Where, listeners: Mapping[Endpoint, Listener]) -> tuple[Endpoint, ...]:
    """Which of the listeners that were asked are the sidecar's, as far as anybody can say.

    What was stated holds. Otherwise each that answers as one; failing that, the default.
    """
    return where.listeners if where.stated else _proven(listeners) or where.listeners


def to_judge(given: Variables, sidecars: Sequence[Endpoint]) -> dict[Endpoint, str]:
    """The listeners that count, each with a variable to name it by.

    Those of the sidecar's that variables lead to; if there are none, the first.
    """
    used = {
        endpoint: variable
        for endpoint, variable in given.endpoints().items()
        if endpoint in sidecars
    }
    return used or {sidecars[0]: "http_proxy"}


def _stores(stores: Sequence[Store], files: StoreFiles) -> list[Finding]:
    found = [finding for store in stores for finding in trust.judge(store, files.read)]
    system = trust.system_store(lambda path: Path(path).is_file())
    if system is not None and not files.read(system).holds_ca:
        found.append(
            findings.SYSTEM_STORE_WITHOUT_CA.found(
                system.path, "the CA is not among its certificates"
            )
        )
    # One variable can be wrong for several clients.
    return list(dict.fromkeys(found))


# --- calls and the findings that explain them -----------------------------------------------------

_HTTP_UNSET: Final = frozenset({
    findings.PROXY_UNSET, findings.HTTP_PROXY_UNSET, findings.HTTP_PROXY_UPPERCASE_ONLY,
    findings.REQUEST_METHOD_SET, findings.NO_PROXY_EVERYTHING, findings.NO_PROXY_TARGET,
})  # fmt: skip
_HTTPS_UNSET: Final = frozenset({
    findings.PROXY_UNSET, findings.HTTPS_PROXY_UNSET, findings.NO_PROXY_EVERYTHING,
    findings.NO_PROXY_TARGET,
})  # fmt: skip
_REFUSING: Final = frozenset({
    findings.TOKEN_MISSING, findings.TOKEN_REFUSED, findings.LISTENER_REFUSES,
})  # fmt: skip
_ELSEWHERE: Final = frozenset({findings.PROXY_ELSEWHERE, findings.LISTENER_FOREIGN})
_OWN_ELSEWHERE: Final = frozenset({findings.JAVA_PROXY_ELSEWHERE, findings.GIT_PROXY_ELSEWHERE})
_OWN: Final = {
    "node": frozenset({findings.NODE_IGNORES_PROXY}),
    "java": frozenset({
        findings.JAVA_IGNORES_PROXY, findings.JAVA_PROXY_ELSEWHERE, findings.JAVA_NON_PROXY_HOSTS,
    }),
    "git": frozenset({findings.GIT_PROXY_ELSEWHERE}),
}  # fmt: skip


def refuted(found: Iterable[Finding], judged: Sequence[Judged]) -> list[Finding]:
    """``found`` without what live calls showed not to be so."""
    trusted = {
        each.call.client
        for each in judged
        if each.outcome == "through" and each.call.url.startswith("https:")
    }
    well = {
        name
        for name in ("node", "java", "git")
        if (own := [each for each in judged if each.call.client.split()[0] == name])
        and all(each.outcome == "through" for each in own)
    }
    return [
        finding
        for finding in found
        if not (
            finding.kind == findings.STORE_WITHOUT_CA and trusted & set(finding.subject.split(", "))
        )
        and not any(finding.kind in _OWN[name] for name in well)
    ]


def about_calls(
    judged: Sequence[Judged], found: Sequence[Finding], stores: Sequence[Store], files: Files
) -> list[Finding]:
    """Findings for calls that did not go through and that nothing in ``found`` explains."""
    kinds = {finding.kind for finding in found}
    groups: dict[tuple[Outcome, str], list[Judged]] = {}
    for each in judged:
        if each.outcome != "through" and not _explained(each, kinds, found):
            fix = _fix(each, stores, files)
            groups.setdefault((each.outcome, fix), []).append(each)
    return [
        _KINDS[outcome].found(
            ", ".join(dict.fromkeys(each.call.client for each in group)),
            f"{group[0].call.url}: {group[0].detail}",
            **({"fix": fix} if fix else {}),
        )
        for (outcome, fix), group in groups.items()
    ]


_KINDS: Final[dict[Outcome, Kind]] = {
    "direct": findings.CALL_DIRECT,
    "untrusted": findings.CALL_UNTRUSTED,
    "refused": findings.CALL_REFUSED,
    "unreachable": findings.CALL_UNREACHABLE,
    "elsewhere": findings.CALL_ELSEWHERE,
    "timeout": findings.CALL_TIMEOUT,
    "failed": findings.CALL_FAILED,
}


def _explained(each: Judged, kinds: set[Kind], found: Sequence[Finding]) -> bool:
    secure = each.call.url.startswith("https:")
    own = _OWN.get(each.call.client.split()[0], frozenset())
    elsewhere = bool(kinds & (_ELSEWHERE | (own & _OWN_ELSEWHERE)))
    match each.outcome:
        case "direct":
            return bool(kinds & ((_HTTPS_UNSET if secure else _HTTP_UNSET) | own))
        case "untrusted":
            return findings.CA_MISMATCH in kinds or any(
                finding.kind == findings.STORE_WITHOUT_CA
                and each.call.client in finding.subject.split(", ")
                for finding in found
            )
        case "refused":
            shut = secure and findings.INTERCEPTION_OFF in kinds
            return shut or elsewhere or bool(kinds & _REFUSING)
        case "unreachable":
            return elsewhere or findings.LISTENER_UNREACHABLE in kinds
        case "elsewhere":
            return elsewhere
        case _:
            return False


def _fix(each: Judged, stores: Sequence[Store], files: Files) -> str:
    """What to do where that depends on the client or on what it was told."""
    if each.outcome == "untrusted":
        store = next((store for store in stores if each.call.client in store.clients), None)
        return store.fix if store else f"Give this client {files.bundle} as its trust store"
    if each.outcome == "refused":
        if "407" in each.detail or "Proxy Authentication Required" in each.detail:
            if each.call.client.startswith("java"):
                return (
                    "Java wants -Djdk.http.auth.tunneling.disabledSchemes= and an Authenticator "
                    "with the listener's token"
                )
            return "Put the listener's token into the proxy variable that this client reads"
        return "See the status: 403, no target or no interception; 405, not a forward listener"
    return ""

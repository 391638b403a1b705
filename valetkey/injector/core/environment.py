"""Variables: the sidecar's settings, and how the workload's runtimes find sidecar and CA.

The sidecar reads one file, of which variables stand for sections (`valetkey.contracts.settings`).
The file is the operator's, or the namespace's; every section but those that it may have is given by
a variable, so nothing else that is written into it counts.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

from valetkey.contracts import settings
from valetkey.injector.core import names
from valetkey.injector.settings import InjectedSidecarSettings, Mode
from valetkey.proxy.settings import (
    AdminSettings,
    IdentitySettings,
    InterceptionSettings,
    ListenerSettings,
    OwnerSettings,
    ProxySettings,
    SpoolSettings,
    WorkloadSettings,
)

# What docs/how-to/trust-the-sidecar.md and the doctor's table of clients say of each runtime.
_BUNDLE: Final = (
    "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE", "GIT_SSL_CAINFO",
    "AWS_CA_BUNDLE",
)  # fmt: skip
# Two spellings of one variable: a client reads one of them, so whoever sets one has set both.
_PROXIES: Final = (("http_proxy", "HTTP_PROXY"), ("https_proxy", "HTTPS_PROXY"))
_NO_PROXY: Final = ("no_proxy", "NO_PROXY")
_PASSWORD: Final = "changeit"  # noqa: S105 - Java's, and all in that file is public
_OF_THE_FILE: Final = frozenset({"routes", "targets", "passthrough"})


def loopback(families: tuple[str, ...]) -> tuple[str, ...]:
    """The loopback addresses of these families, as they stand before a port."""
    return tuple("[::1]" if family == "IPv6" else "127.0.0.1" for family in families)


def of_workload(
    sidecar: InjectedSidecarSettings, mode: Mode, families: tuple[str, ...]
) -> tuple[tuple[tuple[str, ...], str], ...]:
    """What each container of the workload is given: names of one meaning, and their value."""
    if mode == "reverse":
        return ()
    host = loopback(families)[0]
    bundle = f"{names.TRUST_DIR}/bundle.pem"
    java = [
        f"-Djavax.net.ssl.trustStore={names.TRUST_DIR}/trust.p12",
        f"-Djavax.net.ssl.trustStorePassword={_PASSWORD}",
    ]
    found: list[tuple[tuple[str, ...], str]] = []
    if mode == "forward":
        url = f"http://{host}:{names.FORWARD_PORT}"
        found += [(spellings, url) for spellings in _PROXIES]
        found += [
            (_NO_PROXY, ",".join(sidecar.no_proxy)),
            (("wss_proxy",), url),  # aiohttp's WebSockets
            (("NODE_USE_ENV_PROXY",), "1"),
        ]
        for scheme in ("http", "https"):
            java += [
                f"-D{scheme}.proxyHost={host.strip('[]')}",
                f"-D{scheme}.proxyPort={names.FORWARD_PORT}",
            ]
    found += [((name,), bundle) for name in _BUNDLE]
    found += [
        (("NODE_EXTRA_CA_CERTS",), f"{names.TRUST_DIR}/ca.pem"),
        (("JAVA_TOOL_OPTIONS",), " ".join(java)),
    ]
    return tuple(found)


def of_sidecar(
    sidecar: InjectedSidecarSettings,
    mode: Mode,
    families: tuple[str, ...],
    targets: tuple[str, ...] | None,
    *,
    narrowed: bool,
) -> list[dict[str, str]]:
    """The sidecar's own: all sections but those that are left to the file, as JSON.

    ``targets`` are the names of those that the pod chose, ``narrowed`` says that the namespace's
    owner has a file beside the operator's.
    """
    whole = settings.plain(_settings(sidecar, mode, families, targets, narrowed=narrowed))
    given = set(ProxySettings.__struct_fields__) - _OF_THE_FILE
    if sidecar.operator is None:
        if sidecar.targets is not None:
            given.add("targets")
        if sidecar.passthrough is not None:
            given.add("passthrough")
    return [
        {"name": f"VALETKEY_PROXY__{key.upper()}", "value": _compact(whole[key])}
        for key in sorted(given)
    ]


def _compact(value: Any) -> str:
    """JSON that is YAML as well, and that the kubelet leaves alone: ``$(`` would be a reference."""
    return json.dumps(value, separators=(",", ":"), sort_keys=True).replace("$(", "\\u0024(")


def _settings(
    sidecar: InjectedSidecarSettings,
    mode: Mode,
    families: tuple[str, ...],
    targets: tuple[str, ...] | None,
    *,
    narrowed: bool,
) -> ProxySettings:
    ca_file = Path(f"{names.ANCHORS_DIR}/{sidecar.trust.key}") if sidecar.trust else None
    broker = _with(sidecar.broker, ca_file=ca_file)
    collector = None
    if sidecar.collector is not None:
        token = IdentitySettings(file=Path(f"{names.TOKEN_DIR}/collector-token"))
        collector = _with(sidecar.collector, ca_file=ca_file, identity=token)
    catalogue = sidecar.targets or {}
    chosen = catalogue
    owner = None
    if sidecar.operator is None:
        chosen = catalogue if targets is None else {name: catalogue[name] for name in targets}
    elif narrowed or targets is not None:
        file = Path(f"{names.ROUTES_DIR}/{sidecar.operator.owner_key}") if narrowed else None
        owner = OwnerSettings(file=file, targets=targets)
    return ProxySettings(
        workload=WorkloadSettings(identity=IdentitySettings(file=Path(f"{names.TOKEN_DIR}/token"))),
        broker=broker,
        collector=collector,
        spool=SpoolSettings(dir=Path(f"{names.SPOOL_DIR}/spool"), max_size=sidecar.spool),
        listeners=_listeners(mode, families),
        interception=None if mode == "reverse" else _interception(),
        # The kubelet calls from outside of the pod.
        admin=AdminSettings(
            bind=f"{'[::]' if families[0] == 'IPv6' else '0.0.0.0'}:{names.ADMIN_PORT}"  # noqa: S104
        ),
        targets=chosen,
        routes=(),
        passthrough=sidecar.passthrough or (),
        owner=owner,
        network=sidecar.network,
        limits=sidecar.limits,
        timeouts=sidecar.timeouts,
        log_level=sidecar.log_level,
    )


def _listeners(mode: Mode, families: tuple[str, ...]) -> tuple[ListenerSettings, ...]:
    hosts = loopback(families)
    if mode == "transparent":
        return tuple(
            ListenerSettings(bind=f"{host}:{names.TRANSPARENT_PORT}", mode=mode) for host in hosts
        )
    port = names.FORWARD_PORT if mode == "forward" else names.REVERSE_PORT
    return (ListenerSettings(bind=f"{hosts[0]}:{port}", mode=mode),)


def _interception() -> InterceptionSettings:
    return InterceptionSettings(
        key_file=Path(f"{names.PRIVATE_DIR}/ca.key"),
        certificate_file=Path(f"{names.TRUST_DIR}/ca.pem"),
        bundle_file=Path(f"{names.TRUST_DIR}/bundle.pem"),
        truststore_file=Path(f"{names.TRUST_DIR}/trust.p12"),
        truststore_password=_PASSWORD,
    )


def _with(section: Any, **changes: Any) -> Any:
    kept = {name: getattr(section, name) for name in section.__struct_fields__}
    return type(section)(**{**kept, **changes})

"""The injector's settings: what every injected sidecar is given, and how the webhook is served.

The sidecar's sections are the sidecar's own types, so that what is written into a pod is what the
program there reads.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Literal

from msgspec import Meta, field

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.service import TlsSettings, address
from valetkey.contracts.settings import Duration, Settings, Size, duration, pattern, size
from valetkey.injector.core.quantity import amount
from valetkey.proxy.settings import (
    BrokerSettings,
    CollectorSettings,
    LimitSettings,
    Name,
    NetworkSettings,
    PassthroughSettings,
    TargetSettings,
    TimeoutSettings,
)

# RFC 1123: a label of at most 63 characters, a subdomain of at most 253.
LABEL: Final = r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN: Final = rf"{LABEL}(\.{LABEL})*"
Label = Annotated[str, pattern(LABEL)]
ObjectName = Annotated[str, pattern(_SUBDOMAIN), Meta(max_length=253)]
# Kubernetes: a key of a ConfigMap.
FileKey = Annotated[str, pattern(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,252}")]
Image = Annotated[str, pattern(r"[A-Za-z0-9][A-Za-z0-9._:/@-]{0,511}")]
AbsolutePath = Annotated[str, pattern(r"/[A-Za-z0-9._/-]{1,255}")]
Amount = Annotated[str, pattern(r"[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?"), Meta(max_length=20)]
Uid = Annotated[int, Meta(ge=1, le=2_147_483_647)]
_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
Mode = Literal["forward", "reverse", "transparent"]


class AmountSettings(Settings, frozen=True, kw_only=True, omit_defaults=True):
    """Quantities as Kubernetes writes them: ``50m``, ``96Mi``."""

    cpu: Amount | None = None
    memory: Amount | None = None
    ephemeral_storage: Amount | None = field(default=None, name="ephemeral-storage")


class ResourceSettings(Settings, frozen=True, kw_only=True):
    """What the sidecar's container asks for and may use at most."""

    requests: AmountSettings = field(
        default_factory=lambda: AmountSettings(cpu="50m", memory="96Mi")
    )
    limits: AmountSettings = field(default_factory=lambda: AmountSettings(memory="256Mi"))

    def __post_init__(self) -> None:
        for name in AmountSettings.__struct_fields__:
            least, most = getattr(self.requests, name), getattr(self.limits, name)
            if least is not None and most is not None and amount(least) > amount(most):
                raise ValueError(f"requests.{name} is more than limits.{name}")


class FileInConfigMapSettings(Settings, frozen=True, kw_only=True):
    """A ConfigMap in the pod's own namespace, and the key in it."""

    config_map: ObjectName
    key: FileKey


class OperatorLayerSettings(Settings, frozen=True, kw_only=True):
    """Targets and routes of the operator for every sidecar, changed while pods run.

    ``config_map`` is in the injector's namespace and has the operator's file under ``key``. The
    injector keeps a copy of that name in each namespace with the labels ``namespaces``; nobody
    else may write it (the validating webhook), and pods there wait for it. ``check_every`` is how
    often it looks. What was good last stays in the ConfigMap ``NAME-in-force`` beside it.

    ``owner`` is the ConfigMap of the pod's namespace with the file that narrows it, under
    ``owner_key``, where the pod names none (``valetkey/routes``). Left out: a pod that names none
    may do all that the operator's file allows.
    """

    config_map: Annotated[str, pattern(_SUBDOMAIN), Meta(max_length=240)] = "valetkey-operator"
    key: FileKey = "operator.yaml"
    namespaces: Annotated[str, pattern(r"[A-Za-z0-9._/-]{1,253}=[A-Za-z0-9._-]{1,63}")] = (
        "valetkey/inject=enabled"
    )
    owner: ObjectName | None = None
    owner_key: FileKey = "routes.yaml"
    check_every: Duration = duration(10)

    def __post_init__(self) -> None:
        if self.owner == self.config_map:
            raise ValueError("owner: a namespace's owner can't write the operator's file")
        if not 0.05 <= self.check_every <= 600:
            raise ValueError("check_every is between 50ms and 10m")

    @property
    def in_force(self) -> str:
        """The ConfigMap with what was good last."""
        return f"{self.config_map}-in-force"


class InjectedSidecarSettings(Settings, frozen=True, kw_only=True):
    """What the sidecar in each pod is, and what its settings say.

    ``image`` should be named by digest. ``python`` is the interpreter in it, ``uid`` the user that
    it runs as. ``mode`` is how calls get in where the pod does not say. ``startup`` is how long the
    pod waits for it.

    ``operator`` has targets and routes for every pod, which owners of namespaces can narrow.
    Without it, operators list targets here, and each namespace writes routes for them:

    ``routes`` is the file with ``routes`` (and ``targets`` and ``passthrough``, as far as they are
    left to it), where the pod names no other ConfigMap. ``targets`` are those that pods may choose
    from, all of them if they choose none; ``null`` leaves them to the file. ``passthrough`` holds
    for every pod; ``null`` leaves it to the file. All other sections are the ones here, whatever
    the file says.

    ``trust`` is the file with the CA of broker and collector; without it their certificates must
    be of the system's roots. ``audience`` is whom the workload's token is for: the broker's URL if
    left out. ``collector_audience``: the same for the collector. ``no_proxy`` lists what the
    workload calls without the sidecar.
    """

    image: Image
    broker: BrokerSettings
    pull_policy: Literal["IfNotPresent", "Always", "Never"] = "IfNotPresent"
    python: Annotated[str, pattern(r"[A-Za-z0-9._/-]{1,255}")] = "python3"
    uid: Uid = 64_707
    mode: Mode = "forward"
    startup: Duration = duration(120)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    routes: FileInConfigMapSettings = field(
        default_factory=lambda: FileInConfigMapSettings(
            config_map="valetkey-routes", key="proxy.yaml"
        )
    )
    operator: OperatorLayerSettings | None = None
    trust: FileInConfigMapSettings | None = None
    audience: Annotated[str, Meta(min_length=1)] | None = None
    collector: CollectorSettings | None = None
    collector_audience: Annotated[str, Meta(min_length=1)] | None = None
    targets: Annotated[dict[Name, TargetSettings], Meta(min_length=1)] | None = None
    passthrough: tuple[PassthroughSettings, ...] | None = ()
    no_proxy: tuple[Annotated[str, pattern(r"[A-Za-z0-9.:/*\[\]-]{1,253}")], ...] = (
        "localhost",
        "127.0.0.1",
        "::1",
    )
    spool: Size = size(256 << 20)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    limits: LimitSettings = field(default_factory=LimitSettings)
    timeouts: TimeoutSettings = field(default_factory=TimeoutSettings)
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        if self.operator is not None and (self.targets is not None or self.passthrough):
            raise ValueError("operator: targets and passthrough are in its file then")
        if self.broker.ca_file is not None or (self.collector and self.collector.ca_file):
            raise ValueError("ca_file: pods have no such file; name a ConfigMap in trust")
        if self.collector is not None and self.collector.identity is not None:
            raise ValueError("collector.identity: the injector mounts it; see collector_audience")
        if self.broker.mtls_url is not None:
            raise ValueError("broker.mtls_url: it needs an X.509-SVID, which pods are not given")
        if self.collector is None and self.collector_audience is not None:
            raise ValueError("collector_audience: there is no collector")
        if self.token_audience == self.collector_token_audience:
            raise ValueError("collector_audience: the collector could use the broker's token")
        if not 1 <= self.startup <= 3600:
            raise ValueError("startup is between 1s and 1h")
        if self.spool < 16 << 20:
            raise ValueError("spool is 16MiB at least")

    @property
    def token_audience(self) -> str:
        return self.audience or self.broker.url.rstrip("/")

    @property
    def collector_token_audience(self) -> str | None:
        if self.collector is None:
            return None
        return self.collector_audience or self.collector.url.rstrip("/")


class RedirectSettings(Settings, frozen=True, kw_only=True):
    """The init container that leads connections to the sidecar, for ``mode: transparent``.

    ``image`` has a POSIX shell, ``nft`` or ``iptables``, and ``config/redirect/redirect.sh`` as
    ``script``. ``ports``, ``dns`` and ``loopback`` are the script's.
    """

    image: Image
    script: AbsolutePath = "/usr/local/bin/redirect.sh"
    ports: Annotated[str, pattern(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")] = (
        "80,443"
    )
    dns: Annotated[str, pattern(r"none|resolv\.conf|[0-9A-Fa-f:.,]+")] = "resolv.conf"
    loopback: Annotated[str, pattern(r"([0-9]{1,5}(-[0-9]{1,5})?,?)*")] = ""


class PodSettings(Settings, frozen=True, kw_only=True):
    """What is done with pods.

    ``kubernetes`` is the cluster's version (``1.31``): before 1.29 the sidecar is a container among
    the others. Left out, the webhook asks the API server, and ``valetkey inject`` takes a new
    cluster for granted. ``excluded`` namespaces get no sidecar, the injector's own neither.
    ``opt_out``: whether a pod may say that it wants none.

    ``api_access: withdraw`` takes the Kubernetes API's token from pods that do not ask for it
    (``automountServiceAccountToken: true``); ``keep`` leaves it. ``ip_families`` are the
    cluster's, its first one first.
    """

    kubernetes: Annotated[str, pattern(r"1\.[1-9][0-9]{0,2}")] | None = None
    excluded: tuple[Label, ...] = ("kube-system", "kube-public", "kube-node-lease")
    opt_out: bool = True
    api_access: Literal["withdraw", "keep"] = "withdraw"
    ip_families: Annotated[
        tuple[Literal["IPv4", "IPv6"], ...], Meta(min_length=1, max_length=2)
    ] = ("IPv4",)

    def __post_init__(self) -> None:
        if len(set(self.ip_families)) != len(self.ip_families):
            raise ValueError("ip_families: one of them is there twice")


class OwnCertificateSettings(Settings, frozen=True, kw_only=True):
    """Certificates that the injector makes, keeps in a Secret and renews.

    ``service`` is the webhook's Service, ``secret`` the Secret, both in the injector's namespace.
    ``mutating`` and ``validating`` are the webhook configurations that trust them (left out: there
    is none). A new CA is trusted for ``overlap`` before anything is signed by it, and the old one
    for as long after. ``check_every`` is how often each replica looks.
    """

    service: Label
    secret: ObjectName = "valetkey-injector-tls"  # noqa: S105 - its name
    mutating: ObjectName | None = None
    validating: ObjectName | None = None
    ca_lifetime: Duration = duration(90 * 86_400)
    leaf_lifetime: Duration = duration(7 * 86_400)
    overlap: Duration = duration(3600)
    check_every: Duration = duration(60)

    def __post_init__(self) -> None:
        # A CA has to outlive what it signed, and a replica to see a new one before it counts.
        if self.check_every < 0.05 or self.overlap < 4 * self.check_every:
            raise ValueError("overlap is four times check_every at least")
        if self.leaf_lifetime < 4 * self.overlap or self.ca_lifetime < 4 * self.leaf_lifetime:
            raise ValueError("leaf_lifetime is 4 × overlap at least, ca_lifetime 4 × leaf_lifetime")


class ApiServerSettings(Settings, frozen=True, kw_only=True):
    """The Kubernetes API. All left out, it is the one of the pod that the injector runs in."""

    url: Annotated[str, pattern(r"https://[^\s?#]+")] | None = None
    namespace: Label | None = None
    token_file: Path = field(default_factory=lambda: _ACCOUNT / "token")
    ca_file: Path = field(default_factory=lambda: _ACCOUNT / "ca.crt")
    namespace_file: Path = field(default_factory=lambda: _ACCOUNT / "namespace")


class WebhookSettings(Settings, frozen=True, kw_only=True):
    """How the API server reaches the injector.

    One of ``tls`` (files of cert-manager or your own, read again when they change) and ``own``.
    ``admin`` serves ``/healthz``, ``/readyz`` and ``/metrics`` without TLS. ``max_body`` bounds a
    review. At SIGTERM the injector says that it is not ready and goes on for ``linger``, until no
    more is sent to it; what is then in flight gets ``drain``.
    """

    bind: str = "0.0.0.0:9443"
    admin: str = "127.0.0.1:9444"
    tls: TlsSettings | None = None
    own: OwnCertificateSettings | None = None
    api: ApiServerSettings = field(default_factory=ApiServerSettings)
    max_body: Size = size(8 << 20)
    linger: Duration = duration(5)
    drain: Duration = duration(10)

    def __post_init__(self) -> None:
        if (self.tls is None) == (self.own is None):
            raise ValueError("give one of tls and own")
        for name in ("bind", "admin"):
            try:
                address(getattr(self, name))
            except ConfigError as error:
                raise ValueError(f"{name}: {error}") from error
        if self.max_body < 64 << 10:
            raise ValueError("max_body is 64KiB at least")


class InjectorSettings(Settings, frozen=True, kw_only=True):
    """``config/injector.yaml``. ``valetkey inject`` needs no ``webhook``, the program does."""

    sidecar: InjectedSidecarSettings
    pods: PodSettings = field(default_factory=PodSettings)
    redirect: RedirectSettings | None = None
    webhook: WebhookSettings | None = None
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    def __post_init__(self) -> None:
        if self.sidecar.mode == "transparent" and self.redirect is None:
            raise ValueError("sidecar.mode: transparent needs redirect")


def version_of(text: str) -> tuple[int, int]:
    """``1.31`` or the API server's ``1`` and ``31+``, joined: major, minor. Raises `ValueError`."""
    found = re.match(r"(\d{1,4})\.(\d{1,4})", text)
    if found is None:
        raise ValueError(f"{text!r} is no version of Kubernetes")
    return int(found[1]), int(found[2])

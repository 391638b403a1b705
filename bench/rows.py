"""What is compared: one `Row` per proxy and way to load it, and the order of the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Kind = Literal["direct", "nginx", "envoy", "aiohttp", "mitmproxy", "valetkey"]

# The core of the proxy (and of what it can't work without: ext_authz' service), and the core of
# everything else: load, upstream, broker, collector, this program.
PROXY_CORE: Final = 0
LOAD_CORE: Final = 1


@dataclass(frozen=True, slots=True)
class Row:
    """``config`` is the template in configs/ that the proxy runs with (see `bench.servers`).

    ``interpreted`` runs the sidecar from its source, not from the compiled package. ``tls``:
    the load comes, and the calls leave, by TLS. ``body`` is which of the two messages has a body
    of 1 MiB; otherwise answers have 100 bytes.
    """

    name: str
    title: str
    kind: Kind
    config: str = ""
    routes: int = 0
    credential: Literal["bearer", "dpop"] = "bearer"
    unique_heads: bool = False
    collector: bool = False
    interpreted: bool = False
    tls: bool = False
    body: Literal["", "download", "upload"] = ""


DIRECT: Final = Row("direct", "direct, no proxy", "direct")
NGINX: Final = Row("nginx", "nginx, static header", "nginx", "nginx-proxy.conf")
ENVOY_INJECTOR: Final = Row(
    "envoy-injector", "Envoy, credential_injector", "envoy", "envoy-injector.yaml"
)
ENVOY_EXT_AUTHZ: Final = Row(
    "envoy-ext-authz", "Envoy, ext_authz to an nginx stub", "envoy", "envoy-ext-authz.yaml"
)
AIOHTTP: Final = Row("aiohttp", "aiohttp proxy of 30 lines", "aiohttp")
MITMPROXY: Final = Row("mitmproxy", "mitmproxy, reverse mode", "mitmproxy")
VALETKEY: Final = Row(
    "valetkey", "Valetkey, 1,000 routes", "valetkey", "sidecar.yaml", routes=1_000
)
VALETKEY_10: Final = Row(
    "valetkey-10", "Valetkey, 10 routes", "valetkey", "sidecar.yaml", routes=10
)
VALETKEY_10000: Final = Row(
    "valetkey-10000", "Valetkey, 10,000 routes", "valetkey", "sidecar.yaml", routes=10_000
)
VALETKEY_DPOP: Final = Row(
    "valetkey-dpop",
    "Valetkey, 1,000 routes, a DPoP proof per call",
    "valetkey",
    "sidecar.yaml",
    routes=1_000,
    credential="dpop",
)
VALETKEY_UNIQUE: Final = Row(
    "valetkey-unique",
    "Valetkey, 1,000 routes, every head different",
    "valetkey",
    "sidecar.yaml",
    routes=1_000,
    unique_heads=True,
)
VALETKEY_INTERPRETED: Final = Row(
    "valetkey-interpreted",
    "Valetkey, 1,000 routes, not compiled",
    "valetkey",
    "sidecar.yaml",
    routes=1_000,
    interpreted=True,
)
ENVOY_UNIQUE: Final = Row(
    "envoy-unique",
    "Envoy, credential_injector, every head different",
    "envoy",
    "envoy-injector.yaml",
    unique_heads=True,
)
VALETKEY_COLLECTOR: Final = Row(
    "valetkey-collector",
    "Valetkey, 1,000 routes, shipping to a collector",
    "valetkey",
    "sidecar.yaml",
    routes=1_000,
    collector=True,
)

THROUGHPUT: Final = (
    DIRECT,
    NGINX,
    ENVOY_INJECTOR,
    ENVOY_UNIQUE,
    ENVOY_EXT_AUTHZ,
    AIOHTTP,
    MITMPROXY,
    VALETKEY,
    VALETKEY_UNIQUE,
    VALETKEY_INTERPRETED,
    VALETKEY_10,
    VALETKEY_10000,
    VALETKEY_DPOP,
)
# The same work in each: TLS opened, the call forwarded with a credential, TLS to the target.
INTERCEPTION: Final = (
    Row("tls-direct", "direct, no proxy: TLS once", "direct", tls=True),
    Row("tls-nginx", "nginx, static header and certificate", "nginx", "nginx-tls.conf", tls=True),
    Row(
        "tls-envoy",
        "Envoy, credential_injector, static certificate",
        "envoy",
        "envoy-tls.yaml",
        tls=True,
    ),
    Row(
        "tls-valetkey",
        "Valetkey, tunnels intercepted, 1,000 routes",
        "valetkey",
        "sidecar-forward.yaml",
        routes=1_000,
        tls=True,
    ),
)


def _with_bodies(body: Literal["download", "upload"], which: str) -> tuple[Row, ...]:
    return (
        Row(f"{body}-direct", f"{which}: direct, no proxy", "direct", body=body),
        Row(
            f"{body}-nginx", f"{which}: nginx, unbuffered", "nginx", "nginx-streaming.conf",
            body=body,
        ),
        Row(
            f"{body}-envoy", f"{which}: Envoy, credential_injector", "envoy",
            "envoy-injector.yaml", body=body,
        ),
        Row(
            f"{body}-valetkey", f"{which}: Valetkey, 1,000 routes", "valetkey", "sidecar.yaml",
            routes=1_000, body=body,
        ),
    )  # fmt: skip


BODIES: Final = (*_with_bodies("download", "answers"), *_with_bodies("upload", "requests"))
AT_SATURATION: Final = (*THROUGHPUT, *INTERCEPTION, *BODIES)
# At a fixed rate; `direct` is what the others are compared with.
LATENCY: Final = (DIRECT, NGINX, ENVOY_INJECTOR, VALETKEY, VALETKEY_DPOP, VALETKEY_COLLECTOR)

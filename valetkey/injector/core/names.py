"""Names that the injector gives: containers, volumes, paths, ports, annotations.

All that is in a pod under one of these names is the injector's, or the pod is refused.
"""

from __future__ import annotations

from typing import Final

CONTAINER: Final = "valetkey"
REDIRECT: Final = "valetkey-redirect"
CONTAINERS: Final = frozenset({CONTAINER, REDIRECT})

TOKEN: Final = "valetkey-token"  # noqa: S105 - a volume's name
PRIVATE: Final = "valetkey-private"
SPOOL: Final = "valetkey-spool"
ROUTES: Final = "valetkey-routes"
OPERATOR: Final = "valetkey-operator"
ANCHORS: Final = "valetkey-anchors"
TRUST: Final = "valetkey-trust"
VOLUMES: Final = frozenset({TOKEN, PRIVATE, SPOOL, ROUTES, OPERATOR, ANCHORS, TRUST})

TOKEN_DIR: Final = "/var/run/secrets/valetkey"  # noqa: S105 - a directory
PRIVATE_DIR: Final = "/run/valetkey-private"
SPOOL_DIR: Final = "/var/lib/valetkey"
ROUTES_DIR: Final = "/etc/valetkey/routes"
OPERATOR_DIR: Final = "/etc/valetkey/operator"
ANCHORS_DIR: Final = "/etc/valetkey/anchors"
TRUST_DIR: Final = "/run/valetkey"

REVERSE_PORT: Final = 7070
ADMIN_PORT: Final = 7071
FORWARD_PORT: Final = 7072
TRANSPARENT_PORT: Final = 7073
PORTS: Final = frozenset({REVERSE_PORT, ADMIN_PORT, FORWARD_PORT, TRANSPARENT_PORT})

PREFIX: Final = "valetkey/"
# What a pod says.
INJECT: Final = "valetkey/inject"
MODE: Final = "valetkey/mode"
TARGETS: Final = "valetkey/targets"
ROUTES_FROM: Final = "valetkey/routes"
RESOURCES: Final = "valetkey/resources"
# What the injector says of the pod.
INJECTED: Final = "valetkey/injected"
KEPT: Final = "valetkey/kept"

# Where and under what name the ServiceAccount admission plugin mounts the API's token.
API_TOKEN_DIR: Final = "/var/run/secrets/kubernetes.io/serviceaccount"  # noqa: S105 - a directory
API_TOKEN_VOLUME: Final = "kube-api-access-"  # noqa: S105 - a volume's name

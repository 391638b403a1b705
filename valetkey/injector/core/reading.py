"""A pod as far as it is read: members that nothing here looks at are left alone.

The API server has judged a pod before a webhook sees it; a file was judged by nobody. So every
member that is read is of its type, or the pod is refused.
"""

from __future__ import annotations

from typing import Any

import msgspec

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError


class _Read(msgspec.Struct, frozen=True, rename="camel"):
    pass


class Mount(_Read, frozen=True):
    """``volumeMounts[]``."""

    name: str
    mount_path: str
    read_only: bool | None = None
    sub_path: str | None = None
    sub_path_expr: str | None = None


class Variable(_Read, frozen=True):
    """``env[]``. ``value`` is missing where it comes from somewhere else, or is empty."""

    name: str
    value: str | None = None


class Port(_Read, frozen=True):
    """``ports[]``."""

    container_port: int
    protocol: str | None = None


class Security(_Read, frozen=True):
    """``securityContext`` of pod or container."""

    run_as_user: int | None = None


class Resources(_Read, frozen=True):
    """``resources`` of pod or container: quantities by name."""

    limits: dict[str, Any] | None = None
    requests: dict[str, Any] | None = None

    @property
    def asked(self) -> frozenset[str]:
        """What a request is made for: what has a limit and no request is asked for up to that."""
        return frozenset(self.limits or ()) | frozenset(self.requests or ())


class Container(_Read, frozen=True):
    """A container of any of the three lists."""

    name: str
    env: list[Variable] | None = None
    volume_mounts: list[Mount] | None = None
    ports: list[Port] | None = None
    resources: Resources | None = None
    security_context: Security | None = None
    # Of an ephemeral container: whose processes it sees.
    target_container_name: str | None = None


class TokenSource(_Read, frozen=True):
    """``serviceAccountToken`` of a projected volume."""

    audience: str | None = None


class Source(_Read, frozen=True):
    """``projected.sources[]``."""

    service_account_token: TokenSource | None = None


class Projected(_Read, frozen=True):
    """A projected volume."""

    sources: list[Source] | None = None


class Volume(_Read, frozen=True):
    """``volumes[]``."""

    name: str
    projected: Projected | None = None


class Os(_Read, frozen=True):
    """``os``."""

    name: str


class Spec(_Read, frozen=True):
    """``spec``."""

    containers: list[Container]
    init_containers: list[Container] | None = None
    ephemeral_containers: list[Container] | None = None
    volumes: list[Volume] | None = None
    resources: Resources | None = None
    security_context: Security | None = None
    host_network: bool | None = None
    host_pid: bool | None = msgspec.field(default=None, name="hostPID")
    share_process_namespace: bool | None = None
    restart_policy: str | None = None
    automount_service_account_token: bool | None = None
    termination_grace_period_seconds: int | None = None
    os: Os | None = None


class Metadata(_Read, frozen=True):
    """``metadata``."""

    annotations: dict[str, str] | None = None


class Pod(_Read, frozen=True):
    """A pod, or the template of one."""

    spec: Spec
    metadata: Metadata | None = None

    @property
    def annotations(self) -> dict[str, str]:
        return (self.metadata.annotations if self.metadata else None) or {}

    def all_containers(self) -> list[Container]:
        spec = self.spec
        return [
            *(spec.init_containers or ()), *spec.containers, *(spec.ephemeral_containers or ())
        ]  # fmt: skip


def read(pod: Any) -> Pod:
    """Raises `CallerError` where a member has another type than it must have."""
    try:
        return msgspec.convert(pod, Pod)
    except msgspec.ValidationError as error:
        raise CallerError(codes.INJECT_NOT_A_POD, str(error)) from error

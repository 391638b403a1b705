"""What no pod with a sidecar may be or have, besides what stands under the injector's names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.injector.core import names
from valetkey.injector.core.parts import Parts
from valetkey.injector.core.reading import Container, Mount, Pod
from valetkey.injector.settings import InjectedSidecarSettings

_SECRET: Final = frozenset({names.TOKEN, names.PRIVATE})


def may_have(view: Pod, made: Parts, sidecar: InjectedSidecarSettings) -> None:
    """Raises `CallerError` for the first thing that can't be beside a sidecar."""
    spec = view.spec
    if spec.os is not None and spec.os.name != "linux":
        raise CallerError(codes.INJECT_OS, f"os.name: {spec.os.name}")
    # On the host's network any process of the node could call through the sidecar.
    if spec.host_network:
        raise CallerError(codes.INJECT_HOST_NETWORK, "hostNetwork")
    # /proc/PID/root of the sidecar would be open to root of another container.
    for name, shared in (
        ("hostPID", spec.host_pid), ("shareProcessNamespace", spec.share_process_namespace),
    ):  # fmt: skip
        if shared:
            raise CallerError(codes.INJECT_SHARED_PROCESSES, name)
    plain = made.sidecar.get("restartPolicy") != "Always"
    if plain and spec.restart_policy not in {None, "Always"}:
        raise CallerError(codes.INJECT_NEVER_ENDS, f"restartPolicy: {spec.restart_policy}")
    _names_once(view)
    for container in workload(view):
        for port in container.ports or ():
            if port.container_port in names.PORTS:
                raise CallerError(
                    codes.INJECT_PORT_TAKEN, f"{container.name}: {port.container_port}"
                )
    exposes_nothing(view, sidecar, intercepts=made.mount is not None)


def exposes_nothing(view: Pod, sidecar: InjectedSidecarSettings, *, intercepts: bool) -> None:
    """That no container of the workload has what is the sidecar's. Raises `CallerError`.

    ``intercepts``: whether the workload is given the sidecar's CA.
    """
    audiences = {sidecar.token_audience, sidecar.collector_token_audience}
    for volume in view.spec.volumes or ():
        sources = (volume.projected.sources if volume.projected else None) or ()
        for source in sources:
            token = source.service_account_token
            if volume.name != names.TOKEN and token is not None and token.audience in audiences:
                raise CallerError(codes.INJECT_TOKEN_REQUESTED, f"volume {volume.name}")
    for container in workload(view):
        # Root of a container that shares the sidecar's processes has /proc/1/root of it.
        if container.target_container_name in names.CONTAINERS:
            raise CallerError(
                codes.INJECT_SHARED_PROCESSES,
                f"{container.name}: targetContainerName: {container.target_container_name}",
            )
        for mount in container.volume_mounts or ():
            _check_mount(container, mount, intercepts=intercepts)


def _check_mount(container: Container, mount: Mount, *, intercepts: bool) -> None:
    where = f"{container.name}: {mount.name}"
    if mount.name in _SECRET:
        raise CallerError(codes.INJECT_TOKEN_MOUNTED, where)
    if mount.name in names.VOLUMES:
        as_given = (
            mount.name == names.TRUST
            and intercepts
            and mount.mount_path == names.TRUST_DIR
            and mount.read_only is True
            and not mount.sub_path
            and not mount.sub_path_expr
        )
        if not as_given:
            raise CallerError(codes.INJECT_VOLUME_MOUNTED, where)
    elif intercepts and _is_within(mount.mount_path, names.TRUST_DIR):
        raise CallerError(codes.INJECT_PATH_TAKEN, f"{container.name}: {mount.mount_path}")


def workload(view: Pod) -> Iterator[Container]:
    """All containers that are not the injector's."""
    return (each for each in view.all_containers() if each.name not in names.CONTAINERS)


def users(view: Pod, sidecar: int) -> tuple[int, ...]:
    """The users of the workload, each once. Raises `CallerError`.

    The redirect's rules are for a user: each must be said, and be neither root, who could take the
    rules away, nor the sidecar's, which they would cut off.
    """
    of_pod = view.spec.security_context
    found = set()
    for container in workload(view):
        own = container.security_context
        user = own.run_as_user if own and own.run_as_user is not None else None
        if user is None:
            user = of_pod.run_as_user if of_pod else None
        if user is None or user <= 0:
            said = "runAsUser is not set" if user is None else f"runAsUser: {user}"
            raise CallerError(codes.INJECT_REDIRECT_USER, f"{container.name}: {said}")
        if user == sidecar:
            raise CallerError(codes.INJECT_SAME_USER, f"{container.name}: runAsUser: {user}")
        found.add(user)
    return tuple(sorted(found))


def _names_once(view: Pod) -> None:
    """The API server refuses a name that is there twice; a file may have one."""
    containers = [each.name for each in view.all_containers()]
    volumes = [each.name for each in view.spec.volumes or ()]
    for kind, all_names in (("container", containers), ("volume", volumes)):
        twice = sorted({name for name in all_names if all_names.count(name) > 1})
        if twice:
            raise CallerError(codes.INJECT_NOT_A_POD, f"{kind} {twice[0]} is there twice")


def _is_within(path: str, directory: str) -> bool:
    """``/run`` and ``/var/run`` are one directory in most images."""
    plain = "/" + "/".join(part for part in path.split("/") if part not in {"", "."})
    plain = plain.removeprefix("/var") if plain.startswith("/var/run/") else plain
    return plain == directory or plain.startswith(f"{directory}/")

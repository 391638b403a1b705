"""Resources of a pod as a whole (KEP-2837), of which the sidecar takes its share."""

from __future__ import annotations

from typing import Any

from valetkey.injector.core import checks
from valetkey.injector.core.reading import Pod


def keep_what_it_asks_for(spec: dict[str, Any], view: Pod) -> None:
    """Write into ``spec`` what the API server would ask for without a sidecar.

    Where no container asks for something, that is as much as the pod's limit; beside a sidecar that
    does ask, it would be the sidecar's request alone.
    """
    whole = view.spec.resources
    if whole is None or not whole.limits:
        return
    asked = set(whole.requests or ())
    for container in checks.workload(view):
        asked |= container.resources.asked if container.resources else frozenset()
    more = {name: value for name, value in whole.limits.items() if name not in asked}
    if more:
        spec["resources"]["requests"] = {**(whole.requests or {}), **more}

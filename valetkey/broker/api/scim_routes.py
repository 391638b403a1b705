"""Where the SCIM endpoints are (RFC 7644 §3.2), and that provisioners alone get in."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web

from valetkey.broker.api.admin import AdminApi, AdminHandler
from valetkey.broker.api.scim_discovery import Discovery
from valetkey.broker.api.scim_resources import Resources
from valetkey.broker.api.scim_wire import PREFIX, answering_errors
from valetkey.broker.store.scim import ScimStore
from valetkey.contracts.service import Handler


def add_routes(
    router: web.UrlDispatcher,
    store: ScimStore,
    admin: AdminApi,
    *,
    issuer: str,
    clock: Callable[[], float],
) -> None:
    """``issuer`` is the broker's own identifier: its URL."""

    def guarded(handler: AdminHandler) -> Handler:
        return answering_errors(admin.guard("provisioner", handler))

    url = issuer + PREFIX
    users = Resources(store, "User", base=url, clock=clock)
    groups = Resources(store, "Group", base=url, clock=clock)
    for path, resources in ((f"{PREFIX}/Users", users), (f"{PREFIX}/Groups", groups)):
        router.add_get(path, guarded(resources.query))
        router.add_post(path, guarded(resources.post))
        router.add_post(f"{path}/.search", guarded(resources.search))
        router.add_get(path + "/{id}", guarded(resources.get))
        router.add_put(path + "/{id}", guarded(resources.put))
        router.add_patch(path + "/{id}", guarded(resources.patch))
        router.add_delete(path + "/{id}", guarded(resources.delete))
    about = Discovery(base=url)
    for path, handler in (
        ("/ServiceProviderConfig", about.config),
        ("/ResourceTypes", about.types),
        ("/ResourceTypes/{id}", about.type),
        ("/Schemas", about.schemas),
        ("/Schemas/{id}", about.schema),
    ):
        router.add_get(PREFIX + path, guarded(handler))
    for path in ("/Me", "/Bulk", "/.search"):
        router.add_route("*", PREFIX + path, guarded(about.unsupported))
    # Last: what is nowhere is answered in SCIM's form too (RFC 7644 §3.12).
    router.add_route("*", PREFIX + "/{rest:.*}", guarded(about.nowhere))

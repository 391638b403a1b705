"""What the SCIM service says of itself (RFC 7644 §4): made once, the same for everybody."""

from __future__ import annotations

from typing import Any, Final

from aiohttp import web
from scim2_models import (
    AuthenticationScheme,
    Bulk,
    ChangePassword,
    Context,
    ETag,
    Filter,
    ListResponse,
    Meta,
    NotFoundException,
    NotImplementedException,
    Patch,
    Reference,
    Resource,
    ResourceType,
    Schema,
    ScimProvider,
    ServiceProviderConfig,
    Sort,
)

from valetkey.broker.api import scim_wire as wire
from valetkey.broker.api.scim_resources import MAX_RESULTS
from valetkey.broker.core.scim import DIALECTS, Group, User
from valetkey.broker.trust.admins import Admin

# Made while the module is read: to make such a class is to read files.
_TYPES: Final[Any] = ListResponse[ResourceType]
_SCHEMAS: Final[Any] = ListResponse[Schema]
_DESCRIPTIONS: Final = {"User": "A person who may be acted for", "Group": "Users and groups"}


class Discovery:
    """``base`` is the URL of ``/scim/v2``."""

    def __init__(self, *, base: str) -> None:
        provider = ScimProvider(models=[User, Group], policy=DIALECTS)
        self._config = _about(_config(), f"{base}/ServiceProviderConfig", "ServiceProviderConfig")
        self._types = {
            str(kind.id): _about(kind, f"{base}/ResourceTypes/{kind.id}", "ResourceType")
            for kind in provider.resource_types
        }
        for name, kind in self._types.items():
            kind.description = _DESCRIPTIONS[name]
        self._schemas = {
            str(schema.id): _about(schema, f"{base}/Schemas/{schema.id}", "Schema")
            for schema in provider.schemas
        }
        for schema in self._schemas.values():
            schema.description = _DESCRIPTIONS[str(schema.name)]

    async def config(self, request: web.Request, _admin: Admin) -> web.Response:
        _no_filter(request)
        return wire.message(_dumped(self._config))

    async def types(self, request: web.Request, _admin: Admin) -> web.Response:
        _no_filter(request)
        return _list(_TYPES, self._types)

    async def type(self, request: web.Request, _admin: Admin) -> web.Response:
        return _one(self._types, request)

    async def schemas(self, request: web.Request, _admin: Admin) -> web.Response:
        _no_filter(request)
        return _list(_SCHEMAS, self._schemas)

    async def schema(self, request: web.Request, _admin: Admin) -> web.Response:
        return _one(self._schemas, request)

    async def unsupported(self, _request: web.Request, _admin: Admin) -> web.Response:
        """``/Me``, ``/Bulk`` and a search over all kinds (RFC 7644 §3.7, §3.11, §3.4.3)."""
        raise NotImplementedException

    async def nowhere(self, _request: web.Request, _admin: Admin) -> web.Response:
        raise NotFoundException


def _config() -> ServiceProviderConfig:
    return ServiceProviderConfig(
        patch=Patch(supported=True),
        bulk=Bulk(supported=False, max_operations=0, max_payload_size=0),
        filter=Filter(supported=True, max_results=MAX_RESULTS),
        change_password=ChangePassword(supported=False),
        sort=Sort(supported=False),
        etag=ETag(supported=True),
        authentication_schemes=[
            AuthenticationScheme(
                type=AuthenticationScheme.Type.oauthbearertoken,
                name="OAuth bearer token",
                description="A token of an administrators' issuer, for the role provisioner",
                spec_uri=Reference("https://www.rfc-editor.org/info/rfc6750"),
            )
        ],
    )


def _about(resource: Any, location: str, kind: str) -> Any:
    resource.meta = Meta(resource_type=kind, location=location)
    return resource


def _dumped(resource: Resource[Any]) -> dict[str, Any]:
    return resource.model_dump(scim_ctx=Context.RESOURCE_QUERY_RESPONSE)


def _list(kind: Any, resources: dict[str, Any]) -> web.Response:
    found = list(resources.values())
    listed = kind(
        total_results=len(found), start_index=1, items_per_page=len(found), resources=found
    )
    return wire.message(listed.model_dump(scim_ctx=Context.RESOURCE_QUERY_RESPONSE))


def _one(resources: dict[str, Any], request: web.Request) -> web.Response:
    resource = resources.get(request.match_info["id"])
    if resource is None:
        raise NotFoundException
    return wire.message(_dumped(resource))


def _no_filter(request: web.Request) -> None:
    """RFC 7644 §4: a filter here is answered with 403."""
    if "filter" in request.query:
        raise wire.told(403, "what the service says of itself can't be filtered")

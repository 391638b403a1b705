"""``/jwks`` (RFC 7517 §5): the keys to verify our tokens with, for caches to keep."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from valetkey.broker.issuers.keyring import KeyRing

PATH: Final = "/jwks"
_MAX_AGE: Final = 300


class JwksEndpoint:
    """``publish_before`` (seconds) bounds how long a cache may go without seeing a new key."""

    def __init__(self, ring: KeyRing, *, publish_before: float) -> None:
        self._ring = ring
        # Half of it: a verifier that has just cached the set asks again before the key signs.
        max_age = min(_MAX_AGE, int(publish_before / 2))
        self._cache_control = f"public, max-age={max_age}"

    async def handle(self, request: web.Request) -> web.Response:
        published = self._ring.published()
        headers = {"Cache-Control": self._cache_control, "ETag": published.etag}
        if request.headers.get("If-None-Match") == published.etag:
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=published.document, headers={**headers, "Content-Type": "application/jwk-set+json"}
        )

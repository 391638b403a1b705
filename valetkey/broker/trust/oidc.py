"""OpenID Connect issuers: their keys are where their own metadata say (OIDC Discovery §4).

- The metadata come from the issuer URL of the settings and nowhere else, over verified TLS.
- Their ``issuer`` must be that URL, character for character (§4.3): else it is a mix-up.
- ``jwks_uri`` is followed only to the issuer's own origin: metadata must not send the broker to a
  place of somebody's choosing. An issuer whose keys lie elsewhere is pinned by ``jwks_url``.
"""

from __future__ import annotations

from typing import Final

import msgspec

from valetkey.contracts.fetch import fetch, is_safe_url, origin
from valetkey.contracts.issuer import TrustedIssuer
from valetkey.contracts.jose import TokenInvalid

WELL_KNOWN: Final = "/.well-known/openid-configuration"


class ProviderMetadata(msgspec.Struct, frozen=True):
    """What is read of the document (OIDC Discovery §3)."""

    issuer: str
    jwks_uri: str


_METADATA: Final = msgspec.json.Decoder(ProviderMetadata)


class OidcIssuer(TrustedIssuer):
    """With pinned keys as every issuer, or with those that discovery finds."""

    discovers = True

    async def _read(self) -> bytes:
        if not self.settings.discovery:
            return await super()._read()
        # §4.1: a trailing slash goes before the well-known part is appended.
        url = self.settings.issuer.removesuffix("/") + WELL_KNOWN
        document = await fetch(url, ca_file=self.settings.jwks_ca_file)
        jwks_uri = keys_of(document, self.settings.issuer)
        return await fetch(jwks_uri, ca_file=self.settings.jwks_ca_file)


def keys_of(document: bytes, issuer: str) -> str:
    """The ``jwks_uri`` of metadata that are this issuer's own. Raises `TokenInvalid`."""
    try:
        metadata = _METADATA.decode(document)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise TokenInvalid("the issuer's metadata can't be read") from error
    if metadata.issuer != issuer:
        raise TokenInvalid("the issuer's metadata are those of another issuer")
    if not is_safe_url(metadata.jwks_uri) or origin(metadata.jwks_uri) != origin(issuer):
        raise TokenInvalid("jwks_uri is not at the issuer's origin: pin it as jwks_url")
    return metadata.jwks_uri

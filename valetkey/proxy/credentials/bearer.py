"""``Authorization: Bearer`` (RFC 6750 §2.1)."""

from __future__ import annotations

from valetkey.contracts import oauth
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import Permit


class BearerInjector:
    """The token in the Authorization header."""

    token_type = "Bearer"  # noqa: S105 - the type's name
    requested = oauth.TOKEN_TYPE_ACCESS

    def line(self, token: Secret) -> bytes:
        return b"authorization: Bearer %b\r\n" % token.reveal().encode()

    def lines(self, credential: Credential, _permit: Permit, _method: str) -> bytes:
        return credential.line

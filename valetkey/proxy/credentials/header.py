"""The token alone in a named header, for targets with a header of their own."""

from __future__ import annotations

from valetkey.contracts import oauth
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import Permit


class HeaderInjector:
    """``<name>: <token>``."""

    token_type = "Bearer"  # noqa: S105 - the type's name
    requested = oauth.TOKEN_TYPE_ACCESS

    def __init__(self, name: str) -> None:
        self._name = name.encode()

    def line(self, token: Secret) -> bytes:
        return b"%b: %b\r\n" % (self._name, token.reveal().encode())

    def lines(self, credential: Credential, _permit: Permit, _method: str) -> bytes:
        return credential.line

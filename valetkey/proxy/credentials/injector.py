"""How a credential gets into a call: one class per way, each in a file of its own."""

from __future__ import annotations

from typing import Protocol

from valetkey.contracts.secret import Secret
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.core.decision import Permit


class Injector(Protocol):
    """One way to put a credential into a call."""

    token_type: str
    """The ``token_type`` that the broker must have answered with (RFC 6749 §7.1)."""

    requested: str
    """The ``requested_token_type`` to ask for (RFC 8693 §2.1)."""

    def line(self, token: Secret) -> bytes:
        """The header line for a token, made once when it arrives; ``b""`` if made per call."""

    def lines(self, credential: Credential, permit: Permit, method: str) -> bytes:
        """All header lines for one call, each with its CRLF."""

"""Rotation because of an incident: the hook, and the broker's own signing keys behind it.

An issuer that holds a secret upstream replaces it: create, verify, switch, revoke the old one, and
see that the old one fails. It may take many tries, on any replica: see `Rotates`.
"""

from __future__ import annotations

from typing import Protocol

from valetkey.broker.core.incidents import Incident
from valetkey.broker.issuers.keyring import KeyRing


class Rotates(Protocol):
    """An issuer that can replace what an incident is about."""

    name: str

    def concerns(self, incident: Incident) -> bool:
        """Whether something of this issuer's has to be replaced. Called while it is opened."""

    async def rotate(self, incident: Incident) -> str:
        """Replace it; says in a few words what was done.

        It may be called again for the same incident, also after it was done or by another replica
        while one that is cut off still tries: what is replaced already is left alone. Raises
        `ValetkeyError` to be called again later.
        """


class SigningKeys:
    """The keys that our own tokens are signed with."""

    name = "signing-keys"

    def __init__(self, ring: KeyRing) -> None:
        self._ring = ring

    def concerns(self, incident: Incident) -> bool:
        return incident.kind == "key" and self._ring.holds(incident.value)

    async def rotate(self, incident: Incident) -> str:
        successor = await self._ring.replace(incident.value)
        return f"{successor} signs; the old key is out of the JWK Set"

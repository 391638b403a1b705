"""What a directory found a subject by, carried in our own tokens for who exchanges on with them.

A directory may know somebody by a claim that our token does not have (an address, a login name),
and our ``sub`` is not that claim. Invariants:

- It comes from the token that was verified first, never from who presents ours: it is within what
  we signed, and sealed for the subject that it is of.
- Only we can read it: targets get to see no more of a user than ``sub``.
- What does not open (it was sealed under another master key) is as if it were not there: then the
  directory finds nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from valetkey.broker.store.sealing import SealBroken, Sealer
from valetkey.contracts.jose import TokenInvalid, b64url, b64url_decode

CLAIM: Final = "found_by"
_DECODER: Final = msgspec.json.Decoder(dict[str, str])


class FoundBy:
    """Seals under the master key, so that every replica reads what one of them wrote."""

    def __init__(self, sealer: Sealer) -> None:
        self._sealer = sealer

    def sealed(self, issuer: str, subject: str, claims: Iterable[tuple[str, str]]) -> str:
        """The value of `CLAIM` for a token of this subject."""
        value = msgspec.json.encode(dict(claims), order="deterministic")
        return b64url(self._sealer.seal_for_token(value, kid=_kid(issuer, subject)))

    def read(self, issuer: str, subject: str, claims: Mapping[str, Any]) -> dict[str, str]:
        """The claims that the subject of a token of ours, with these ``claims``, was found by."""
        sealed = claims.get(CLAIM)
        if not isinstance(sealed, str):
            return {}
        try:
            opened = self._sealer.open_from_token(b64url_decode(sealed), kid=_kid(issuer, subject))
        except (SealBroken, TokenInvalid):
            return {}
        return _DECODER.decode(opened)


def _kid(issuer: str, subject: str) -> str:
    # The length keeps two splits apart.
    return f"{CLAIM}:{len(issuer)}:{issuer}{subject}"

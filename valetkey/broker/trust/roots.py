"""Roots of certificates: those of a SPIFFE bundle, or those in a file of a PKI's.

Fetched, kept and fetched again as keys of tokens are (`valetkey.contracts.keys`); a file is read
again as soon as it changes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from valetkey.broker.trust.pki import read_roots
from valetkey.broker.trust.spiffe import read_authorities, verify_chain
from valetkey.contracts.issuer import Admission, IssuerSettings, read_pinned
from valetkey.contracts.jose import TokenInvalid
from valetkey.contracts.keys import KeySource
from valetkey.contracts.trusted_roots import Stamp, stamp


class Roots:
    """The roots of one issuer, and whom of it settings let in."""

    def __init__(self, settings: IssuerSettings) -> None:
        self.settings = settings
        self._admission = Admission(settings)
        parse = read_authorities if settings.kind == "spiffe" else read_roots
        self._source = KeySource(settings.issuer, self._read, parse)
        self._file = settings.ca_file or settings.jwks_file
        self._stamp: Stamp | None = None
        self._known: set[bytes] = set()
        """Roots that handshakes know already, by their whole DER."""

    async def verify(
        self,
        subject: str,
        leaf: x509.Certificate,
        intermediates: Sequence[x509.Certificate],
        *,
        now: float,
    ) -> None:
        """Whether the chain holds, with newer roots if need be, and the subject may come in.

        Raises `TokenInvalid`.
        """
        roots = await self._source.current()
        try:
            verify_chain(leaf, intermediates, roots, now=now)
        except TokenInvalid:
            newer = await self._source.newer(roots)
            if newer is None or newer == roots:
                raise
            verify_chain(leaf, intermediates, newer, now=now)
        # A certificate makes no claims, so none of it holds in a table of them.
        self._admission.check(subject, {})

    async def not_known(self) -> list[x509.Certificate]:
        """Roots that were not given out before."""
        try:
            current = await self._source.current()
            if await asyncio.to_thread(stamp, self._file) != self._stamp:
                current = await self._source.newer(current) or current
        except TokenInvalid:  # said in the log by the source; handshakes go on with what there is
            return []
        new = [one for one in current if one.public_bytes(Encoding.DER) not in self._known]
        self._known |= {one.public_bytes(Encoding.DER) for one in new}
        return new

    async def _read(self) -> bytes:
        # Before reading: a change meanwhile is then seen as one.
        self._stamp = await asyncio.to_thread(stamp, self._file)
        if self.settings.ca_file is not None:
            return await asyncio.to_thread(self.settings.ca_file.read_bytes)
        return await read_pinned(self.settings)

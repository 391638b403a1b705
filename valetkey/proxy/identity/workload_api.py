"""The SPIFFE Workload API (SPIFFE Workload API, Workload Endpoint), through py-spiffe.

The one module that loads that library, and with it gRPC (about 23 MiB of memory): only sidecars
whose settings name it as source do. The library adds the metadata ``workload.spiffe.io: true``
(Workload Endpoint §4). A client lives for one question: gRPC waits for up to two minutes before it
dials a lost agent again, and we know better when it is due.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from valetkey.contracts.errors import ConfigError
from valetkey.contracts.spiffe_id import SpiffeId, SpiffeIdInvalid

if TYPE_CHECKING:
    from spiffe import WorkloadApiClient

TIMEOUT: Final = 5.0


class WorkloadApiFailed(Exception):  # noqa: N818 - reads as what it is
    """No SVID: the agent is away, or has none for this process. The message holds no secret."""


@dataclass(frozen=True, slots=True)
class JwtSvid:
    """``expires`` in seconds since the epoch."""

    token: str = field(repr=False)
    identity: SpiffeId
    expires: float


@dataclass(frozen=True, slots=True)
class X509Svid:
    """``chain`` (leaf first) and ``key`` as PEM. ``expires`` in seconds since the epoch."""

    chain: bytes
    key: bytes = field(repr=False)
    identity: SpiffeId
    expires: float


class WorkloadApi:
    """One endpoint. ``identity`` chooses among several SVIDs; without it, the first one counts."""

    def __init__(self, socket: str, identity: str | None) -> None:
        # gRPC would write lines of its own to the standard error, where only our log lines belong.
        os.environ.setdefault("GRPC_VERBOSITY", "NONE")
        try:
            import spiffe
        except ImportError as error:
            raise ConfigError(
                "identity.spiffe needs the library spiffe: install valetkey[spiffe]"
            ) from error
        self._spiffe: Any = spiffe
        self._socket = socket
        self._identity = identity

    def jwt_svid(self, audience: str) -> JwtSvid:
        """A JWT-SVID for this audience alone. Blocking. Raises `WorkloadApiFailed`."""
        wanted = self._spiffe.SpiffeId(self._identity) if self._identity else None
        try:
            with self._client() as client:
                svid = client.fetch_jwt_svid({audience}, subject=wanted)
        except self._spiffe.errors.PySpiffeError as error:
            raise WorkloadApiFailed(_reason(error)) from error
        return JwtSvid(svid.token, _identity(svid.spiffe_id), float(svid.expiry))

    def x509_svid(self) -> X509Svid:
        """The certificate with its key. Blocking. Raises `WorkloadApiFailed`."""
        from cryptography.hazmat.primitives import serialization

        try:
            with self._client() as client:
                svids = client.fetch_x509_svids()
        except self._spiffe.errors.PySpiffeError as error:
            raise WorkloadApiFailed(_reason(error)) from error
        for svid in svids:
            if self._identity in {None, str(svid.spiffe_id)}:
                pem = serialization.Encoding.PEM
                return X509Svid(
                    b"".join(one.public_bytes(pem) for one in svid.cert_chain),
                    svid.private_key.private_bytes(
                        pem,
                        serialization.PrivateFormat.PKCS8,
                        serialization.NoEncryption(),
                    ),
                    _identity(svid.spiffe_id),
                    svid.leaf.not_valid_after_utc.timestamp(),
                )
        raise WorkloadApiFailed("the agent has no certificate for the identity in settings")

    def _client(self) -> WorkloadApiClient:
        client: WorkloadApiClient = self._spiffe.WorkloadApiClient(
            self._socket, default_timeout=TIMEOUT
        )
        return client


def _reason(error: Exception) -> str:
    """The kind of failure, and gRPC's status if it has one."""
    code = getattr(error.__cause__, "code", None)
    name = getattr(code(), "name", "") if callable(code) else ""
    return f"{type(error).__name__} {name}".rstrip()


def _identity(found: object) -> SpiffeId:
    try:
        return SpiffeId.parse(str(found))
    except SpiffeIdInvalid as error:
        raise WorkloadApiFailed(f"not a SPIFFE ID: {error}") from error

"""A SPIFFE Workload API for tests: gRPC on a Unix socket, with SVIDs of a test's trust domain.

It answers as an agent does: without the metadata it gives nothing, without an entry for the caller
it says PERMISSION_DENIED.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import grpc
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from spiffe._proto import workload_pb2 as messages

from tests.support.trust_domain import TrustDomain

_SERVICE = "SpiffeWorkloadAPI"


class Agent:
    """Serves ``domain`` under ``socket``. ``paths`` are the IDs that the caller gets, in order."""

    def __init__(self, socket: Path, domain: TrustDomain, *paths: str) -> None:
        self.socket = socket
        self.domain = domain
        self.paths = list(paths or ["/ns/agents/sa/bot"])
        self.ttl = 300.0
        self.asked: list[str] = []
        self.audiences: list[list[str]] = []
        self._server: grpc.Server | None = None

    @property
    def url(self) -> str:
        return f"unix://{self.socket}"

    def start(self) -> Agent:
        self._server = grpc.server(ThreadPoolExecutor(2))
        handlers = {
            "FetchJWTSVID": grpc.unary_unary_rpc_method_handler(
                self._jwt_svid,
                request_deserializer=messages.JWTSVIDRequest.FromString,
                response_serializer=messages.JWTSVIDResponse.SerializeToString,
            ),
            "FetchX509SVID": grpc.unary_stream_rpc_method_handler(
                self._x509_svid,
                request_deserializer=messages.X509SVIDRequest.FromString,
                response_serializer=messages.X509SVIDResponse.SerializeToString,
            ),
        }
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),)
        )
        self._server.add_insecure_port(self.url)
        self._server.start()
        return self

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop(None).wait(5)
            self._server = None
        self.socket.unlink(missing_ok=True)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _admit(self, what: str, context: Any) -> None:
        self.asked.append(what)
        if dict(context.invocation_metadata()).get("workload.spiffe.io") != "true":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        if not self.paths:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")

    def _jwt_svid(self, request: Any, context: Any) -> Any:
        self._admit("jwt", context)
        self.audiences.append(list(request.audience))
        paths = [
            path for path in self.paths if request.spiffe_id in {"", self.domain.workload(path)}
        ]
        if not paths:
            context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
        return messages.JWTSVIDResponse(
            svids=[
                messages.JWTSVID(
                    spiffe_id=self.domain.workload(path),
                    svid=self.domain.jwt_svid(list(request.audience), path=path, ttl=self.ttl),
                )
                for path in paths
            ]
        )

    def _x509_svid(self, _request: Any, context: Any) -> Any:
        self._admit("x509", context)
        made = [
            self.domain.x509_svid(self.domain.workload(path), ttl=self.ttl) for path in self.paths
        ]
        yield messages.X509SVIDResponse(
            svids=[
                messages.X509SVID(
                    spiffe_id=self.domain.workload(path),
                    x509_svid=b"".join(one.public_bytes(Encoding.DER) for one in svid.chain),
                    x509_svid_key=svid.key.private_bytes(
                        Encoding.DER, PrivateFormat.PKCS8, NoEncryption()
                    ),
                    bundle=self.domain.authority.certificate.public_bytes(Encoding.DER),
                )
                for path, svid in zip(self.paths, made, strict=True)
            ]
        )

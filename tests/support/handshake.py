"""TLS handshakes in memory: one side's bytes are the other's, and both errors are told."""

from __future__ import annotations

import ssl
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Shaken:
    """How a handshake went, for each side."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    client_error: ssl.SSLError | None
    server_error: ssl.SSLError | None

    @property
    def good(self) -> bool:
        return self.client_error is None and self.server_error is None


def client_context(trusted: bytes, *, maximum: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """As strict as Python's own default since 3.13."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.verify_flags |= ssl.VERIFY_X509_STRICT | ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(cadata=trusted.decode())
    context.set_alpn_protocols(["h2", "http/1.1"])
    if maximum is not None:
        context.maximum_version = maximum
    return context


def shake(
    server: ssl.SSLContext,
    client: ssl.SSLContext,
    name: str | None,
    *,
    close: bool = False,
    session: ssl.SSLSession | None = None,
) -> Shaken:
    """One handshake; ``name`` is the SNI and what the certificate must name."""
    if name is None:
        client.check_hostname = False
    to_client, to_server, from_client, from_server = (ssl.MemoryBIO() for _ in range(4))
    ours = client.wrap_bio(to_client, from_client, server_hostname=name, session=session)
    theirs = server.wrap_bio(to_server, from_server, server_side=True)

    def together(*steps: object) -> list[ssl.SSLError | None]:
        errors: list[ssl.SSLError | None] = [None, None]
        open_steps = dict(enumerate(steps))
        for _ in range(10):
            for side, step in list(open_steps.items()):
                try:
                    step()  # type: ignore[operator]
                except ssl.SSLWantReadError:
                    pass
                except ssl.SSLError as error:
                    errors[side] = error
                    to_client.write(getattr(error, "alert", b""))
                    del open_steps[side]
                else:
                    del open_steps[side]
                to_server.write(from_client.read())
                to_client.write(from_server.read())
        return errors

    result = Shaken(ours, theirs, *together(ours.do_handshake, theirs.do_handshake))
    if close and result.good:
        together(ours.unwrap, theirs.unwrap)
    return result

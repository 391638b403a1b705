"""The sidecar itself: what answers at its admin port and at its forward listener.

A listener is asked for a host that only a sidecar answers for, so that its answer proves what it
is and nothing is called.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal
from urllib.parse import urlsplit

from valetkey.cli.doctor import findings
from valetkey.cli.doctor.findings import Finding
from valetkey.cli.doctor.outcome import is_sidecars
from valetkey.cli.doctor.proxy_url import Endpoint, Redaction
from valetkey.contracts import codes
from valetkey.contracts.diagnosis import DIAGNOSIS_HOST
from valetkey.contracts.secret import Secret

_MOST: Final = 1 << 16

State = Literal["sidecar", "unreachable", "foreign", "refuses", "token missing", "token refused"]


@dataclass(frozen=True, slots=True)
class Listener:
    """What answers at an address.

    ``opens_tls``: whether it intercepts TLS, ``None`` where that was not seen. ``leaf_verifies``:
    whether the certificate that it showed is of the CA in the file, ``None`` without a file.
    """

    state: State
    detail: str = ""
    opens_tls: bool | None = None
    leaf_verifies: bool | None = None


@dataclass(frozen=True, slots=True)
class Admin:
    """The admin port. ``reason`` is why it is unreachable or not ready; empty when it is ready."""

    reachable: bool
    reason: str = ""


# --- judgements -----------------------------------------------------------------------------------


def judge_admin(url: str, admin: Admin) -> list[Finding]:
    if not admin.reachable:
        return [findings.ADMIN_UNREACHABLE.found(url, admin.reason)]
    return [findings.NOT_READY.found(url, admin.reason)] if admin.reason else []


def judge_listener(endpoint: Endpoint, variable: str, listener: Listener) -> list[Finding]:
    """What is wrong with the listener at ``endpoint``, which ``variable`` names."""
    at = str(endpoint)
    match listener.state:
        case "unreachable":
            return [findings.LISTENER_UNREACHABLE.found(at, listener.detail)]
        case "foreign":
            return [findings.LISTENER_FOREIGN.found(at, listener.detail)]
        case "refuses":
            return [findings.LISTENER_REFUSES.found(at, listener.detail)]
        case "token missing":
            return [
                findings.TOKEN_MISSING.found(at, listener.detail, variable=variable, address=at)
            ]
        case "token refused":
            return [findings.TOKEN_REFUSED.found(at, listener.detail, variable=variable)]
        case "sidecar":
            found = []
            if listener.opens_tls is False:
                found.append(findings.INTERCEPTION_OFF.found(at, listener.detail))
            if listener.leaf_verifies is False:
                found.append(findings.CA_MISMATCH.found(at, listener.detail))
            return found


# --- probes ---------------------------------------------------------------------------------------


def ask_admin(url: str, *, timeout: float) -> Admin:
    """``/healthz``, then ``/readyz``, at the admin port."""
    try:
        status, _ = _get(url, "/healthz", timeout)
        if status != 200:
            return Admin(reachable=False, reason=f"/healthz answered {status}")
        status, body = _get(url, "/readyz", timeout)
    except (OSError, http.client.HTTPException, ValueError) as error:
        return Admin(reachable=False, reason=_said(error))
    if status == 200:
        return Admin(reachable=True)
    return Admin(reachable=True, reason=_member(body, "reason") or f"/readyz answered {status}")


def ask_listener(
    endpoint: Endpoint, credentials: Secret | None, ca_file: Path | None, *, timeout: float
) -> Listener:
    """Ask for the reserved host, in plain and through a tunnel."""
    try:
        plain = _ask_plain(endpoint, credentials, timeout)
        if plain.state != "sidecar":
            return plain
        return _ask_tunnel(endpoint, credentials, ca_file, timeout)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, http.client.HTTPException):
            return Listener("foreign", f"no HTTP: {_said(error)}")
        return Listener("unreachable", _said(error))


def _ask_plain(endpoint: Endpoint, credentials: Secret | None, timeout: float) -> Listener:
    head = f"GET http://{DIAGNOSIS_HOST}/ HTTP/1.1\r\nHost: {DIAGNOSIS_HOST}\r\n"
    with _connected(endpoint, timeout) as sock:
        answer = _exchange(sock, head, credentials, last=True)
    if answer.code == codes.CALLER_UNAUTHENTICATED.name or (answer.status == 407):
        if credentials is None:
            return Listener("token missing", "it answers 407")
        return Listener("token refused", "it answers 407 to the token that is set")
    if not answer.is_sidecars:
        return Listener("foreign", f"it answers {answer.status}, not as a sidecar does")
    if answer.code != codes.TARGET_NO_MATCH.name:
        return Listener("refuses", f"it answers {answer.code}")
    return Listener("sidecar")


def _ask_tunnel(
    endpoint: Endpoint, credentials: Secret | None, ca_file: Path | None, timeout: float
) -> Listener:
    head = f"CONNECT {DIAGNOSIS_HOST}:443 HTTP/1.1\r\nHost: {DIAGNOSIS_HOST}:443\r\n"
    with _connected(endpoint, timeout) as sock:
        answer = _exchange(sock, head, credentials)
        if answer.code == codes.REQUEST_CONNECT.name:
            return Listener("foreign", "it is a sidecar's, but a listener in another mode")
        if answer.code == codes.TUNNEL_NOT_INTERCEPTED.name:
            return Listener("sidecar", f"it answers {answer.code}", opens_tls=False)
        if answer.status != 200:
            return Listener("refuses", f"it answers {answer.code or answer.status} to CONNECT")
        if ca_file is None:
            return Listener("sidecar", opens_tls=True)
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.load_verify_locations(cafile=ca_file)
            context.wrap_socket(sock, server_hostname=DIAGNOSIS_HOST).close()
        except ssl.SSLCertVerificationError as error:
            return Listener("sidecar", error.verify_message, opens_tls=True, leaf_verifies=False)
        except ssl.SSLError as error:
            return Listener("sidecar", f"TLS in the tunnel: {_said(error)}", opens_tls=False)
    return Listener("sidecar", opens_tls=True, leaf_verifies=True)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    code: str
    is_sidecars: bool


def _connected(endpoint: Endpoint, timeout: float) -> socket.socket:
    return socket.create_connection((endpoint.host, endpoint.port), timeout=timeout)


def _exchange(
    sock: socket.socket, head: str, credentials: Secret | None, *, last: bool = False
) -> _Answer:
    if credentials is not None:
        head += f"Proxy-Authorization: Basic {credentials.reveal()}\r\n"
    if last:
        head += "Connection: close\r\n"
    sock.sendall(f"{head}\r\n".encode())
    response = http.client.HTTPResponse(sock, method="GET")
    response.begin()
    # What follows 200 to CONNECT is the tunnel, not a body (RFC 9110 §9.3.6).
    body = response.read(_MOST) if response.status != 200 or last else b""
    kind = response.headers.get("Content-Type", "")
    text = body.decode(errors="replace")
    code = str(_member(body, "code")) if is_sidecars(kind, text) else ""
    return _Answer(response.status, code, bool(code))


def _get(url: str, path: str, timeout: float) -> tuple[int, bytes]:
    parts = urlsplit(url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        raise ValueError("not an http(s) URL")
    with contextlib.closing(kind(parts.hostname, parts.port, timeout=timeout)) as connection:
        connection.request("GET", parts.path.rstrip("/") + path)
        response = connection.getresponse()
        return response.status, response.read(_MOST)


def _member(body: bytes, name: str) -> str:
    try:
        document: Any = json.loads(body)
    except ValueError:
        return ""
    value = document.get(name) if isinstance(document, dict) else None
    return value if isinstance(value, str) else ""


def _said(error: Exception) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return Redaction()(str(text))

"""One of our services over HTTP, as the command line calls it: a URL, a token file, a CA file.

Plain HTTP is accepted for loopback only, because the token goes along.
"""

from __future__ import annotations

import http.client
import ipaddress
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar
from urllib.parse import urlencode, urlsplit

import msgspec

from valetkey.contracts.secret import Secret

T = TypeVar("T")
_TIMEOUT: Final = 30.0


class ServiceError(Exception):
    """The service can't be asked, or says no: one line for a person.

    ``code`` is the service's own (empty: it never answered, or not as one of ours).
    """

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message)
        self.code = code


class _Problem(msgspec.Struct, frozen=True):
    code: str = ""
    detail: str = ""
    reason: str = ""


class Service:
    """A connection, opened with the first request. ``name`` is what the service is called.

    ``token`` is the caller's token, or the file that it is in.
    """

    def __init__(self, name: str, url: str, token: Path | Secret, ca_file: Path | None) -> None:
        try:
            parts, port = urlsplit(url), urlsplit(url).port
        except ValueError as error:
            raise ServiceError(f"{url} is not the URL of a {name}: {error}") from error
        odd = parts.query or parts.fragment or "@" in parts.netloc
        # What goes on the request line has to be fit for it.
        fit = parts.path.isascii() and parts.path.isprintable() and " " not in parts.path
        if parts.scheme not in {"http", "https"} or not parts.hostname or odd or not fit:
            raise ServiceError(f"{url} is not the URL of a {name}")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ServiceError(f"{url}: plain HTTP is for loopback only")
        self._name = name
        self._url = url
        self._base = parts.path.rstrip("/")
        self._token = token if isinstance(token, Secret) else _read_token(token)
        if parts.scheme == "https":
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                parts.hostname, port, timeout=_TIMEOUT, context=_context(ca_file)
            )
        else:
            self._connection = http.client.HTTPConnection(parts.hostname, port, timeout=_TIMEOUT)

    def ask(
        self,
        kind: type[T],
        method: str,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        document: object = None,
    ) -> T:
        """Send one request and read its answer as ``kind``. Raises `ServiceError`."""
        target = self._base + path + (f"?{urlencode(query)}" if query else "")
        headers = {"Authorization": f"Bearer {self._token.reveal()}"}
        body = None
        if document is not None:
            headers["Content-Type"] = "application/json"
            body = msgspec.json.encode(document)
        try:
            self._connection.request(method, target, body=body, headers=headers)
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            reason = str(error) or type(error).__name__
            raise ServiceError(f"{self._url} can't be reached: {reason}") from error
        if not 200 <= response.status < 300:
            raise self._refused(response.status, answer)
        try:
            return msgspec.json.decode(answer or b"null", type=kind)
        except msgspec.DecodeError as error:
            raise ServiceError(f"{self._url} is not a {self._name}: {error}") from error

    def close(self) -> None:
        self._connection.close()

    def _refused(self, status: int, body: bytes) -> ServiceError:
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except msgspec.DecodeError:
            problem = _Problem()
        said = f"{problem.code}: {problem.reason or problem.detail}" if problem.code else ""
        return ServiceError(f"{self._url} answered {status} {said}".rstrip(), problem.code)


def checked_token(text: str, place: object) -> Secret:
    """What is in a file or a variable, as a token. Raises `ServiceError`."""
    token = text.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise ServiceError(f"{place} holds no token")
    return Secret(token)


def _read_token(file: Path) -> Secret:
    try:
        text = file.read_text(encoding="ascii")
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"{file}: can't be read as a token: {error}") from error
    return checked_token(text, file)


def _context(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise ServiceError(f"{ca_file}: can't be used as CA file: {error}") from error


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

"""Which certificates each client trusts, and whether the interception CA is among them.

Each client has rules of its own for where its trust store is; they are written down here, one
function per runtime, with the client's own precedence. What lies in a store is read elsewhere and
passed in.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Literal

from valetkey.cli.doctor import findings
from valetkey.cli.doctor.findings import Finding
from valetkey.cli.doctor.runtimes import Runtime

# Where distributions keep the bundle, in the order in which Go looks (crypto/x509/root_linux.go).
SYSTEM_FILES: Final = (
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/tls/cacert.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
)
_VERIFY_AGAIN: Final = "git config --global --unset http.sslVerify"
_SYSTEM_DIRECTORIES: Final = ("/etc/ssl/certs", "/etc/pki/tls/certs")

Form = Literal["pem", "hashed", "directory", "java", "built in"]


@dataclass(frozen=True, slots=True)
class Place:
    """Where certificates lie.

    ``form``: a PEM file (requests and curl take a directory with hashes there as well); a directory
    of PEM files, all of them or (OpenSSL) those with hashes for names; a Java trust store; or
    inside the program. ``variable`` is who says so, empty for a
    default. ``password`` is what Java opens a store with.
    """

    form: Form
    path: str
    variable: str = ""
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Store:
    """What some clients trust: all certificates of all places. ``fix`` adds the CA to it."""

    clients: tuple[str, ...]
    places: tuple[Place, ...]
    fix: str


@dataclass(frozen=True, slots=True)
class Holding:
    """What was found at a place. ``count`` is 0 where certificates were not counted."""

    readable: bool
    holds_ca: bool = False
    count: int = 0


@dataclass(frozen=True, slots=True)
class Files:
    """The files that the sidecar writes, as far as they are known; for recommendations."""

    bundle: str
    ca: str
    java: str
    java_password: str

    @property
    def java_options(self) -> str:
        """What makes a JVM trust the sidecar. Without the password it would see an empty store."""
        return (
            f"-Djavax.net.ssl.trustStore={self.java} "
            f"-Djavax.net.ssl.trustStorePassword={self.java_password}"
        )


Read = Callable[[Place], Holding]


def stores(runtime: Runtime, environ: Mapping[str, str], files: Files) -> list[Store]:
    """The trust stores of a runtime's clients."""
    if runtime.trouble:
        return []
    return list(_RULES[runtime.name](runtime, environ, files))


def system_store(exists: Callable[[str], bool]) -> Place | None:
    """The system's bundle, if there is one."""
    path = next((path for path in SYSTEM_FILES if exists(path)), None)
    return Place("pem", path) if path else None


def judge(store: Store, read: Read) -> list[Finding]:
    """What is wrong with a store: a place that can't be read, or no CA in any of them."""
    clients = ", ".join(store.clients)
    held = [(place, read(place)) for place in store.places]
    found = [
        findings.STORE_UNREADABLE.found(
            place.variable, f"{place.path} can't be read or holds no certificate", fix=store.fix
        )
        for place, holding in held
        if place.variable and not holding.readable
    ]
    if any(holding.holds_ca for _, holding in held):
        return [*found, *_alone(store, held)]
    found.append(findings.STORE_WITHOUT_CA.found(clients, _lack(store), fix=store.fix))
    return found


def _alone(store: Store, held: Sequence[tuple[Place, Holding]]) -> Iterator[Finding]:
    """The CA is all that is trusted. Node adds what it is given to roots of its own."""
    counted = [(place, holding) for place, holding in held if holding.readable]
    if any(place.form == "built in" for place, _ in counted):
        return
    if sum(holding.count for _, holding in counted) == 1:
        place = next(place for place, holding in counted if holding.holds_ca)
        yield findings.STORE_CA_ONLY.found(
            place.variable or ", ".join(store.clients),
            f"{place.path} holds one certificate",
            fix=store.fix,
        )


def verification_off(runtimes: Sequence[Runtime], environ: Mapping[str, str]) -> Iterator[Finding]:
    """Settings that make a client believe any certificate."""
    names = {runtime.name for runtime in runtimes}
    if "node" in names and environ.get("NODE_TLS_REJECT_UNAUTHORIZED") == "0":
        yield findings.VERIFICATION_OFF.found(
            "NODE_TLS_REJECT_UNAUTHORIZED", "it is 0", fix="unset NODE_TLS_REJECT_UNAUTHORIZED"
        )
    # git takes any value for a yes, an empty one included.
    if "git" in names and "GIT_SSL_NO_VERIFY" in environ:
        yield findings.VERIFICATION_OFF.found(
            "GIT_SSL_NO_VERIFY", "it is set", fix="unset GIT_SSL_NO_VERIFY"
        )
    for runtime in runtimes:
        if runtime.config.get("http.sslverify", "").lower() in {"false", "no", "off", "0"}:
            yield findings.VERIFICATION_OFF.found(
                "git http.sslVerify",
                "it is false",
                fix=_VERIFY_AGAIN,
            )


def _lack(store: Store) -> str:
    names = [
        f"{place.variable}={place.path}" if place.variable else (place.path or "its built-in roots")
        for place in store.places
    ]
    return f"not in {', '.join(names) or 'any store'}"


# --- one function per runtime ---------------------------------------------------------------------


def _curl(_runtime: Runtime, environ: Mapping[str, str], files: Files) -> Iterator[Store]:
    # tool_operate.c: CURL_CA_BUNDLE, or else SSL_CERT_DIR and SSL_CERT_FILE.
    places = _from(environ, "CURL_CA_BUNDLE") or [
        *_directory(environ, "hashed"),
        *_from(environ, "SSL_CERT_FILE"),
    ]
    fix = f"export CURL_CA_BUNDLE={files.bundle}"
    yield Store(("curl",), tuple(places or _system()), fix)


def _git(runtime: Runtime, environ: Mapping[str, str], files: Files) -> Iterator[Store]:
    # http.c: the variable wins over the setting; without both, libcurl's compiled-in bundle
    # (CURL_CA_BUNDLE is the curl command's, not the library's).
    places = _from(environ, "GIT_SSL_CAINFO")
    if not places and (path := runtime.config.get("http.sslcainfo")):
        places = [Place("pem", path, "git http.sslCAInfo")]
    yield Store(("git",), tuple(places or _system()), f"export GIT_SSL_CAINFO={files.bundle}")


def _python(runtime: Runtime, environ: Mapping[str, str], files: Files) -> Iterator[Store]:
    facts = runtime.python
    assert facts is not None
    file = _from(environ, "SSL_CERT_FILE")
    directory = _directory(environ, "hashed")
    certifi = [Place("pem", facts.certifi)] if facts.certifi else []
    openssl = [
        *(file or ([Place("pem", facts.cafile)] if facts.cafile else [])),
        *(directory or ([Place("hashed", facts.capath)] if facts.capath else [])),
    ]
    defaults = ("urllib", *(name for name in ("aiohttp", "urllib3") if name in facts.clients))
    fix = f"export SSL_CERT_FILE={files.bundle}"
    yield Store(tuple(f"python {name}" for name in defaults), tuple(openssl), fix)
    if "httpx" in facts.clients:
        # httpx._config.create_ssl_context: one of the two, or certifi.
        yield Store(("python httpx",), tuple(file or directory or certifi), fix)
    if "requests" in facts.clients:
        # requests.sessions: one of the two, or certifi. OpenSSL's variables do not count.
        bundle = _from(environ, "REQUESTS_CA_BUNDLE") or _from(environ, "CURL_CA_BUNDLE")
        yield Store(
            ("python requests",),
            tuple(bundle or certifi),
            f"export REQUESTS_CA_BUNDLE={files.bundle}",
        )


def _node(_runtime: Runtime, environ: Mapping[str, str], files: Files) -> Iterator[Store]:
    options = environ.get("NODE_OPTIONS", "")
    places = _from(environ, "NODE_EXTRA_CA_CERTS")
    if (
        re.search(r"--use-(system|openssl)-ca\b", options)
        or environ.get("NODE_USE_SYSTEM_CA") == "1"
    ):
        file = _from(environ, "SSL_CERT_FILE")
        directory = _directory(environ, "hashed")
        places += [*(file or _system()), *directory]
    places.append(Place("built in", ""))
    clients = ("node fetch", "node https")
    yield Store(clients, tuple(places), f"export NODE_EXTRA_CA_CERTS={files.ca}")


def _java(runtime: Runtime, _environ: Mapping[str, str], files: Files) -> Iterator[Store]:
    named = runtime.properties.get("javax.net.ssl.trustStore", "")
    home = runtime.properties.get("java.home", "")
    password = runtime.properties.get("javax.net.ssl.trustStorePassword")
    if named:
        places = [Place("java", named, "javax.net.ssl.trustStore", password)]
    else:
        # JSSE Reference Guide: jssecacerts before cacerts.
        places = [
            Place("java", f"{home}/lib/security/{name}", "", password)
            for name in ("jssecacerts", "cacerts")
        ]
    fix = f'export JAVA_TOOL_OPTIONS="$JAVA_TOOL_OPTIONS {files.java_options}"'
    yield Store(("java HttpClient",), tuple(places), fix)


def _go(_runtime: Runtime, environ: Mapping[str, str], files: Files) -> Iterator[Store]:
    # crypto/x509/root_unix.go: each variable replaces its list; files and directories add up.
    file = _from(environ, "SSL_CERT_FILE")
    directory = _directory(environ, "directory")
    places = [
        *(file or _system()),
        *(directory or [Place("directory", path) for path in _SYSTEM_DIRECTORIES]),
    ]
    yield Store(("go net/http",), tuple(places), f"export SSL_CERT_FILE={files.bundle}")


def _from(environ: Mapping[str, str], variable: str) -> list[Place]:
    path = environ.get(variable, "")
    if not path:
        return []
    return [Place("pem", path, variable)]


def _directory(environ: Mapping[str, str], form: Form) -> list[Place]:
    """SSL_CERT_DIR: a list with colons."""
    value = environ.get("SSL_CERT_DIR", "")
    return [Place(form, path, "SSL_CERT_DIR") for path in value.split(":") if path]


def _system() -> list[Place]:
    return [Place("pem", path) for path in SYSTEM_FILES]


_RULES: Final[dict[str, Callable[[Runtime, Mapping[str, str], Files], Iterator[Store]]]] = {
    "curl": _curl,
    "git": _git,
    "python": _python,
    "node": _node,
    "java": _java,
    "go": _go,
}

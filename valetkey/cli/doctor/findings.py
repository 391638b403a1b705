"""What the doctor can find, defined once: a stable code, what it means, what to do about it.

``docs/reference/doctor.md`` is generated from this module.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

Level = Literal["wrong", "note"]


@dataclass(frozen=True, slots=True)
class Kind:
    """One thing that can be found.

    ``wrong`` makes the exit status 1; a ``note`` is worth knowing and does not. ``action`` is one
    line with ``{names}`` that `found` fills in.
    """

    name: str
    level: Level
    meaning: str
    action: str

    def found(self, subject: str, detail: str, **values: str) -> Finding:
        """This kind, seen at ``subject`` (a variable, a client, an address)."""
        return Finding(self, subject, detail, self.action.format(**values))


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was found. ``detail`` and ``action`` are one line each, without secrets."""

    kind: Kind
    subject: str
    detail: str
    action: str

    @property
    def is_wrong(self) -> bool:
        return self.kind.level == "wrong"


_ALL: dict[str, Kind] = {}


def all_kinds() -> tuple[Kind, ...]:
    """Every kind, in the order of definition."""
    return tuple(_ALL.values())


def _kind(name: str, meaning: str, action: str, level: Level = "wrong") -> Kind:
    kind = Kind(f"doctor.{name}", level, meaning, action)
    assert kind.name not in _ALL, name
    _ALL[kind.name] = kind
    return kind


# --- proxy variables ------------------------------------------------------------------------------
PROXY_UNSET: Final = _kind(
    "proxy_unset",
    "No proxy variable is set: clients call their targets directly.",
    "export http_proxy={proxy} https_proxy={proxy} HTTP_PROXY={proxy} HTTPS_PROXY={proxy}",
)
HTTP_PROXY_UNSET: Final = _kind(
    "http_proxy_unset",
    "Calls to http:// URLs have no proxy.",
    "export http_proxy={proxy} HTTP_PROXY={proxy}",
)
HTTPS_PROXY_UNSET: Final = _kind(
    "https_proxy_unset",
    "Calls to https:// URLs have no proxy.",
    "export https_proxy={proxy} HTTPS_PROXY={proxy}",
)
HTTP_PROXY_UPPERCASE_ONLY: Final = _kind(
    "http_proxy_uppercase_only",
    "curl, everything on libcurl (git, PHP, R…), wget and gRPC read http_proxy in lower case only.",
    'export http_proxy="$HTTP_PROXY"',
)
PROXY_SPELLINGS_DIFFER: Final = _kind(
    "proxy_spellings_differ",
    "A variable in lower case and in capitals holds two values; which one counts depends on the "
    "client.",
    'export {upper}="${lower}" if the lower-case value is the right one',
)
PROXY_MALFORMED: Final = _kind(
    "proxy_malformed",
    "A proxy variable holds no usable URL.",
    "Write it with scheme, host and port: {variable}={proxy}",
)
PROXY_SCHEME: Final = _kind(
    "proxy_scheme",
    "A proxy variable names another kind of proxy: the forward listener speaks plain HTTP.",
    "Write it with http://, for https:// targets too: {variable}={proxy}",
)
PROXY_ELSEWHERE: Final = _kind(
    "proxy_elsewhere",
    "A proxy variable leads to something that is not the sidecar's forward listener.",
    "export {variable}={proxy}",
)
REQUEST_METHOD_SET: Final = _kind(
    "request_method_set",
    "REQUEST_METHOD is set, so Python, Go and others take this for a CGI script and ignore "
    "HTTP_PROXY.",
    "unset REQUEST_METHOD",
)
NO_PROXY_EVERYTHING: Final = _kind(
    "no_proxy_everything",
    "NO_PROXY excludes every host.",
    "Take * out of {variable}",
)
NO_PROXY_TARGET: Final = _kind(
    "no_proxy_target",
    "NO_PROXY excludes a host that should be called through the sidecar.",
    "Take {entry} out of {variable}",
)
NO_PROXY_SPELLINGS_DIFFER: Final = _kind(
    "no_proxy_spellings_differ",
    "no_proxy and NO_PROXY hold two values; which one counts depends on the client.",
    'export NO_PROXY="$no_proxy" if the lower-case value is the right one',
    "note",
)

# --- the sidecar ----------------------------------------------------------------------------------
ADMIN_UNREACHABLE: Final = _kind(
    "admin_unreachable",
    "The sidecar's admin port does not answer.",
    "Start the sidecar, or say where it is: --admin URL (--no-admin where it can't be reached)",
)
NOT_READY: Final = _kind(
    "not_ready",
    "The sidecar says that it is not ready.",
    "See the reason, and the sidecar's log",
)
LISTENER_UNREACHABLE: Final = _kind(
    "listener_unreachable",
    "Nothing accepts connections at the forward listener's address.",
    "Start the sidecar with a listener of mode: forward there, or say where it is: --proxy URL",
)
LISTENER_FOREIGN: Final = _kind(
    "listener_foreign",
    "Something answers at that address, but it is not a forward listener of Valetkey.",
    "Give the sidecar a listener of mode: forward, and name that one: --proxy URL",
)
LISTENER_REFUSES: Final = _kind(
    "listener_refuses",
    "The forward listener is a sidecar's, but refuses calls for a reason of its own.",
    "See what docs/reference/codes.md says of that code, and the sidecar's log",
)
TOKEN_MISSING: Final = _kind(
    "token_missing",
    "The listener wants a token, and the proxy variable carries none.",
    "Put the listener's token into the URL: {variable}=http://valetkey:TOKEN@{address}",
)
TOKEN_REFUSED: Final = _kind(
    "token_refused",
    "The listener does not accept the token in the proxy variable.",
    "Put the token of the listener's token_file into {variable} (percent-encoded)",
)
INTERCEPTION_OFF: Final = _kind(
    "interception_off",
    "The sidecar does not open TLS, so it can put no credential into calls to https:// URLs.",
    "Add interception to the sidecar's settings",
)

# --- the interception CA --------------------------------------------------------------------------
CA_UNKNOWN: Final = _kind(
    "ca_unknown",
    "Where the interception CA's certificate is was not said, so that trust stores were not read.",
    "Say where it is: --ca-file FILE, or --config with the sidecar's settings",
    "note",
)
CA_UNREADABLE: Final = _kind(
    "ca_unreadable",
    "The file with the interception CA's certificate can't be used.",
    "Mount the file that interception.certificate_file names where this environment can read it",
)
CA_EXPIRED: Final = _kind(
    "ca_expired",
    "The interception CA's certificate is outside its time.",
    "Restart the sidecar (a CA of its own is made at start), or renew the one that it was given",
)
CA_MISMATCH: Final = _kind(
    "ca_mismatch",
    "The sidecar's certificates are not of the CA in that file.",
    "Take the file anew: a sidecar without a CA file of its own makes a CA at each start",
)

# --- trust stores ---------------------------------------------------------------------------------
STORE_UNREADABLE: Final = _kind(
    "store_unreadable",
    "A variable names a trust store that can't be read or holds no certificate.",
    "Name one that exists: {fix}",
)
STORE_WITHOUT_CA: Final = _kind(
    "store_without_ca",
    "The trust store that a client uses lacks the interception CA: its https:// calls will fail.",
    "{fix}",
)
STORE_CA_ONLY: Final = _kind(
    "store_ca_only",
    "A trust store holds the interception CA alone: hosts that are passed through unopened will "
    "not be trusted.",
    "Name the bundle with the system's roots: {fix}",
    "note",
)
SYSTEM_STORE_WITHOUT_CA: Final = _kind(
    "system_store_without_ca",
    "The system's trust store lacks the interception CA; clients that know no variable use it.",
    "Where such a client runs: copy the CA to /usr/local/share/ca-certificates/valetkey.crt and "
    "run update-ca-certificates",
    "note",
)
VERIFICATION_OFF: Final = _kind(
    "verification_off",
    "A setting switches off the verification of certificates: any proxy in the way could read the "
    "calls.",
    "{fix}",
)

# --- runtimes -------------------------------------------------------------------------------------
NODE_IGNORES_PROXY: Final = _kind(
    "node_ignores_proxy",
    "Node does not read the proxy variables on its own.",
    "{fix}",
)
JAVA_IGNORES_PROXY: Final = _kind(
    "java_ignores_proxy",
    "Java does not read the proxy variables; its system properties name no proxy.",
    'export JAVA_TOOL_OPTIONS="{options}"',
)
JAVA_PROXY_ELSEWHERE: Final = _kind(
    "java_proxy_elsewhere",
    "Java's system properties lead to something that is not the sidecar's forward listener.",
    'export JAVA_TOOL_OPTIONS="{options}"',
)
JAVA_NON_PROXY_HOSTS: Final = _kind(
    "java_non_proxy_hosts",
    "http.nonProxyHosts excludes a host that should be called through the sidecar.",
    "Take {entry} out of -Dhttp.nonProxyHosts",
)
GIT_PROXY_ELSEWHERE: Final = _kind(
    "git_proxy_elsewhere",
    "git's own http.proxy overrides the variables with something that is not the sidecar.",
    "git config --global --unset http.proxy (see: git config --show-origin http.proxy)",
)
RUNTIME_UNUSABLE: Final = _kind(
    "runtime_unusable",
    "A runtime on PATH does not say its version.",
    "Repair it, or leave it out with --runtime",
    "note",
)
RUNTIME_NOT_CALLED: Final = _kind(
    "runtime_not_called",
    "No call could be made with this runtime.",
    "See the reason; the judgement of its settings stands",
    "note",
)

# --- live calls -----------------------------------------------------------------------------------
CALL_DIRECT: Final = _kind(
    "call_direct",
    "A client did not use the proxy: it tried to resolve a name that only the sidecar knows.",
    "Set the variables that these clients read; see the table of clients",
)
CALL_UNTRUSTED: Final = _kind(
    "call_untrusted",
    "A client reached the sidecar and did not trust its certificate.",
    "{fix}",
)
CALL_REFUSED: Final = _kind(
    "call_refused",
    "A proxy refused to open a tunnel for a client's https:// call.",
    "{fix}",
)
CALL_UNREACHABLE: Final = _kind(
    "call_unreachable",
    "A client could not connect to its proxy.",
    "Start the sidecar, or correct the proxy variables",
)
CALL_ELSEWHERE: Final = _kind(
    "call_elsewhere",
    "A client got an answer that is not the sidecar's.",
    "Correct the proxy variables of these clients (in transparent mode: the rules for this user)",
)
CALL_TIMEOUT: Final = _kind(
    "call_timeout",
    "A client had no answer in time.",
    "Look for a proxy or a resolver that swallows packets, or allow more: --timeout SECONDS",
)
CALL_FAILED: Final = _kind(
    "call_failed",
    "A client failed in a way that says nothing about the sidecar.",
    "See the message",
)

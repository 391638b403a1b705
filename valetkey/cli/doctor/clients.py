"""Common clients that do not read the proxy variables, or not as one would think.

``docs/reference/doctor.md`` is generated from this module. A version that is named is the first
that does so.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Client:
    """One client. ``proxy``: how it gets to know the proxy; ``trust``: where its roots are."""

    name: str
    proxy: str
    trust: str
    action: str


CLIENTS: Final = (
    Client(
        "Node: fetch, http, https, undici, got",
        "ignored without NODE_USE_ENV_PROXY=1 (24.5, 22.21; fetch alone 24.0)",
        "NODE_EXTRA_CA_CERTS (a file, read at start)",
        "export NODE_USE_ENV_PROXY=1; before: undici's EnvHttpProxyAgent as global dispatcher",
    ),
    Client(
        "Python aiohttp",
        "ignored without trust_env=True; for WebSockets ws_proxy and wss_proxy alone count",
        "SSL_CERT_FILE, SSL_CERT_DIR",
        "ClientSession(trust_env=True); for WebSockets export wss_proxy (by ws:// it asks for what "
        "no proxy knows: reverse mode)",
    ),
    Client(
        "Python urllib3",
        "ignored",
        "SSL_CERT_FILE, SSL_CERT_DIR",
        "ProxyManager(os.environ['HTTPS_PROXY']) in place of PoolManager()",
    ),
    Client(
        "Python http.client, raw sockets",
        "ignored",
        "SSL_CERT_FILE (http.client)",
        "Another client, or transparent mode",
    ),
    Client(
        "Python requests, pip",
        "read; a session with trust_env=False ignores them",
        "REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE, else certifi's (pip: PIP_CERT)",
        "export REQUESTS_CA_BUNDLE",
    ),
    Client(
        "Java: HttpClient, HttpURLConnection",
        "ignored",
        "-Djavax.net.ssl.trustStore",
        'export JAVA_TOOL_OPTIONS="-Dhttp.proxyHost=… -Dhttp.proxyPort=… -Dhttps.proxyHost=…"; '
        "with a token also -Djdk.http.auth.tunneling.disabledSchemes= and an Authenticator",
    ),
    Client(
        "Java: Apache HttpClient",
        "ignored without useSystemProperties()",
        "-Djavax.net.ssl.trustStore, with useSystemProperties()",
        "HttpClients.createSystem()",
    ),
    Client(
        "Go net/http",
        "read, but localhost and 127.0.0.0/8 are never proxied; a Transport of one's own without "
        "Proxy ignores them",
        "SSL_CERT_FILE, SSL_CERT_DIR",
        "Transport{Proxy: http.ProxyFromEnvironment}; reverse mode for targets on localhost",
    ),
    Client(
        "gRPC (C core, Python, Ruby, Node)",
        "grpc_proxy, https_proxy, http_proxy in lower case; no_grpc_proxy",
        "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
        "It needs HTTP/2, which the sidecar does not speak: passthrough for its hosts",
    ),
    Client(
        "curl, libcurl, git, PHP, R",
        "http_proxy in lower case only; HTTPS_PROXY in both",
        "curl: CURL_CA_BUNDLE, SSL_CERT_FILE; git: GIT_SSL_CAINFO; libcurl: the system's",
        "export http_proxy",
    ),
    Client(
        "wget",
        "http_proxy, https_proxy in lower case only",
        "the system's, or ca_certificate in ~/.wgetrc",
        "export http_proxy https_proxy",
    ),
    Client(
        ".NET HttpClient",
        "read; NO_PROXY entries match subdomains only with a leading dot",
        "SSL_CERT_FILE, SSL_CERT_DIR (Linux)",
        "Nothing; a handler with UseProxy=false ignores them",
    ),
    Client(
        "AWS SDKs (boto3, CLI)",
        "read; calls to 169.254.169.254 need NO_PROXY",
        "AWS_CA_BUNDLE, REQUESTS_CA_BUNDLE",
        "export AWS_CA_BUNDLE",
    ),
    Client(
        "Chromium, headless browsers",
        "read on Linux without a desktop; drivers set --proxy-server",
        "the NSS database of the user (~/.pki/nssdb), not the system's",
        "certutil -A -d sql:$HOME/.pki/nssdb -t C,, -n valetkey -i CA_FILE",
    ),
    Client(
        "Database drivers, SSH, message brokers",
        "ignored: not HTTP",
        "each its own",
        "They do not go through the sidecar; close the way with egress rules",
    ),
)

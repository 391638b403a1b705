"""What clients say, in their own words: taken from curl 7.88, git 2.39, Python 3.11 (requests 2.34,
httpx 0.28, aiohttp 3.14), Node 20 to 24, Java 17 and Go 1.26.
"""

from __future__ import annotations

import json

import pytest

from valetkey.cli.doctor.outcome import Call, Outcome, code_in, is_sidecars, judge
from valetkey.contracts import codes, problem

HTTP, HTTPS = "http://valetkey.invalid/", "https://valetkey.invalid/"
_POOL = "HTTPSConnectionPool(host='valetkey.invalid', port=443): Max retries exceeded with url: /"
_VERIFY = "certificate verify failed: unable to get local issuer certificate (_ssl.c:1006)"
_JAVA = "unable to find valid certification path to requested target"

ERRORS: list[tuple[str, Outcome, str]] = [
    ("curl", "direct", "curl: (6) Could not resolve host: valetkey.invalid"),
    ("git", "direct", "fatal: unable to access 'http://valetkey.invalid/': Could not resolve host: valetkey.invalid"),
    ("urllib", "direct", "URLError: <urlopen error [Errno -2] Name or service not known>"),
    ("urllib without DNS", "direct", "URLError: <urlopen error [Errno -3] Temporary failure in name resolution>"),
    ("requests", "direct", f"ConnectionError: {_POOL} (Caused by NameResolutionError(\"HTTPSConnection(host='valetkey.invalid', port=443): Failed to resolve 'valetkey.invalid' ([Errno -2] Name or service not known)\"))"),
    ("httpx", "direct", "ConnectError: [Errno -2] Name or service not known"),
    ("aiohttp", "direct", "ClientConnectorDNSError: Cannot connect to host valetkey.invalid:80 ssl:default [Name or service not known]"),
    ("node", "direct", "TypeError fetch failed: Error ENOTFOUND getaddrinfo ENOTFOUND valetkey.invalid"),
    ("node without DNS", "direct", "Error EAI_AGAIN getaddrinfo EAI_AGAIN valetkey.invalid"),
    ("java", "direct", "ConnectException: ConnectException: UnresolvedAddressException"),
    ("go", "direct", 'Get "http://valetkey.invalid/": dial tcp: lookup valetkey.invalid on 10.0.0.2:53: no such host'),
    ("musl", "direct", "URLError: <urlopen error [Errno -2] Name does not resolve>"),
    ("curl", "refused", "curl: (56) CONNECT tunnel failed, response 403"),
    ("older curl", "refused", "curl: (56) Received HTTP code 407 from proxy after CONNECT"),
    ("git", "refused", "fatal: unable to access 'https://valetkey.invalid/': CONNECT tunnel failed, response 403"),
    ("urllib", "refused", "URLError: <urlopen error Tunnel connection failed: 403 Forbidden>"),
    ("requests", "refused", f"ProxyError: {_POOL} (Caused by ProxyError('Unable to connect to proxy', OSError('Tunnel connection failed: 407 Proxy Authentication Required')))"),
    ("httpx", "refused", "ProxyError: 403 Forbidden"),
    ("aiohttp", "refused", "ClientHttpProxyError: 407, message='Proxy Authentication Required', url='http://127.0.0.1:7072'"),
    ("node fetch", "refused", "TypeError fetch failed: Error Request was cancelled.: AbortError UND_ERR_ABORTED Proxy response (403) !== 200 when HTTP Tunneling"),
    ("node https", "refused", "Error ERR_PROXY_TUNNEL Failed to establish tunnel to valetkey.invalid:443 via http://127.0.0.1:7072: HTTP/1.1 403 Forbidden"),
    ("java", "refused", "IOException Tunnel failed, got: 403: IOException Tunnel failed, got: 403"),
    ("go", "refused", 'Get "https://valetkey.invalid/": Forbidden'),
    ("go, token", "refused", 'Get "https://valetkey.invalid/": Proxy Authentication Required'),
    ("curl", "untrusted", "curl: (60) SSL certificate problem: unable to get local issuer certificate"),
    ("git with GnuTLS", "untrusted", "fatal: unable to access 'https://valetkey.invalid/': server certificate verification failed. CAfile: /etc/ssl/certs/ca-certificates.crt CRLfile: none"),
    ("urllib", "untrusted", f"URLError: <urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] {_VERIFY}>"),
    ("requests", "untrusted", f"SSLError: {_POOL} (Caused by SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] {_VERIFY}')))"),
    ("aiohttp", "untrusted", f"ClientConnectorCertificateError: Cannot connect to host valetkey.invalid:443 ssl:True [SSLCertVerificationError: (1, '[SSL: CERTIFICATE_VERIFY_FAILED] {_VERIFY}')]"),
    ("node", "untrusted", "TypeError fetch failed: Error UNABLE_TO_VERIFY_LEAF_SIGNATURE unable to verify the first certificate"),
    ("node, whole chain", "untrusted", "Error SELF_SIGNED_CERT_IN_CHAIN self-signed certificate in certificate chain"),
    ("java", "untrusted", f"SSLHandshakeException PKIX path building failed: sun.security.provider.certpath.SunCertPathBuilderException: {_JAVA}"),
    ("go", "untrusted", 'Get "https://valetkey.invalid/": tls: failed to verify certificate: x509: certificate signed by unknown authority'),
    ("curl", "unreachable", "curl: (7) Failed to connect to 127.0.0.1 port 7072 after 0 ms: Couldn't connect to server"),
    ("urllib", "unreachable", "URLError: <urlopen error [Errno 111] Connection refused>"),
    ("requests", "unreachable", f"ProxyError: {_POOL} (Caused by ProxyError('Unable to connect to proxy', NewConnectionError(\"HTTPSConnection(host='127.0.0.1', port=7072): Failed to establish a new connection: [Errno 111] Connection refused\")))"),
    ("aiohttp", "unreachable", "ClientProxyConnectionError: Cannot connect to host 127.0.0.1:7072 ssl:default [Connect call failed ('127.0.0.1', 7072)]"),
    ("node", "unreachable", "TypeError fetch failed: Error ECONNREFUSED connect ECONNREFUSED 127.0.0.1:7072"),
    ("java", "unreachable", "ConnectException: ConnectException: ClosedChannelException"),
    ("go", "unreachable", 'Get "https://valetkey.invalid/": proxyconnect tcp: dial tcp 127.0.0.1:7072: connect: connection refused'),
    ("requests", "timeout", "ConnectTimeout: HTTPSConnectionPool(host='127.0.0.1', port=7072): Max retries exceeded (Caused by ConnectTimeoutError('Connection to 127.0.0.1 timed out. (connect timeout=1.0)'))"),
    ("node", "timeout", "TimeoutError 23 The operation was aborted due to timeout"),
    ("java", "timeout", "HttpTimeoutException request timed out"),
    ("go", "timeout", 'Get "http://valetkey.invalid/": context deadline exceeded (Client.Timeout exceeded while awaiting headers)'),
    ("anything", "failed", "SyntaxError: invalid syntax"),
    ("go", "failed", 'Get "https://valetkey.invalid/": EOF'),
]  # fmt: skip


@pytest.mark.parametrize(
    ("client", "outcome", "error"), ERRORS, ids=[f"{case[0]}: {case[1]}" for case in ERRORS]
)
def test_errors(client: str, outcome: Outcome, error: str) -> None:
    judged = judge(Call(client, HTTPS, error=error))
    assert (judged.outcome, judged.detail) == (outcome, error)


BODY = problem.render(codes.TARGET_NO_MATCH, instance="urn:x").decode()
ANSWERS: list[tuple[str, Call, Outcome, str]] = [
    ("the sidecar's", Call("c", HTTP, 403, problem.CONTENT_TYPE, body=BODY), "through", "403 target.no_match"),
    ("with a charset", Call("c", HTTP, 403, "Application/Problem+JSON; charset=utf-8", body=BODY), "through", "403 target.no_match"),
    ("the target's", Call("c", HTTP, 200, "text/html", via="1.1 valetkey", body="x"), "through", "200 from the target"),
    ("another proxy's", Call("c", HTTP, 503, "text/html", via="1.1 squid", body="x"), "elsewhere", "503 text/html"),
    ("another problem", Call("c", HTTP, 403, problem.CONTENT_TYPE, body='{"code":"other"}'), "elsewhere", "403 application/problem+json"),
    ("a problem that is none", Call("c", HTTP, 403, problem.CONTENT_TYPE, body="[]"), "elsewhere", "403 application/problem+json"),
    ("our body as HTML", Call("c", HTTP, 403, "text/html", body=BODY), "elsewhere", "403 text/html"),
    ("no body", Call("c", HTTP, 204), "elsewhere", "204"),
    ("a wanted token", Call("c", HTTP, 407, problem.CONTENT_TYPE, body=BODY), "refused", "407 Proxy Authentication Required"),
    ("none", Call("c", HTTP, timed_out=True), "timeout", "no answer in time"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "call", "outcome", "detail"), ANSWERS, ids=[case[0] for case in ANSWERS]
)
def test_answers(name: str, call: Call, outcome: Outcome, detail: str) -> None:
    judged = judge(call)
    assert (judged.outcome, judged.detail) == (outcome, detail)


def test_every_code_proves_a_sidecar() -> None:
    for code in codes.all_codes():
        assert is_sidecars(problem.CONTENT_TYPE, problem.render(code).decode())


@pytest.mark.parametrize("body", ["", "nonsense", "[]", "null", '{"code":1}', "{}"])
def test_what_has_no_code(body: str) -> None:
    assert code_in(body) == ""
    assert code_in(json.dumps({"code": "a.b"})) == "a.b"

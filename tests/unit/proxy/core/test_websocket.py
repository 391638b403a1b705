"""The WebSocket handshake's rules: what is one, and which subprotocols are credentials."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError
from valetkey.proxy.core.websocket import accept_key, check_handshake, split_subprotocols

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def test_the_example_of_rfc_6455() -> None:
    assert accept_key(KEY) == b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="


@given(st.binary(min_size=16, max_size=16))
def test_every_key_of_16_bytes_is_one(key: bytes) -> None:
    encoded = base64.b64encode(key)
    assert check_handshake("GET", [encoded], [b"13"]) == encoded


BAD = [
    ("another method", "POST", [KEY], [b"13"]),
    ("a method in lower case", "get", [KEY], [b"13"]),
    ("no key", "GET", [], [b"13"]),
    ("two keys", "GET", [KEY, KEY], [b"13"]),
    ("15 bytes", "GET", [base64.b64encode(bytes(15))], [b"13"]),
    ("17 bytes", "GET", [base64.b64encode(bytes(17))], [b"13"]),
    ("not padded", "GET", [KEY.rstrip(b"=")], [b"13"]),
    ("base64url", "GET", [b"-" * 22 + b"=="], [b"13"]),
    ("something behind", "GET", [KEY + b"\n"], [b"13"]),
    ("no version", "GET", [KEY], []),
    ("another version", "GET", [KEY], [b"8"]),
    ("a list of versions", "GET", [KEY], [b"13, 8"]),
    ("two versions", "GET", [KEY], [b"13", b"13"]),
]


@pytest.mark.parametrize(("name", "method", "keys", "versions"), BAD, ids=[c[0] for c in BAD])
def test_what_is_no_handshake(
    name: str, method: str, keys: list[bytes], versions: list[bytes]
) -> None:
    with pytest.raises(CallerError) as refused:
        check_handshake(method, keys, versions)
    assert refused.value.code is codes.REQUEST_UPGRADE_INVALID, name


JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJhIn0.c2lnbmF0dXJl"

SUBPROTOCOLS: list[tuple[str, list[str], list[str]]] = [
    ("none", [], []),
    ("one", ["graphql-transport-ws"], ["graphql-transport-ws"]),
    ("a list", ["mqtt, ocpp1.6", "realtime"], ["mqtt", "ocpp1.6", "realtime"]),
    ("Kubernetes' channels", ["v5.channel.k8s.io,v4.channel.k8s.io"], ["v5.channel.k8s.io", "v4.channel.k8s.io"]),
    ("Kubernetes' token", ["v4.channel.k8s.io, base64url.bearer.authorization.k8s.io.dG9r"], ["v4.channel.k8s.io"]),
    ("the token first", ["base64url.bearer.authorization.k8s.io.dG9r, v4.channel.k8s.io"], ["v4.channel.k8s.io"]),
    ("the token alone", ["base64url.bearer.authorization.k8s.io.dG9r"], []),
    ("in capitals", ["Base64URL.Bearer.Authorization.k8s.io.dG9r"], []),
    ("an API key behind a label", ["realtime, openai-insecure-api-key.sk-1, openai-beta.realtime-v1"], ["realtime", "openai-beta.realtime-v1"]),
    ("a label with _", ["x_api_key.abc"], []),
    ("a bearer label", ["bearer.abc", "bearer-abc", "a"], ["a"]),
    ("a JWT", [f"v1, {JWT}"], ["v1"]),
    ("a JWT behind something", [f"auth-{JWT}"], []),
    ("headers as JSON", ["aws-appsync-event-ws, header-eyJBdXRob3JpemF0aW9uIjoieCJ9"], ["aws-appsync-event-ws"]),
    ("a token behind its name", ["chat, access_token, c2VjcmV0"], ["chat"]),
    ("behind Authorization", ["Authorization, c2VjcmV0, chat"], ["chat"]),
    ("behind bearer", ["bearer, c2VjcmV0"], []),
    ("behind a header's name", ["X-Api-Key, c2VjcmV0, chat"], ["chat"]),
    ("names alone", ["token, bearer, c2VjcmV0"], []),
    ("a name at the end", ["chat, token"], ["chat"]),
    ("words that only look so", ["tokenring, bearing.v1, api.v1"], ["tokenring", "bearing.v1", "api.v1"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "values", "kept"), SUBPROTOCOLS, ids=[case[0] for case in SUBPROTOCOLS]
)
def test_credentials_among_subprotocols(name: str, values: list[str], kept: list[str]) -> None:
    offered = [entry for value in values for entry in value.split(",")]
    found, dropped = split_subprotocols([value.encode() for value in values])
    assert found == kept, name
    assert dropped == (len(kept) < len(offered))


@pytest.mark.parametrize("value", ["", "a b", "a,,b", ",a", "a, a", "a/b", 'a"', "a\x80", "a;q=1"])
def test_what_is_no_list_of_subprotocols(value: str) -> None:
    with pytest.raises(CallerError) as refused:
        split_subprotocols([value.encode("latin-1")])
    assert refused.value.code is codes.REQUEST_UPGRADE_INVALID

from __future__ import annotations

from pathlib import Path

import jwt
import pytest

from bench.identity import Identity
from bench.rows import (
    AT_SATURATION,
    BODIES,
    DIRECT,
    INTERCEPTION,
    LATENCY,
    NGINX,
    VALETKEY,
    VALETKEY_DPOP,
)
from bench.servers import (
    HERE,
    LARGE_BODY_SIZE,
    checked_call,
    judge_seen,
    large_body,
    load_path,
    render,
)

KEY = "a key that only this test has, 32 bytes"


def minted(audience: str = "http://tickets.example", **claims: object) -> str:
    return jwt.encode({"aud": audience, "scope": "tickets:read", **claims}, KEY, algorithm="HS256")


BOUND = minted("http://tickets-dpop.example", cnf={"jkt": "k"})
PROOF = jwt.encode({"ath": "h"}, KEY, algorithm="HS256")


@pytest.mark.parametrize(
    ("row", "authorization", "proof", "problem"),
    [
        (NGINX, "Bearer static", "", ""),
        (DIRECT, "Bearer static", "", ""),
        (NGINX, "Bearer brought-by-the-caller", "", "not the static token"),
        (NGINX, "", "", "not the static token"),
        (VALETKEY, f"Bearer {minted()}", "", ""),
        (VALETKEY, "Bearer static", "", "not a JWT"),
        (VALETKEY, f"DPoP {minted()}", "", "scheme 'DPoP'"),
        (VALETKEY, f"Bearer {minted('http://other.example')}", "", "aud 'http://other.example'"),
        (VALETKEY, f"Bearer {minted(scope='tickets:read tickets:write')}", "", "scope"),
        (VALETKEY_DPOP, f"DPoP {BOUND}", PROOF, ""),
        (VALETKEY_DPOP, f"DPoP {BOUND}", "", "not a JWT"),
        (VALETKEY_DPOP, f"DPoP {minted('http://tickets-dpop.example')}", PROOF, "not bound"),
        (VALETKEY_DPOP, f"Bearer {BOUND}", PROOF, "scheme 'Bearer'"),
    ],
)
def test_the_credential_that_the_upstream_saw(
    row: object, authorization: str, proof: str, problem: str
) -> None:
    seen = {"authorization": authorization, "dpop": proof}
    reason = judge_seen(row, seen, static_token="static")  # type: ignore[arg-type]
    assert problem in reason
    assert bool(reason) == bool(problem)


def test_templates_are_filled_and_missing_values_refused(tmp_path: Path) -> None:
    values = {"directory": tmp_path, "port": 1, "token": "t"}
    text = render("nginx-authz.conf", tmp_path / "out", **values).read_text()
    assert "listen 127.0.0.1:1 " in text
    assert "@{" not in text
    with pytest.raises(KeyError, match="token"):
        render("nginx-authz.conf", tmp_path / "out", directory=tmp_path, port=1)


def test_every_row_has_its_config_and_a_name_of_its_own() -> None:
    for rows in (AT_SATURATION, LATENCY):
        assert len({row.name for row in rows}) == len(rows)
        assert all((HERE / "configs" / f"{r.config}.template").exists() for r in rows if r.config)


def test_the_static_token_is_about_as_long_as_a_minted_one(tmp_path: Path) -> None:
    assert 700 < len(Identity(tmp_path).static_token()) < 1400


def test_the_checked_call_is_like_those_of_the_load() -> None:
    body = large_body()
    assert len(body) == LARGE_BODY_SIZE
    assert len({body[at : at + 16] for at in range(0, len(body), 16)}) == LARGE_BODY_SIZE // 16
    paths = {row.body: (load_path(row), checked_call(row)) for row in (NGINX, *BODIES)}
    assert paths == {
        "": ("/api/tickets/7", ("GET", "/api/check/7", None, None)),
        "download": ("/api/tickets/file", ("GET", "/api/check/file", None, body)),
        "upload": ("/api/tickets/upload", ("POST", "/api/check/upload", body, None)),
    }


def test_every_kind_of_work_has_the_same_rivals() -> None:
    kinds = ["direct", "nginx", "envoy", "valetkey"]
    assert [row.kind for row in INTERCEPTION] == kinds
    assert [row.kind for row in BODIES] == 2 * kinds
    assert all(row.tls for row in INTERCEPTION)
    assert {row.routes for row in (*INTERCEPTION, *BODIES) if row.kind == "valetkey"} == {1_000}

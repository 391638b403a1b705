from __future__ import annotations

from pathlib import Path

import jwt
import pytest

from bench.identity import Identity
from bench.rows import DIRECT, LATENCY, NGINX, THROUGHPUT, VALETKEY, VALETKEY_DPOP
from bench.servers import HERE, judge_seen, render

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
    for rows in (THROUGHPUT, LATENCY):
        assert len({row.name for row in rows}) == len(rows)
        assert all((HERE / "configs" / f"{r.config}.template").exists() for r in rows if r.config)


def test_the_static_token_is_about_as_long_as_a_minted_one(tmp_path: Path) -> None:
    assert 700 < len(Identity(tmp_path).static_token()) < 1400

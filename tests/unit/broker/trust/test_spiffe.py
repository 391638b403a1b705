"""Roots of a bundle: what is read of it, and what makes it no bundle."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.trust_domain import TrustDomain
from valetkey.broker.trust.spiffe import read_authorities, verify_chain, workload_of
from valetkey.contracts.jose import TokenInvalid


def test_the_roots_of_a_bundle() -> None:
    domain = TrustDomain()
    assert read_authorities(json.dumps(domain.bundle()).encode()) == (domain.authority.certificate,)


BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "no roots": lambda bundle: bundle["keys"].pop(0),
    "another use": lambda bundle: bundle["keys"][0].update(use="sig"),
    "no use": lambda bundle: bundle["keys"][0].pop("use"),
    "no certificate": lambda bundle: bundle["keys"][0].pop("x5c"),
    "an empty chain": lambda bundle: bundle["keys"][0].update(x5c=[]),
    "two certificates": lambda bundle: bundle["keys"][0]["x5c"].append("AAAA"),
    "no base64": lambda bundle: bundle["keys"][0].update(x5c=["?"]),
    "no DER": lambda bundle: bundle["keys"][0].update(x5c=["AAAA"]),
    "a certificate that is no text": lambda bundle: bundle["keys"][0].update(x5c=[7]),
    "keys are no list": lambda bundle: bundle.update(keys={}),
    "no keys": lambda bundle: bundle.pop("keys"),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_what_is_no_bundle(change: Callable[[dict[str, Any]], Any]) -> None:
    bundle = TrustDomain().bundle()
    change(bundle)
    with pytest.raises(TokenInvalid):
        read_authorities(json.dumps(bundle).encode())


@pytest.mark.parametrize("document", [b"", b"[]", b"\xff", b"null"])
def test_what_is_no_document(document: bytes) -> None:
    with pytest.raises(TokenInvalid, match="not a SPIFFE bundle"):
        read_authorities(document)


def test_a_chain_is_judged_by_the_time_that_is_given() -> None:
    domain = TrustDomain()
    svid = domain.x509_svid(ttl=600)
    roots = [domain.authority.certificate]
    verify_chain(svid.leaf, [], roots, now=time.time())
    for now in (time.time() - 3600, time.time() + 601):
        with pytest.raises(TokenInvalid, match="does not hold"):
            verify_chain(svid.leaf, [], roots, now=now)


def test_a_chain_leads_to_the_given_roots() -> None:
    domain, other = TrustDomain(), TrustDomain()
    svid = domain.x509_svid()
    with pytest.raises(TokenInvalid, match="does not hold"):
        verify_chain(svid.leaf, [], [other.authority.certificate], now=time.time())


def test_a_leaf_may_have_dns_names_besides() -> None:
    leaf = TrustDomain().x509_svid("spiffe://acme.example/bot", dns=("bot.example",)).leaf
    assert str(workload_of(leaf)) == "spiffe://acme.example/bot"

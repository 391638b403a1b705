"""Txn-Token: put in for the trust domain, and never let through to anywhere."""

from __future__ import annotations

import jwt

from tests.support.fleet import USER, WORKLOAD, Fleet
from valetkey.contracts.events import TYPE_DECISION

DOMAIN = "demo.test.example"


def domain_of(fleet: Fleet) -> None:
    fleet.broker_changes = {
        "targets": {"tickets": {"audience": DOMAIN, "credential": "txn_token", "ttl": "60s"}}
    }
    targets = fleet.tree()["targets"]
    targets["tickets"] |= {"audience": DOMAIN, "credential": {"kind": "txn_token"}}
    fleet.sidecar_changes = {"targets": targets}


async def test_within_the_domain_it_carries_the_transaction(tmp_path):
    fleet = Fleet(tmp_path)
    domain_of(fleet)
    async with fleet.running(collector=False):
        stolen = {"Txn-Token": "stolen", "Authorization": "Bearer stolen", "Txn_Token": "stolen"}
        status, _ = await fleet.call("/api/1", headers=stolen)
        assert status == 200
        user = {"X-Valetkey-Subject": fleet.user_token()}
        assert (await fleet.call("/api/1", headers=user))[0] == 200
        own, for_user = (request.headers for request in fleet.received)
        for headers in (own, for_user):
            assert len(headers.getall("Txn-Token")) == 1
            assert "Authorization" not in headers
            assert "Txn_Token" not in headers
        sent = [
            jwt.decode(headers["Txn-Token"], options={"verify_signature": False})
            for headers in (own, for_user)
        ]
        assert [claims["sub"] for claims in sent] == [WORKLOAD, USER]
        assert {claims["aud"] for claims in sent} == {DOMAIN}
        assert {claims["req_wl"] for claims in sent} == {WORKLOAD}


async def test_outside_the_domain_none_goes_on(tmp_path):
    fleet = Fleet(tmp_path)
    async with fleet.running(collector=False):
        for name in ("Txn-Token", "txn-token", "TXN_TOKEN", "Txn.Token"):
            assert (await fleet.call("/api/1", headers={name: "inner"}))[0] == 200, name
        for request in fleet.received:
            assert not [name for name in request.headers if name.lower()[:3] == "txn"]
            assert "inner" not in request.headers.values()
        decisions = await fleet.spooled(TYPE_DECISION)
        assert [event["data"]["unmapped"]["dropped"] for event in decisions] == [["txn-token"]] * 4


async def test_a_broker_that_answers_with_another_type_is_not_believed(tmp_path):
    """A target of the trust domain gets no access token, whatever the broker thinks it is."""
    fleet = Fleet(tmp_path)
    domain_of(fleet)
    fleet.broker_changes = {"targets": {"tickets": {"audience": DOMAIN, "credential": "bearer"}}}
    async with fleet.running(collector=False):
        status, problem = await fleet.call("/api/1")
        assert (status, problem["code"]) == (403, "broker.refused")
        assert fleet.received == []

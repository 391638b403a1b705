"""SVIDs through py-spiffe and real gRPC, from an agent that comes and goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from tests.support.trust_domain import TrustDomain
from tests.support.workload_api import Agent
from valetkey.contracts import jose
from valetkey.proxy.identity.workload_api import WorkloadApi, WorkloadApiFailed

BROKER = "https://broker.example"


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Agent]:
    with Agent(tmp_path / "agent.sock", TrustDomain()) as agent:
        yield agent


def test_a_jwt_svid_for_one_audience(agent: Agent) -> None:
    svid = WorkloadApi(agent.url, None).jwt_svid(BROKER)
    claims = jose.parse(svid.token).unverified_claims
    assert claims["aud"] == [BROKER]
    assert str(svid.identity) == claims["sub"] == agent.domain.workload()
    assert svid.expires == claims["exp"]
    assert agent.audiences == [[BROKER]]
    assert svid.token not in repr(svid)


def test_an_x509_svid(agent: Agent) -> None:
    svid = WorkloadApi(agent.url, None).x509_svid()
    leaf = x509.load_pem_x509_certificates(svid.chain)[0]
    assert leaf.issuer == agent.domain.authority.name
    assert str(svid.identity) == agent.domain.workload()
    assert svid.expires == leaf.not_valid_after_utc.timestamp() > time.time()
    assert b"PRIVATE KEY" in svid.key
    assert "PRIVATE KEY" not in repr(svid)


def test_one_of_several_by_its_id(agent: Agent) -> None:
    agent.paths = ["/a", "/b"]
    wanted = agent.domain.workload("/b")
    api = WorkloadApi(agent.url, wanted)
    assert str(api.jwt_svid(BROKER).identity) == wanted
    assert str(api.x509_svid().identity) == wanted
    assert str(WorkloadApi(agent.url, None).jwt_svid(BROKER).identity).endswith("/a")


def test_an_id_that_the_agent_has_not(agent: Agent) -> None:
    api = WorkloadApi(agent.url, agent.domain.workload("/other"))
    with pytest.raises(WorkloadApiFailed, match="PERMISSION_DENIED"):
        api.jwt_svid(BROKER)
    with pytest.raises(WorkloadApiFailed, match="no certificate for the identity"):
        api.x509_svid()


def test_no_entry_for_this_process(agent: Agent) -> None:
    agent.paths = []
    api = WorkloadApi(agent.url, None)
    for ask in (lambda: api.jwt_svid(BROKER), api.x509_svid):
        with pytest.raises(WorkloadApiFailed, match="PERMISSION_DENIED"):
            ask()


def test_no_agent_then_one_then_none_then_another(tmp_path: Path) -> None:
    """No question waits for a lost agent, and none remembers that it was lost."""
    agent = Agent(tmp_path / "agent.sock", TrustDomain())
    api = WorkloadApi(agent.url, None)
    for _ in range(2):
        began = time.monotonic()
        with pytest.raises(WorkloadApiFailed):
            api.jwt_svid(BROKER)
        assert time.monotonic() - began < 4  # before its time is up
        with agent:
            assert api.jwt_svid(BROKER).token
            assert api.x509_svid().chain


def test_a_socket_behind_which_nobody_is(tmp_path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "agent.sock"))
    with pytest.raises(WorkloadApiFailed):
        WorkloadApi(f"unix://{tmp_path / 'agent.sock'}", None).jwt_svid(BROKER)

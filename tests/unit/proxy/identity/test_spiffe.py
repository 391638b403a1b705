"""SVIDs in the sidecar: rotated at half their life, kept while the agent is away, then gone."""

from __future__ import annotations

import asyncio
import ssl
import time
from pathlib import Path
from typing import Any

import pytest
import trustme
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from tests.support.trust_domain import TrustDomain
from tests.support.waiting import until
from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError, ConfigError
from valetkey.contracts.oauth import ASSERTION_JWT_SPIFFE
from valetkey.contracts.spiffe_id import SpiffeId
from valetkey.proxy.identity import spiffe as module
from valetkey.proxy.identity.spiffe import SpiffeIdentity
from valetkey.proxy.identity.workload_api import JwtSvid, WorkloadApiFailed, X509Svid

BROKER = "https://broker.example"
OLD, NEW = trustme.CA(), trustme.CA()


class Api:
    """The adapter's interface, without an agent; `tests/integration` has a real one."""

    def __init__(self) -> None:
        self.domain = TrustDomain()
        self.path = "/ns/agents/sa/bot"
        self.certificate_path = ""
        self.ttl = 300.0
        self.away = False
        self.asked = 0

    def jwt_svid(self, audience: str) -> JwtSvid:
        self.asked += 1
        if self.away:
            raise WorkloadApiFailed("FetchJwtSvidError UNAVAILABLE")
        token = self.domain.jwt_svid([audience], path=self.path, ttl=self.ttl)
        identity = SpiffeId.parse(self.domain.workload(self.path))
        return JwtSvid(token, identity, time.time() + self.ttl)

    def x509_svid(self) -> X509Svid:
        identity = self.domain.workload(self.certificate_path or self.path)
        svid = self.domain.x509_svid(identity, ttl=self.ttl)
        key = svid.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        chain = b"".join(one.public_bytes(Encoding.PEM) for one in svid.chain)
        return X509Svid(chain, key, SpiffeId.parse(identity), time.time() + self.ttl)


class Setup:
    def __init__(self, **more: Any) -> None:
        self.now = 1000.0
        self.api = Api()
        self.identity = SpiffeIdentity(self.api, BROKER, clock=lambda: self.now, **more)

    def later(self, seconds: float) -> None:
        self.now += seconds
        self.identity.refresh()

    def refused(self) -> str:
        assert self.identity.principal() is None
        with pytest.raises(BrokerError) as failed:
            self.identity.token()
        assert failed.value.code is codes.IDENTITY_UNAVAILABLE
        return failed.value.reason


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_before_the_first_question_there_is_none(setup: Setup) -> None:
    assert "not asked yet" in setup.refused()


def test_the_svid_names_the_workload(setup: Setup) -> None:
    setup.identity.refresh()
    principal = setup.identity.principal()
    assert principal is not None
    assert (principal.tenant, principal.subject) == (
        "spiffe://acme.example",
        "spiffe://acme.example/ns/agents/sa/bot",
    )
    token, left = setup.identity.token()
    assert token.reveal().count(".") == 2
    assert 295 < left <= 300
    assert setup.identity.problem == ""
    assert setup.identity.assertion_type == ASSERTION_JWT_SPIFFE
    assert setup.identity.client_context() is None, "nobody asked for certificates"


def test_it_is_asked_again_at_half_the_life(setup: Setup) -> None:
    setup.identity.refresh()
    first = setup.identity.token()[0].reveal()
    principal = setup.identity.principal()
    setup.later(149)
    assert setup.api.asked == 1
    setup.later(2)
    assert setup.api.asked == 2
    assert setup.identity.token()[0].reveal() != first
    assert setup.identity.principal() is principal, "the same workload: its keys stay"


def test_long_lived_svids_are_looked_at_all_the_same(setup: Setup) -> None:
    setup.api.ttl = 86_400
    setup.identity.refresh()
    setup.later(301)
    assert setup.api.asked == 2


def test_the_agent_gone_and_back(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    setup.identity.refresh()
    token = setup.identity.token()[0].reveal()
    setup.api.away = True
    asked = []
    for _ in range(40):  # 1, 2, 4, 8, 16, 30, 30 … seconds apart
        setup.later(2 if setup.now > 1151 else 151)
        asked.append(setup.api.asked)
    assert asked[-1] - asked[0] in {4, 5, 6}
    assert setup.identity.token()[0].reveal() == token, "the last one goes on"
    assert "UNAVAILABLE" in setup.identity.problem
    assert setup.identity.principal() is not None
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 301)
    assert "UNAVAILABLE" in setup.refused(), "until it expires"
    monkeypatch.undo()
    setup.api.away = False
    setup.later(31)
    assert setup.identity.problem == ""
    assert setup.identity.token()[0].reveal() != token


def test_another_identity_is_another_principal(setup: Setup) -> None:
    setup.identity.refresh()
    before = setup.identity.principal()
    setup.api.path = "/ns/agents/sa/other"
    setup.later(151)
    after = setup.identity.principal()
    assert before is not None
    assert after is not None
    assert after.subject == "spiffe://acme.example/ns/agents/sa/other"
    assert after is not before


def test_certificates_come_as_tls_contexts() -> None:
    setup = Setup(certificates=True)
    with pytest.raises(BrokerError) as failed:
        setup.identity.client_context()
    assert failed.value.code is codes.IDENTITY_UNAVAILABLE
    setup.identity.refresh()
    first = setup.identity.client_context()
    assert isinstance(first, ssl.SSLContext)
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname
    assert setup.identity.client_context() is first
    setup.later(151)
    assert setup.identity.client_context() is not first, "rotated"


def test_a_rotation_that_finds_no_roots_leaves_the_last_ones(tmp_path: Path) -> None:
    roots = tmp_path / "ca.pem"
    setup = Setup(certificates=True, ca_file=roots)
    with pytest.raises(ConfigError):
        setup.identity.refresh()  # at the start the settings are wrong
    roots.write_bytes(setup.api.x509_svid().chain)
    setup.identity.refresh()
    token, context = setup.identity.token()[0], setup.identity.client_context()
    for broken in (roots.unlink, lambda: roots.write_text("no certificate")):
        broken()
        setup.later(151)
        assert setup.identity.token()[0] is token
        assert setup.identity.client_context() is context
        assert "ca_file" in setup.identity.problem
    roots.write_bytes(setup.api.x509_svid().chain)
    setup.later(30)
    assert setup.identity.problem == ""
    assert setup.identity.token()[0] is not token
    assert setup.identity.client_context() is not context


async def test_other_roots_are_taken_up_at_once(tmp_path: Path) -> None:
    roots = tmp_path / "ca.pem"
    roots.write_bytes(OLD.cert_pem.bytes())
    setup = Setup(certificates=True, ca_file=roots)
    await asyncio.to_thread(setup.identity.refresh)
    first = setup.identity.client_context()
    assert first is not None
    watching = asyncio.create_task(setup.identity.watch())
    try:
        fresh = tmp_path / "new.pem"
        fresh.write_bytes(NEW.cert_pem.bytes())
        fresh.replace(roots)
        await until(lambda: setup.identity.client_context() is not first, "the new roots")
        asked = setup.api.asked
        context = setup.identity.client_context()
        assert context is not None
        assert context.get_ca_certs() != first.get_ca_certs()
        assert setup.identity.problem == ""
        await asyncio.sleep(1.2)
        assert setup.api.asked == asked, "it is not asked again and again"
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def test_a_certificate_that_is_none_leaves_the_last_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(certificates=True)
    setup.identity.refresh()
    token, context = setup.identity.token()[0], setup.identity.client_context()
    good = setup.api.x509_svid
    broken = X509Svid(b"no chain", b"no key", good().identity, time.time() + 300)
    monkeypatch.setattr(setup.api, "x509_svid", lambda: broken)
    setup.later(151)
    assert setup.identity.token()[0] is token
    assert setup.identity.client_context() is context
    assert setup.identity.problem
    monkeypatch.setattr(setup.api, "x509_svid", good)
    setup.later(30)
    assert setup.identity.problem == ""


def test_an_expired_certificate_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    setup = Setup(certificates=True)
    setup.identity.refresh()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + 301)
    with pytest.raises(BrokerError):
        setup.identity.client_context()


def test_a_certificate_of_another_identity_is_a_failure() -> None:
    setup = Setup(certificates=True)
    setup.api.certificate_path = "/ns/agents/sa/other"
    setup.identity.refresh()
    assert "two identities" in setup.refused()


async def test_watching_asks_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TICK", 0.01)
    setup = Setup()
    watching = asyncio.ensure_future(setup.identity.watch())
    while setup.api.asked < 1:
        await asyncio.sleep(0.01)
    setup.now += 151
    while setup.api.asked < 2:
        await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.gather(watching, return_exceptions=True)

"""What the broker is asked about, and what a revocation does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from tests.unit.proxy.credentials.test_cache import KEY
from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError
from valetkey.contracts.secret import Secret
from valetkey.proxy.core.credential import Credential
from valetkey.proxy.credentials.revalidation import Revalidation


class Stand:
    """A cache, streams and a broker that keep what they are told."""

    def __init__(self):
        self.used, self.streaming, self.bad = [], [], set()
        self.asked, self.revoked = [], []
        self.broker = True
        streams = SimpleNamespace(credentials=lambda: self.streaming)
        self.revalidation = Revalidation(
            SimpleNamespace(take_used=lambda: self.used),
            SimpleNamespace(is_active=self.is_active),
            SimpleNamespace(streams=streams, revoke=self.revoke),
            5.0,
        )

    def revoke(self, ended):
        everything = dict.fromkeys((*self.used, *self.streaming))
        self.revoked += [one for one in everything if ended.certain(one)]

    async def is_active(self, credential):
        self.asked.append(credential.jti)
        if not self.broker:
            raise BrokerError(codes.BROKER_UNAVAILABLE, "down")
        return credential.jti not in self.bad


@pytest.fixture
def stand():
    return Stand()


def named(jti):
    return Credential(
        KEY, Secret(f"the-token-that-is-{jti}"), b"", expires_at=9.0, refresh_at=8.0,
        subject="bot", actor="bot", jti=jti, txn="t", policy_digest="d",
    )  # fmt: skip


async def test_each_credential_in_use_is_asked_about_once(stand):
    shared, quiet, open_ = map(named, ("shared", "quiet", "open"))
    stand.used, stand.streaming = [shared, quiet], [open_, shared, open_]
    await stand.revalidation.round()
    assert stand.asked == ["shared", "quiet", "open"]
    assert stand.revalidation.asked == 3
    assert stand.revoked == []


async def test_a_revoked_one_is_ended_and_no_other(stand):
    stand.streaming = [named("good"), named("bad")]
    stand.bad = {"bad"}
    await stand.revalidation.round()
    assert stand.revoked == [stand.streaming[1]]
    assert stand.revalidation.revoked == 1


async def test_a_broker_that_is_away_revokes_nothing_and_is_left_alone(stand):
    stand.streaming = [named("a"), named("b")]
    stand.broker = False
    await stand.revalidation.round()
    assert stand.asked == ["a"]
    assert stand.revoked == []

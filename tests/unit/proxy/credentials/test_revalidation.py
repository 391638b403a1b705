"""What the broker is asked about, and what a revocation does."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from valetkey.contracts import codes
from valetkey.contracts.errors import BrokerError
from valetkey.proxy.credentials.revalidation import Revalidation


class Stand:
    """A cache, streams and a broker that keep what they are told."""

    def __init__(self):
        self.used, self.streaming, self.bad = [], [], set()
        self.asked, self.evicted, self.doubted = [], [], []
        self.broker = True
        cache = SimpleNamespace(take_used=lambda: self.used, evict=self.evicted.append)
        streams = SimpleNamespace(credentials=lambda: self.streaming, revoked=self.doubted.append)
        self.revalidation = Revalidation(
            cache, SimpleNamespace(is_active=self.is_active), streams, 5.0
        )

    async def is_active(self, credential):
        self.asked.append(credential.jti)
        if not self.broker:
            raise BrokerError(codes.BROKER_UNAVAILABLE, "down")
        return credential.jti not in self.bad


@pytest.fixture
def stand():
    return Stand()


class Named:
    """A credential, as far as it matters here."""

    def __init__(self, jti):
        self.jti = jti


async def test_each_credential_in_use_is_asked_about_once(stand):
    shared, quiet, open_ = map(Named, ("shared", "quiet", "open"))
    stand.used, stand.streaming = [shared, quiet], [open_, shared, open_]
    await stand.revalidation.round()
    assert stand.asked == ["shared", "quiet", "open"]
    assert stand.revalidation.asked == 3
    assert stand.evicted == stand.doubted == []


async def test_a_revoked_one_is_evicted_and_its_streams_are_told(stand):
    stand.streaming = [Named("good"), Named("bad")]
    stand.bad = {"bad"}
    await stand.revalidation.round()
    assert stand.evicted == stand.doubted == [stand.streaming[1]]
    assert stand.revalidation.revoked == 1


async def test_a_broker_that_is_away_revokes_nothing_and_is_left_alone(stand):
    stand.streaming = [Named("a"), Named("b")]
    stand.broker = False
    await stand.revalidation.round()
    assert stand.asked == ["a"]
    assert stand.evicted == stand.doubted == []

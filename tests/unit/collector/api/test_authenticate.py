from __future__ import annotations

import time

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from tests.support.chain import WORKLOAD
from tests.support.collector import AUDIENCE, READER
from valetkey.collector.api.authenticate import Authenticator, Caller
from valetkey.contracts import codes
from valetkey.contracts.errors import ValetkeyError


def request(*authorization: str):
    fields = CIMultiDict([("Authorization", value) for value in authorization])
    return make_mocked_request("POST", "/v1/events", headers=fields)


class Clock:
    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def authenticator(bench, clock):
    return Authenticator(bench.settings(), clock=clock)


async def test_a_sidecar(bench, authenticator):
    found = await authenticator.sidecar(request(bench.sidecar()["Authorization"]))
    assert (found.issuer, found.subject) == (bench.workloads.issuer, WORKLOAD)


async def test_a_reader(bench, authenticator):
    found = await authenticator.reader(request(bench.reader()["Authorization"]))
    assert found.subject == READER


async def test_the_scheme_is_read_without_regard_to_case(bench, authenticator):
    token = bench.workloads.mint(WORKLOAD, AUDIENCE)
    assert isinstance(await authenticator.sidecar(request(f"bEARER {token}")), Caller)


REFUSED = {
    "no token": (lambda b: (), codes.SERVICE_UNAUTHENTICATED),
    "two tokens": (lambda b: (b.sidecar()["Authorization"],) * 2, codes.SERVICE_UNAUTHENTICATED),
    "another scheme": (lambda b: ("Basic eDp5",), codes.SERVICE_UNAUTHENTICATED),
    "a scheme alone": (lambda b: ("Bearer ",), codes.SERVICE_UNAUTHENTICATED),
    "no token in a token's place": (lambda b: ("Bearer x",), codes.SERVICE_UNAUTHENTICATED),
    "another audience": (
        lambda b: ("Bearer " + b.workloads.mint(WORKLOAD, "https://other"),),
        codes.SERVICE_UNAUTHENTICATED,
    ),
    "a second audience": (
        lambda b: ("Bearer " + b.workloads.mint(WORKLOAD, [AUDIENCE, "https://other"]),),
        codes.SERVICE_UNAUTHENTICATED,
    ),
    "expired": (
        lambda b: ("Bearer " + b.workloads.mint(WORKLOAD, AUDIENCE, -60),),
        codes.SERVICE_UNAUTHENTICATED,
    ),
    "an issuer that is not trusted": (
        lambda b: ("Bearer " + b.workloads.mint(WORKLOAD, AUDIENCE, iss="https://evil"),),
        codes.SERVICE_UNAUTHENTICATED,
    ),
    "signed by somebody else": (
        lambda b: ("Bearer " + b.people.mint(WORKLOAD, AUDIENCE, iss=b.workloads.issuer),),
        codes.SERVICE_UNAUTHENTICATED,
    ),
    "bound to a key that nobody proves": (
        lambda b: ("Bearer " + b.workloads.mint(WORKLOAD, AUDIENCE, cnf={"jkt": "x"}),),
        codes.MTLS_MISMATCH,
    ),
    "a person": (lambda b: (b.reader()["Authorization"],), codes.SERVICE_FORBIDDEN),
}


@pytest.mark.parametrize(("fields", "code"), REFUSED.values(), ids=REFUSED)
async def test_no_sidecar(bench, authenticator, fields, code):
    with pytest.raises(ValetkeyError) as refused:
        await authenticator.sidecar(request(*fields(bench)))
    assert refused.value.code is code


NO_READERS = {
    "another subject": lambda b: b.reader("somebody")["Authorization"],
    "the subject at another issuer": lambda b: "Bearer " + b.workloads.mint(READER, AUDIENCE),
    "a sidecar": lambda b: b.sidecar()["Authorization"],
}


@pytest.mark.parametrize("field", NO_READERS.values(), ids=NO_READERS)
async def test_no_reader(bench, authenticator, field):
    with pytest.raises(ValetkeyError) as refused:
        await authenticator.reader(request(field(bench)))
    assert refused.value.code is codes.SERVICE_FORBIDDEN


async def test_without_readers_nobody_reads(bench):
    authenticator = Authenticator(bench.settings(readers=[]))
    with pytest.raises(ValetkeyError) as refused:
        await authenticator.reader(request(bench.reader()["Authorization"]))
    assert refused.value.code is codes.SERVICE_FORBIDDEN


async def test_a_verified_token_is_remembered_until_it_expires(bench, authenticator, clock):
    field = request("Bearer " + bench.workloads.mint(WORKLOAD, AUDIENCE, 300))
    first = await authenticator.sidecar(field)
    assert await authenticator.sidecar(field) is first
    clock.now += 299
    assert await authenticator.sidecar(field) is first
    # Within the leeway it is verified anew, and after that refused.
    clock.now += 10
    assert await authenticator.sidecar(field) is not first
    clock.now += 30
    with pytest.raises(ValetkeyError):
        await authenticator.sidecar(field)


async def test_the_memory_is_bounded(bench, clock):
    authenticator = Authenticator(bench.settings(verified_tokens=2), clock=clock)
    fields = [request(bench.sidecar(f"agent-{n}")["Authorization"]) for n in range(3)]
    callers = [await authenticator.sidecar(field) for field in fields]
    assert await authenticator.sidecar(fields[2]) is callers[2]
    assert await authenticator.sidecar(fields[0]) is not callers[0]

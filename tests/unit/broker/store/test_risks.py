"""What is kept of a subject's risk: the newest word of each, the highest of all, each until its end."""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import func, select

from tests.integration.broker_support import Clock
from valetkey.broker.core.incidents import Party
from valetkey.broker.core.risk import Risk
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.risks import Risks
from valetkey.broker.store.schema import SUBJECT_RISKS

ALICE = Party("https://idp", "alice")


class Desk:
    """A replica that hears what transmitters say."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self.database = database
        self.changes = Changes(database)
        self.risks = Risks(database, self.changes, clock=clock)
        self.clock = clock

    async def says(
        self,
        level: Risk,
        *,
        at: float = 0.0,
        source: str = "idp",
        principal: str = "USER",
        party: Party = ALICE,
        lasts: float = 100.0,
    ) -> bool:
        """``at`` is in seconds from now."""
        seen = self.clock() + at
        async with self.database.write() as connection:
            rose = await self.risks.rate(
                connection, party, level, source=source, principal=principal, at=seen,
                until=seen + lasts,
            )  # fmt: skip
        await self.changes.catch_up()
        return rose

    @property
    def alice(self) -> Risk:
        return self.risks.of(*ALICE_IS)


ALICE_IS = (ALICE.issuer, ALICE.subject)


@pytest.fixture
async def desk(database: Database) -> Desk:
    made = Desk(database, Clock(10_000.0))
    await made.changes.load()
    await made.risks.load()
    return made


async def test_the_newest_word_of_each_counts(desk: Desk) -> None:
    assert desk.alice == "unrated"
    assert await desk.says("medium")
    assert desk.alice == "medium"
    assert not await desk.says("high", at=-1), "of something earlier"
    assert desk.alice == "medium"
    assert not await desk.says("low"), "of the same moment the higher one counts"
    assert desk.alice == "medium"
    desk.clock.advance(1)
    assert not await desk.says("low")
    assert desk.alice == "low"
    assert await desk.says("high")
    assert (desk.alice, desk.risks.of("https://idp", "bob")) == ("high", "unrated")
    assert desk.risks.of("https://other", "alice") == "unrated"


async def test_the_highest_of_all_words_counts(desk: Desk) -> None:
    assert await desk.says("medium", source="edr", principal="DEVICE")
    assert not await desk.says("low")
    assert not await desk.says("medium")
    assert desk.alice == "medium"
    assert await desk.says("high", source="edr", principal="SESSION", lasts=50)
    desk.clock.advance(49)
    assert desk.alice == "high"
    desk.clock.advance(1)
    assert desk.alice == "medium", "each until its own end"
    desk.clock.advance(50)
    assert desk.alice == "unrated"
    assert await desk.says("medium"), "risen again"
    assert not await desk.says("high", at=-200, source="late"), "its time is over"


async def test_what_no_longer_counts_is_forgotten(desk: Desk) -> None:
    await desk.says("high", lasts=10)
    await desk.says("high", lasts=1000, party=Party("https://idp", "bob"))
    desk.clock.advance(10)
    await desk.risks.sweep()
    async with desk.database.read() as connection:
        query = select(func.count()).select_from(SUBJECT_RISKS)
        assert (await connection.execute(query)).scalar_one() == 1
    assert list(desk.risks._words) == [("https://idp", "bob")]


async def test_other_replicas_know_and_whoever_starts_later(desk: Desk) -> None:
    other = Desk(desk.database, desk.clock)
    await other.changes.load()
    await other.risks.load()
    endless = Party("https://idp", "x" * 900)  # too long to be named in a change
    await desk.says("high", party=endless)
    await desk.says("medium")
    await other.changes.catch_up()
    later = Desk(desk.database, desk.clock)
    await later.risks.load()
    for replica in (desk, other, later):
        assert replica.alice == "medium"
        assert replica.risks.of("https://idp", endless.subject) == "high"


async def test_two_at_once_lose_nothing(desk: Desk) -> None:
    rose = await asyncio.gather(
        *(desk.says("high", source=f"t{number}", lasts=100 + number) for number in range(6))
    )
    assert rose.count(True) == 1
    desk.clock.advance(104.5)
    assert desk.alice == "high"

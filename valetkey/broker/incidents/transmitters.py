"""Security events of other transmitters: each is verified, acted on once, and then acknowledged.

What a SET opens and the note that it was seen are one transaction: one that comes twice, by push or
poll, at whichever replica, is acted on once, and none is acknowledged before it is in force. None
is refused for keys that could not be had: a transmitter never sends again what was refused.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from sqlalchemy.ext.asyncio import AsyncConnection

from valetkey.broker.core.incidents import Exposure, Incident
from valetkey.broker.core.security_events import EventInvalid, Mouth, Rating, Sighting, read
from valetkey.broker.incident_settings import TransmitterSettings
from valetkey.broker.incidents.response import Report, Response
from valetkey.broker.settings import MAX_TTL
from valetkey.broker.store.assertions import UsedAssertions
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.database import Database
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.risks import Risks
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import codes, jose
from valetkey.contracts.errors import ValetkeyError
from valetkey.contracts.fetch import fetch
from valetkey.contracts.jose import KeySet, TokenInvalid, UnknownKey, UnverifiedToken
from valetkey.contracts.keys import KeySource, KeysUnavailable
from valetkey.contracts.logs import Log
from valetkey.contracts.sets import TYP, SetRefused, check_form

# An event that is older is not acted on any more: for so long it is remembered that it was.
MAX_AGE: Final = 7 * 86_400.0


class SetUndecided(ValetkeyError):  # noqa: N818 - it is what happened
    """Whether a SET can be believed can't be told now: it is to be sent again."""

    def __init__(self, reason: str) -> None:
        super().__init__(codes.SERVICE_UNAVAILABLE, reason)


class Transmitter:
    """One transmitter, with its keys. ``own_issuer`` is the broker's identifier."""

    def __init__(self, name: str, settings: TransmitterSettings, *, own_issuer: str) -> None:
        self.name = name
        self.settings = settings
        self.mouth = Mouth(
            subjects=frozenset(settings.subjects),
            identifiers={str(form): issuer for form, issuer in settings.identifiers.items()},
            opens=frozenset(settings.opens),
            own_issuer=own_issuer,
            rates=settings.risk is not None,
        )
        self._algorithms = frozenset(settings.algorithms)
        self._keys = KeySource(settings.issuer, self._read, self._parse)

    async def verify(self, compact: str, *, now: float) -> Mapping[str, Any]:
        """The claims of a SET of its own, for us. Raises `SetRefused`, `SetUndecided`."""
        try:
            token = jose.parse(compact)
        except TokenInvalid as error:
            raise SetRefused("invalid_request", str(error)) from error
        if token.unverified_header.get("typ") != TYP:  # RFC 8417 §2.3
            raise SetRefused("invalid_request", "typ is not secevent+jwt")
        try:
            await self._check_signed(token)
        except KeysUnavailable as error:
            raise SetUndecided(f"{self.name}: {error}") from error
        except TokenInvalid as error:
            raise SetRefused("invalid_key", str(error)) from error
        claims, audience = token.unverified_claims, self.settings.audience
        if claims.get("iss") != self.settings.issuer:
            raise SetRefused("invalid_issuer", "iss is not the transmitter")
        if claims.get("aud") not in (audience, [audience]):
            raise SetRefused("invalid_audience", "aud is not this receiver alone")
        check_form(claims, now)
        if now - claims["iat"] > MAX_AGE:
            raise SetRefused("invalid_request", "iat is more than 7 days ago")
        return claims

    async def _check_signed(self, token: UnverifiedToken) -> None:
        """Raises `TokenInvalid`, `KeysUnavailable` where a newer set may hold its key."""
        came = time.monotonic()
        keys = await self._keys.current()
        try:
            jose.check_signed(token, keys, algorithms=self._algorithms)
        except UnknownKey:
            newer = await self._keys.newer(keys) or keys
            try:
                jose.check_signed(token, newer, algorithms=self._algorithms)
            except UnknownKey as unknown:
                if self._keys.is_newer_than(came):
                    raise
                raise KeysUnavailable("no keys newer than the event could be had") from unknown

    def _parse(self, document: bytes) -> KeySet:
        return KeySet.from_jwks(document, algorithms=self._algorithms)

    async def _read(self) -> bytes:
        if self.settings.jwks_file is not None:
            return await asyncio.to_thread(self.settings.jwks_file.read_bytes)
        assert self.settings.jwks_url is not None
        return await fetch(self.settings.jwks_url, ca_file=self.settings.jwks_ca_file)


class Intake:
    """Takes SETs, however they came. ``clock`` gives seconds since the epoch."""

    def __init__(
        self,
        database: Database,
        seen: UsedAssertions,
        response: Response,
        epochs: Epochs,
        risks: Risks,
        changes: Changes,
        *,
        clock: Clock,
    ) -> None:
        self._risks = risks
        self._changes = changes
        self._database = database
        self._seen = seen
        self._response = response
        self._epochs = epochs
        self._clock = clock
        self._log = Log("broker.transmitters")

    async def take(self, transmitter: Transmitter, compact: str, *, jti: str = "") -> None:
        """Act on a SET; in force when this returns. ``jti``: what it must have, if that is known.

        Raises `SetRefused` for one that can't be believed, `SetUndecided` and `StoreError` for one
        to be sent again.
        """
        now = self._clock()
        claims = await transmitter.verify(compact, now=now)
        if jti and claims["jti"] != jti:
            raise SetRefused("invalid_request", "it was sent under another jti")
        try:
            reading = read(claims, transmitter.mouth)
        except EventInvalid as error:
            raise SetRefused("invalid_request", str(error)) from error
        name = transmitter.name
        if reading.verified:
            self._log.info("stream_verified", key=name)
        for why in reading.passed_over:
            self._log.info("event_passed_over", key=name, reason=why)
        opened: list[tuple[Incident, bool]] = []
        async with self._database.write() as connection:
            expires = now + MAX_AGE + jose.LEEWAY
            if not await self._seen.use_within(connection, f"set:{name}", claims["jti"], expires):
                return
            for sighting in reading.sightings:
                if self._is_known(sighting):
                    continue
                report = _report(transmitter, sighting, now)
                opened.append(await self._response.open_within(connection, report))
            for rating in reading.ratings:
                await self._rate(connection, transmitter, rating, now)
        if reading.ratings:
            await self._changes.catch_up()
        for incident, new in opened:
            await self._response.opened(incident, new=new)

    async def _rate(
        self, connection: AsyncConnection, transmitter: Transmitter, rating: Rating, now: float
    ) -> None:
        """Keep it. What was issued before a subject's risk rose is decided on again."""
        longest = transmitter.settings.risk
        assert longest is not None  # else its events are read without ratings
        party, level = rating.party, rating.level
        # What is said to have happened later than now would count longer than it may.
        at = min(rating.seen_at, now)
        rose = await self._risks.rate(
            connection,
            party,
            level,
            source=transmitter.name,
            principal=rating.principal,
            at=at,
            until=at + longest,
        )
        # A first word that there is little to fear ends nobody's tokens.
        if rose and level != "low":
            await self._epochs.bump(
                connection,
                party.issuer,
                party.subject,
                at=now,
                reason=f"risk: {level}, says {transmitter.name}",
                attest=False,
            )
            self._log.warning(
                "risk_raised",
                key=transmitter.name,
                subject=party.subject,
                issuer=party.issuer,
                reason=f"{rating.principal}: {level}",
            )

    def _is_known(self, sighting: Sighting) -> bool:
        """Whether the subject was contained after it happened; clocks differ by so much."""
        party = sighting.party
        if party is None:
            return False
        after = self._epochs.of(party.issuer, party.subject).attest_after
        return bool(after) and sighting.seen_at + jose.LEEWAY <= after


def _report(transmitter: Transmitter, sighting: Sighting, now: float) -> Report:
    party = sighting.party
    if party is not None:
        exposure = Exposure("subject", party.subject, issuer=party.issuer, party=party)
    else:
        # All that is known of it is its id: it ends, and whose it is nobody has said.
        exposure = Exposure("token", sighting.jti, expires=now + MAX_TTL)
    return Report(
        exposure,
        source=f"ssf:{transmitter.name}",
        by=transmitter.settings.issuer,
        reason=sighting.reason,
        seen_at=sighting.seen_at,
    )


async def read_secret(path: Path) -> str:
    """The bearer token in a file, read anew so that it can be replaced. Raises `OSError`."""
    text = await asyncio.to_thread(path.read_text, encoding="ascii")
    return text.strip()

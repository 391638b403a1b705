"""What is held against parties and our own tokens: the one place that asks the stores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from valetkey.broker.core.containment import Attestation, IncidentFacts, Standing, counts
from valetkey.broker.core.exchange import ExchangeFacts, Issue, Party, User
from valetkey.broker.core.risk import Risk
from valetkey.broker.issuers.jwt import OwnToken
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.store.changes import Changes
from valetkey.broker.store.epochs import Epochs
from valetkey.broker.store.incidents import Incidents
from valetkey.broker.store.revocations import Revocations, subject_value, token_values
from valetkey.broker.store.risks import Risks
from valetkey.broker.store.seen_keys import SeenKeys
from valetkey.broker.trust.clients import Client
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import es256, jose
from valetkey.contracts.jose import VerifiedClaims


class StandingChanged(Exception):  # noqa: N818 - reads as what it is
    """What an exchange was decided on no longer holds: undo what it used up, and decide again."""


class Standings:
    """Every answer is from memory, but for a key that this replica has not seen lately.

    All of them raise `NotCurrent` where this replica may lack what others ended.
    """

    def __init__(
        self,
        changes: Changes,
        revocations: Revocations,
        epochs: Epochs,
        keys: SeenKeys,
        incidents: Incidents,
        risks: Risks,
        policies: PolicyFile,
        *,
        clock: Clock,
        skew: float,
    ) -> None:
        self._changes = changes
        self._revocations = revocations
        self._epochs = epochs
        self._keys = keys
        self._incidents = incidents
        self._risks = risks
        self._policies = policies
        self._clock = clock
        self._skew = skew

    async def sweep(self) -> None:
        """Forget keys that nobody has shown for long. Raises `StoreError`."""
        await self._keys.sweep()

    def require_current(self) -> None:
        """Before anything is looked up. Raises `NotCurrent`."""
        self._changes.require_current()

    def token_counts(self, token: OwnToken, compact: str) -> bool:
        """Whether one of our own tokens is still good, as far as revocations go.

        One whose signature was rewritten is not: what is known of a token by its hash would not be
        known of that one.
        """
        return es256.is_ours(compact) and self.stands(token, lambda: token_values(compact))

    def stands(self, token: OwnToken, hashes: Callable[[], Iterable[str]]) -> bool:
        """The same for a token that is not at hand; ``hashes`` gives its `token_value`, or more."""
        self.require_current()
        revocations, issued = self._revocations, token.issued
        if revocations.is_revoked(token.jti, token.txn) or (
            revocations.any_hash
            and any(revocations.refuses("hash", value, issued_at=issued) for value in hashes())
        ):
            return False
        client = (token.client_issuer, token.client_id)
        subject = (token.subject_issuer, token.subject)
        return (
            counts(token.epoch, self._epochs.of(*subject))
            and counts(token.client_epoch, self._epochs.of(*client))
            and not any(
                revocations.refuses("subject", subject_value(*who), issued_at=issued)
                for who in {client, subject}
            )
            and not revocations.refuses("target", token.audience, issued_at=issued)
            and self._policies.current.stands(token.grants, self._clock())
            and not any(
                revocations.refuses("grant", grant, issued_at=issued) for grant in token.grants
            )
            and not any(
                revocations.refuses("key", key, issued_at=issued)
                for key in (token.kid, *token.bound_to)
            )
        )

    async def of_exchange(self, client: Client, user: User | None, audience: str) -> IncidentFacts:
        """The facts of one exchange. Raises `StoreError`.

        Notes the keys of the client that somebody vouches for; `note_proof_key` notes its own.
        """
        attestation = await self._attestation(client)
        self.require_current()  # after what had to be waited for
        return self._facts(client, attestation, user, audience)

    def require_same(
        self,
        facts: IncidentFacts,
        client: Client,
        user: User | None,
        issue: Issue,
    ) -> None:
        """Directly before a token is minted on ``facts``: that they still hold. Asks nobody.

        Raises `StandingChanged`, also inside a transaction that it thereby undoes.
        """
        self.require_current()
        now = self._facts(client, facts.client.attestation, user, issue.audience)
        ended = now.ended_grants
        if (
            now.client != facts.client
            or now.user != facts.user
            or now.target_ended != facts.target_ended
            or (ended is not facts.ended_grants and not ended.isdisjoint(issue.rests_on))
        ):
            raise StandingChanged

    def _facts(
        self, client: Client, attestation: Attestation, user: User | None, audience: str
    ) -> IncidentFacts:
        return IncidentFacts(
            client=self._of_client(client, attestation),
            user=None if user is None else self._of_user(user),
            target_ended=self._revocations.blocks("target", audience),
            ended_grants=self._revocations.ended_grants,
            skew=self._skew,
        )

    def of_question(
        self, client: Party, claims: Mapping[str, Any], user: User | None, audience: str
    ) -> IncidentFacts:
        """The facts of an exchange that somebody asks about; no key is shown and none is noted.

        ``claims`` are those of the client's token, as far as they are given: without ``iat`` it
        attests nothing.
        """
        self.require_current()
        who = (client.issuer, client.subject)
        return IncidentFacts(
            client=Standing(
                epoch=self._epochs.of(*who),
                attestation=Attestation(_time(claims.get("iat")), None),
                ended=self._revocations.blocks("subject", subject_value(*who)),
                key_ended=False,
                risk=self._risk(*who),
            ),
            user=None if user is None else self._of_user(user),
            target_ended=self._revocations.blocks("target", audience),
            ended_grants=self._revocations.ended_grants,
            skew=self._skew,
        )

    async def note_proof_key(self, client: Client, facts: IncidentFacts) -> None:
        """Before anything is given on ``facts`` that the client's proof key can be bound to.

        Raises `StandingChanged` where another replica saw the key earlier, `CallerError` where the
        subject shows too many new ones, and `StoreError`.
        """
        if not client.proof:
            return
        claims, since = client.assertion.claims, facts.client.attestation.key_since
        first = await self._keys.note(claims.issuer, claims.subject, client.proof, limited=True)
        if since is None or first < since:
            raise StandingChanged

    async def note_attested(self, facts: ExchangeFacts) -> None:
        """Both parties were found good: tell incidents that wait for it. Raises `StoreError`."""
        incidents, client, user = facts.incidents, facts.client, facts.user
        parties = [((client.issuer, client.subject), incidents.client)]
        if user is not None and incidents.user is not None:
            parties.append(((user.home, user.subject), incidents.user))
        for who, standing in parties:
            if standing.epoch.attest_after and self._incidents.awaits(*who):
                await self._incidents.attested(*who, epoch=standing.epoch.number)

    async def _attestation(self, client: Client) -> Attestation:
        claims = client.assertion.claims
        who = (claims.issuer, claims.subject)
        vouched = [client.certificate] if client.certificate else []
        if claims.issuer == claims.subject:
            # Self-signed: with the key that leaked, anybody makes assertions of any date.
            vouched.append(f"kid:{claims.header.get('kid', '')}")
        since = [await self._keys.note(*who, key, limited=False) for key in vouched]
        if client.proof:
            since.append(await self._keys.since(*who, client.proof))
        return Attestation(_issued_at(claims), min(since, default=None))

    def _of_client(self, client: Client, attestation: Attestation) -> Standing:
        claims = client.assertion.claims
        who = (claims.issuer, claims.subject)
        return Standing(
            epoch=self._epochs.of(*who),
            attestation=attestation,
            ended=self._revocations.blocks("subject", subject_value(*who)),
            key_ended=any(self._revocations.blocks("key", key) for key in _keys(client)),
            risk=self._risk(*who),
        )

    def _of_user(self, user: User) -> Standing:
        who = (user.home, user.subject)
        return Standing(
            epoch=self._epochs.of(*who),
            attestation=Attestation(_time(user.claims.get("iat")), None),
            ended=self._revocations.blocks("subject", subject_value(*who)),
            key_ended=False,
            risk=self._risk(*who),
        )

    def _risk(self, issuer: str, subject: str) -> Risk:
        if self._incidents.is_open(issuer, subject):
            return "high"
        return self._risks.of(issuer, subject)


def _keys(client: Client) -> list[str]:
    return [key for key in (client.proof, client.certificate) if key]


def _issued_at(claims: VerifiedClaims) -> float | None:
    return _time(claims.claims.get("iat"))


def _time(claim: Any) -> float | None:
    return float(claim) if jose.is_time(claim) else None

"""Between a decision that needs people and the token: use an approval, or ask for one.

Rules:

- Without the client's opt-in nothing is deferred: it is told that people have to decide, under
  which id, and repeats its exchange later.
- A deferral code decides nothing. When it is redeemed, the policy is asked again about the facts
  that were verified at first, and what it would issue must be the very request that was approved.
- A transaction in which something is noted against a party is undone: `Check`.
- Redeeming a code, using the approval and claiming uses of grants are one transaction.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import msgspec

from valetkey.broker.approval_settings import ApprovalsSettings
from valetkey.broker.core.approvals import Identity, Request, chain_of
from valetkey.broker.core.exchange import (
    ExchangeFacts,
    Issue,
    NeedsApproval,
    Party,
    Refuse,
    User,
    with_approval,
)
from valetkey.broker.core.request import ExchangeRequest
from valetkey.broker.metrics import Metrics
from valetkey.broker.store.approvals import Approvals, Claim, Denied, Taken, Waiting
from valetkey.broker.store.database import Database
from valetkey.broker.store.deferrals import Deferrals, Polled
from valetkey.broker.store.uses import GrantUses
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import codes
from valetkey.contracts.codes import Code
from valetkey.contracts.errors import CallerError, PolicyError
from valetkey.contracts.jose import b64url
from valetkey.contracts.logs import Log
from valetkey.contracts.oauth import TokenError
from valetkey.contracts.secret import Secret

Check = Callable[[Issue], None]
"""Says at the end of a transaction, by an exception, that the token must not be minted."""

_ROUNDED_UP: Final = 0.999


class AwaitsApproval(PolicyError):  # noqa: N818 - reads as what it is
    """No token, for the time being or for good: an approval stands in between."""

    def __init__(
        self,
        code: Code,
        reason: str,
        *,
        approval: str,
        deferral: Secret | None = None,
        expires_in: float = 0.0,
        interval: float = 0.0,
    ) -> None:
        super().__init__(code, reason)
        self.approval = approval
        self.deferral = deferral
        self.expires_in = expires_in
        self.interval = interval

    def answer(self, description: str) -> TokenError:
        """The error response; the code is revealed here, to the client that it is for."""
        return TokenError(
            self.code.oauth,
            description,
            self.code.name,
            approval_id=self.approval,
            deferral_code=self.deferral.reveal() if self.deferral is not None else "",
            expires_in=math.floor(self.expires_in),
            interval=math.floor(self.interval + _ROUNDED_UP) if self.interval else 0,
        )


@dataclass(frozen=True, slots=True)
class Redemption:
    """A code whose approval can be used: what was asked, and for whom, as it was verified then."""

    polled: Polled
    request: ExchangeRequest
    user: User | None


class ApprovalGate:
    """``issuer`` is the broker's own identifier."""

    def __init__(
        self,
        database: Database,
        approvals: Approvals,
        deferrals: Deferrals,
        settings: ApprovalsSettings,
        uses: GrantUses,
        metrics: Metrics,
        *,
        issuer: str,
        clock: Clock,
    ) -> None:
        self._database = database
        self._approvals = approvals
        self._deferrals = deferrals
        self._settings = settings
        self._uses = uses
        self._metrics = metrics
        self._issuer = issuer
        self._clock = clock
        self._log = Log("broker.approvals")

    @property
    def defers(self) -> bool:
        """Whether clients may ask for deferrals at all."""
        return self._settings.deferred

    async def pass_or_ask(self, needs: NeedsApproval, facts: ExchangeFacts, check: Check) -> Issue:
        """What an approval gives; it is used up by this. Raises `AwaitsApproval`, `StoreError`."""
        request = self._request(needs, facts)
        now = self._clock()
        requirement = needs.requirement
        settings = self._settings
        found = await self._approvals.take_or_open(
            request,
            purpose=facts.request.purpose,
            # Plain floats: a `Duration` is for settings, and nothing encodes it.
            expires=float(requirement.expires or settings.expires),
            valid=float(requirement.valid or settings.valid),
            now=now,
            claim=self._claim(needs.issue),
            check=partial(check, needs.issue),
        )
        match found:
            case Taken():
                issue = self._issue(needs, found, now)
                self._metrics.approvals.labels("used").inc()
                return issue
            case Denied():
                raise AwaitsApproval(
                    codes.APPROVAL_DENIED, "denied, and asked again", approval=found.id
                )
        if found.opened:
            self._log.info(
                "approval_requested",
                approval=found.id,
                workload=request.client.subject,
                issuer=request.client.issuer,
                target=request.target,
            )
        # A subject token of ours can be revoked by its hash, and no token is kept over a deferral.
        ours = facts.user is not None and facts.user.issuer == self._issuer
        if ours or not (self.defers and facts.request.deferred):
            raise AwaitsApproval(codes.APPROVAL_REQUIRED, "before people", approval=found.id)
        raise await self._defer(found, facts, now)

    async def _defer(self, waiting: Waiting, facts: ExchangeFacts, now: float) -> AwaitsApproval:
        code, interval = await self._deferrals.issue(
            waiting.id,
            _identity(facts.client),
            _keys(facts.proof, facts.certificate),
            _save(facts),
            expires_at=waiting.expires_at,
            now=now,
        )
        return AwaitsApproval(
            codes.APPROVAL_PENDING,
            "before people",
            approval=waiting.id,
            deferral=code,
            expires_in=waiting.expires_at - now,
            interval=interval,
        )

    # --- a deferral code ----------------------------------------------------------------------

    async def poll(self, code: str, client: Party, proof: str, certificate: str) -> Redemption:
        """What is behind a code whose approval can be used; decide on it, then `redeem`.

        Raises `AwaitsApproval`, `CallerError`, `StoreError`.
        """
        now = self._clock()
        keys = _keys(proof, certificate)
        polled = await self._deferrals.poll(code, _identity(client), keys, now=now)
        entry = await self._approvals.get(polled.approval)
        state = entry.approval.state(now) if entry is not None else "expired"
        refusal = {
            "pending": codes.APPROVAL_SLOW_DOWN if polled.too_soon else codes.APPROVAL_PENDING,
            "denied": codes.APPROVAL_DENIED,
            "revoked": codes.APPROVAL_DENIED,
            "expired": codes.APPROVAL_EXPIRED,
            "ended": codes.APPROVAL_EXPIRED,
            "used": codes.APPROVAL_CODE,
        }.get(state)
        if refusal is not None:
            raise AwaitsApproval(
                refusal,
                f"the approval is {state}",
                approval=polled.approval,
                expires_in=polled.expires_at - now if state == "pending" else 0.0,
                interval=polled.interval if state == "pending" else 0.0,
            )
        return _restore(polled)

    async def redeem(
        self,
        redemption: Redemption,
        decision: Issue | NeedsApproval,
        facts: ExchangeFacts,
        check: Check,
    ) -> Issue:
        """What the policy decides now, if that is what was approved.

        Raises `CallerError`, `StoreError`.
        """
        now = self._clock()
        polled = redemption.polled
        claim = self._claim(decision if isinstance(decision, Issue) else decision.issue)
        async with self._database.write() as connection:
            if claim is not None:
                await self._database.take_turn(connection)
            if not await self._deferrals.redeem(connection, polled.id, now=now):
                raise CallerError(codes.APPROVAL_CODE, "redeemed meanwhile")
            if isinstance(decision, Issue):  # the policy no longer asks anybody
                if claim is not None:
                    await claim(connection)
                check(decision)
                return decision
            digest = self._request(decision, facts).digest()
            taken = await self._approvals.take(connection, polled.approval, digest, now=now)
            if taken is None:
                # The exception undoes the redemption too.
                raise CallerError(
                    codes.APPROVAL_CODE, "used up meanwhile, or the policy asks for something else"
                )
            if claim is not None:
                await claim(connection)
            check(decision.issue)
            issue = self._issue(decision, taken, now)
        self._metrics.approvals.labels("used").inc()  # what was undone was no use
        return issue

    def _claim(self, issue: Issue) -> Claim | None:
        """Claims the uses of counted grants that the token takes; ``None``: it takes none."""
        if not issue.limited:
            return None
        return lambda connection: self._uses.claim_in(connection, issue.limited)

    def _issue(self, needs: NeedsApproval, taken: Taken, now: float) -> Issue:
        issue = with_approval(
            needs, approval=taken.id, single_use=taken.single_use, until=taken.until, now=now
        )
        if isinstance(issue, Refuse):
            raise AwaitsApproval(issue.code, issue.reason, approval=taken.id)
        return issue

    def _request(self, needs: NeedsApproval, facts: ExchangeFacts) -> Request:
        issue, user = needs.issue, facts.user
        also: tuple[Identity, ...] = ()
        if user is not None and user.home == self._issuer:
            # A token of our own that does not say whose its subject is: it may be anybody's.
            also = (Identity("", user.subject),)
        return Request(
            client=_identity(facts.client),
            subject=_identity(facts.client) if user is None else Identity(user.home, user.subject),
            actors=chain_of(issue.act),
            audience=issue.audience,
            resource=facts.request.resource or issue.audience,
            scopes=issue.scopes,
            details=issue.details,
            thumbprint=_keys(facts.proof, facts.certificate),
            policy_digest=issue.policy_digest,
            epochs=(issue.epoch, issue.client_epoch),
            requirement=needs.requirement,
            target=issue.target,
            grants=issue.grant_ids,
            also_asking=also,
        )


def _keys(proof: str, certificate: str) -> str:
    """One name for the keys that a client shows: its proof key, or with it its certificate."""
    if not certificate:
        return proof
    return b64url(hashlib.sha256(f"{proof}.{certificate}".encode()).digest())


def _identity(party: Party) -> Identity:
    return Identity(party.issuer, party.subject)


def _save(facts: ExchangeFacts) -> bytes:
    user = facts.user
    document = {
        "request": facts.request.saved(),
        "user": None if user is None else msgspec.to_builtins(user),
    }
    return msgspec.json.encode(document)


def _restore(polled: Polled) -> Redemption:
    document: dict[str, Any] = msgspec.json.decode(polled.request)
    user = document["user"]
    return Redemption(
        polled,
        ExchangeRequest.restore(document["request"]),
        None if user is None else msgspec.convert(user, User),
    )

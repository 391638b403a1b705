"""``POST /token``: token exchange (RFC 8693), and the answer to one that was deferred."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final

from aiohttp import web

from valetkey.broker.api.wire import description, error_answer, json_answer, read_form, told_of
from valetkey.broker.approval_gate import ApprovalGate, AwaitsApproval, Check
from valetkey.broker.cedar_files import CedarFiles
from valetkey.broker.core.capabilities import needed
from valetkey.broker.core.exchange import (
    ExchangeFacts,
    Issue,
    NeedsApproval,
    Party,
    Refuse,
    User,
    decide,
)
from valetkey.broker.core.form import Form
from valetkey.broker.core.rate_limit import RateLimit
from valetkey.broker.core.request import ExchangeRequest, parse_exchange
from valetkey.broker.issuers.jwt import JwtIssuer
from valetkey.broker.metrics import Metrics
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.store.signals import Signals
from valetkey.broker.store.statuses import Statuses
from valetkey.broker.store.uses import GrantUses
from valetkey.broker.trust.clients import Client, ClientAuthenticator
from valetkey.broker.trust.parties import PartyResolver
from valetkey.broker.trust.people import People
from valetkey.broker.trust.standing import StandingChanged, Standings
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import codes
from valetkey.contracts.errors import CallerError, PolicyError, ValetkeyError
from valetkey.contracts.logs import Log
from valetkey.contracts.oauth import GRANT_DEFERRED, TokenResponse

PATH: Final = "/token"
# Each round is one in which something was noted against a party meanwhile.
_ROUNDS: Final = 5
UseUp = Callable[[Issue | NeedsApproval, ExchangeFacts, Check], Awaitable[Issue]]
_POLICY: Final = frozenset({"grant", "policy", "approval"})


class TokenEndpoint:
    """Authenticates, resolves the parties, asks the policy, mints.

    ``url`` is its own URL, ``limit`` says how often each client may ask.
    """

    def __init__(
        self,
        clients: ClientAuthenticator,
        parties: PartyResolver,
        people: People,
        policies: PolicyFile,
        cedar: CedarFiles,
        uses: GrantUses,
        issuer: JwtIssuer,
        metrics: Metrics,
        limit: RateLimit,
        standings: Standings,
        statuses: Statuses,
        gate: ApprovalGate,
        signals: Signals,
        *,
        url: str,
        clock: Clock,
    ) -> None:
        self._limit = limit
        self._gate = gate
        self._signals = signals
        self._clients = clients
        self._parties = parties
        self._people = people
        self._policies = policies
        self._cedar = cedar
        self._uses = uses
        self._issuer = issuer
        self._metrics = metrics
        self._standings = standings
        self._statuses = statuses
        self._url = url
        self._clock = clock
        self._log = Log("broker.token")

    async def handle(self, request: web.Request) -> web.Response:
        began = time.perf_counter()
        proofs = request.headers.getall("DPoP", ())
        try:
            response = await self._respond(request, await read_form(request), proofs)
        except AwaitsApproval as waits:
            self._metrics.refused(waits.code, time.perf_counter() - began)
            return self._put_off(waits, self._clients.nonce(proofs))
        except ValetkeyError as error:
            self._metrics.refused(error.code, time.perf_counter() - began)
            self._log.info("exchange_refused", code=error.code.name, reason=error.reason)
            return error_answer(
                error.code,
                nonce=self._clients.nonce(proofs, error.code),
                policies=error.policies if isinstance(error, PolicyError) else (),
            )
        self._metrics.issued(time.perf_counter() - began)
        return json_answer(response, nonce=self._clients.nonce(proofs))

    async def _respond(
        self, request: web.Request, form: Form, proofs: Sequence[str]
    ) -> TokenResponse:
        if self._gate.defers and form.get("grant_type") == GRANT_DEFERRED:
            return await self._redeem(request, form, proofs)
        return await self._exchange(request, form, proofs)

    async def _exchange(
        self, request: web.Request, form: Form, proofs: Sequence[str]
    ) -> TokenResponse:
        asked = parse_exchange(form)
        client = await self._authenticate(request, form, proofs)
        acting, user = await self._parties.resolve(asked, client)
        facts = await self._facts(asked, client, acting, user)
        issue = await self._settle(client, facts, self._use_up)
        return await self._answer(issue, asked.issued_token_type)

    async def _facts(
        self, asked: ExchangeRequest, client: Client, acting: Party, user: User | None
    ) -> ExchangeFacts:
        """What is held against the parties first, then what is known of them.

        Who is taken out of a directory has a new epoch as well: where that came after the directory
        was asked, it came after this, and is found when the token is to be minted.
        """
        incidents = await self._standings.of_exchange(client, user, asked.audience)
        known = await self._people.of(client, user)
        return ExchangeFacts(
            asked, acting, user, client.proof, incidents, client.certificate, known=known
        )

    async def _settle(self, client: Client, facts: ExchangeFacts, use_up: UseUp) -> Issue:
        """What is issued, with all that it uses up, on a standing that holds when this returns.

        What was noted against a party while the database was waited for undoes what was used up:
        it is decided again.
        """
        asked, user = facts.request, facts.user
        for _ in range(_ROUNDS):
            decision = self._decide(facts)
            self._check_enforced(decision, asked.capabilities)
            check = partial(self._standings.require_same, facts.incidents, client, user)
            try:
                await self._standings.note_proof_key(client, facts.incidents)
                await self._standings.note_attested(facts)
                issue = await use_up(decision, facts, check)
                check(issue)
            except StandingChanged:
                facts = await self._facts(asked, client, facts.client, user)
            else:
                return issue
        raise CallerError(codes.SERVICE_UNAVAILABLE, "what is held against it kept changing")

    async def _use_up(
        self, decision: Issue | NeedsApproval, facts: ExchangeFacts, check: Check
    ) -> Issue:
        while isinstance(decision, Issue) and not await self._claim(decision, check):
            # Another replica had the last use. That is known now, so the next decision rests on
            # another grant, or is a no.
            decision = self._decide(facts)
        if isinstance(decision, NeedsApproval):
            return await self._gate.pass_or_ask(decision, facts, check)
        return decision

    async def _redeem(
        self, request: web.Request, form: Form, proofs: Sequence[str]
    ) -> TokenResponse:
        """What was deferred, decided again: on the facts of then, by the policy of now."""
        code = form.required("deferral_code")
        client = await self._authenticate(request, form, proofs)
        own = client.assertion
        party = Party(own.claims.issuer, own.claims.subject, own.expires)
        waited = await self._gate.poll(code, party, client.proof, client.certificate)
        asked, user = waited.request, waited.user
        facts = await self._facts(asked, client, party, user)
        issue = await self._settle(client, facts, partial(self._gate.redeem, waited))
        return await self._answer(issue, asked.issued_token_type)

    def _check_enforced(self, decision: Issue | NeedsApproval, able: frozenset[str]) -> None:
        """Raises `CallerError` where the caller can't enforce what the credential is limited to."""
        issue = decision.issue if isinstance(decision, NeedsApproval) else decision
        target = self._policies.current.targets[issue.audience]
        lacking = needed(decision, of_target=target.requires) - able
        if lacking:
            raise CallerError(
                codes.EXCHANGE_CAPABILITY,
                f"without {', '.join(sorted(lacking))}; workload {issue.client.subject}",
            )

    async def _claim(self, issue: Issue, check: Check) -> bool:
        """Claim the uses that the token takes, if it takes any. Raises `StoreError`."""
        return not issue.limited or await self._uses.claim(issue.limited, partial(check, issue))

    def _decide(self, facts: ExchangeFacts) -> Issue | NeedsApproval:
        """Raises `CallerError` or `PolicyError` for a refusal."""
        decision = decide(facts, self._policies.current, self._cedar.current, now=self._clock())
        if isinstance(decision, Refuse):
            acting = facts.client
            reason = f"{decision.reason}; workload {acting.subject} of {acting.issuer}"
            if decision.code.family in _POLICY:
                raise PolicyError(decision.code, reason, policies=decision.policy_ids)
            raise CallerError(decision.code, reason)
        return decision

    def _put_off(self, waits: AwaitsApproval, nonce: str) -> web.Response:
        code = waits.code
        self._log.info(
            "exchange_awaits_approval",
            code=code.name,
            reason=waits.reason,
            approval=waits.approval,
        )
        answer = json_answer(waits.answer(description(code)), nonce=nonce, status=400)
        if code.retry_after is not None and not waits.interval:
            answer.headers["Retry-After"] = str(code.retry_after)
        return answer

    async def _authenticate(
        self, request: web.Request, form: Form, proofs: Sequence[str]
    ) -> Client:
        """Who asks, counted; from then on this replica knows of what the caller was told last."""
        client = await self._clients.authenticate(form, proofs, url=self._url, request=request)
        self._count(client)
        self._standings.require_current()
        told = told_of(request)
        if told:
            await self._signals.reach(told)
        return client

    def _count(self, client: Client) -> None:
        claims = client.assertion.claims
        if self._limit.take((claims.issuer, claims.subject)):
            raise CallerError(
                codes.SERVICE_RATE_LIMITED, f"workload {claims.subject} of {claims.issuer}"
            )

    async def _answer(self, issue: Issue, issued_token_type: str) -> TokenResponse:
        target = self._policies.current.targets[issue.audience]
        place = self._statuses.place() if target.status_list else None
        token = self._issuer.mint(issue, place=place)
        if place is not None:
            await self._statuses.keep(place, token.compact.reveal())
        self._metrics.grant_tokens.add(issue.rests_on)
        self._log.info(
            "exchange_issued",
            jti=token.jti,
            workload=issue.client.subject,
            issuer=issue.client.issuer,
            target=issue.target,
            grant=" ".join(issue.rests_on),
            policy=" ".join(issue.policy_ids),
            approval=issue.approval,
            seconds=issue.expires_in,
        )
        return TokenResponse(
            access_token=token.compact.reveal(),
            issued_token_type=issued_token_type,
            token_type=_token_type(issue),
            expires_in=issue.expires_in,
            scope=" ".join(issue.scopes),
            authorization_details=list(issue.details),  # RFC 9396 §7
            policy_digest=issue.policy_digest,
            policies=list(issue.policy_ids),
            txn=token.txn,
            jti=token.jti,
            sub=issue.subject,
            act=dict(issue.act or {}),
            epoch=issue.epoch,
            client_epoch=issue.client_epoch,
            approval=issue.approval,
            single_use=issue.single_use,
            grants=list(issue.rests_on),
        )


def _token_type(issue: Issue) -> str:
    if issue.transaction is not None:
        return "N_A"  # RFC 8693 §2.2.1
    return "DPoP" if issue.thumbprint else "Bearer"  # RFC 9449 §5

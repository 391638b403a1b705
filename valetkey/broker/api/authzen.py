"""The AuthZEN Authorization API 1.0: evaluation, evaluations, search, metadata.

Every answer is the decision of an exchange that a workload could ask for at this moment, by the
same grants, incidents and policies.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Iterator
from itertools import chain
from typing import Any, Final

from aiohttp import web

from valetkey.broker.api.admin import answer
from valetkey.broker.api.authzen_wire import BodyInvalid, read_question
from valetkey.broker.cedar_files import CedarFiles
from valetkey.broker.core import authzen_search as searching
from valetkey.broker.core.attributes import AttributesInvalid
from valetkey.broker.core.authzen import (
    Actor,
    Evaluation,
    Evaluations,
    QuestionInvalid,
    Registry,
)
from valetkey.broker.core.authzen_search import Candidate, Search
from valetkey.broker.core.exchange import Issue, NeedsApproval, Refuse, decide
from valetkey.broker.core.grants import Grant
from valetkey.broker.directory.listing import UserListing
from valetkey.broker.policy_file import PolicyFile
from valetkey.broker.trust.people import People
from valetkey.broker.trust.standing import Standings
from valetkey.broker.trust.tokens import Clock
from valetkey.contracts import codes
from valetkey.contracts.codes import Code

EVALUATION: Final = "/access/v1/evaluation"
EVALUATIONS: Final = "/access/v1/evaluations"
SEARCH_SUBJECT: Final = "/access/v1/search/subject"
SEARCH_RESOURCE: Final = "/access/v1/search/resource"
SEARCH_ACTION: Final = "/access/v1/search/action"
METADATA: Final = "/.well-known/authzen-configuration"
# Questions of a search between which others get their turn.
_TURN: Final = 50
Document = dict[str, Any]


def metadata(issuer: str) -> Document:
    """Policy Decision Point Metadata; the broker's issuer identifier is the point's as well."""
    return {
        "policy_decision_point": issuer,
        "access_evaluation_endpoint": issuer + EVALUATION,
        "access_evaluations_endpoint": issuer + EVALUATIONS,
        "search_subject_endpoint": issuer + SEARCH_SUBJECT,
        "search_resource_endpoint": issuer + SEARCH_RESOURCE,
        "search_action_endpoint": issuer + SEARCH_ACTION,
    }


class AuthzenEndpoint:
    """Answers questions; who asks is authenticated by then (`authzen_wire`).

    ``user_issuers`` are those whose tokens users come with.
    """

    def __init__(
        self,
        policies: PolicyFile,
        cedar: CedarFiles,
        standings: Standings,
        people: People,
        users: UserListing,
        *,
        user_issuers: Iterable[str],
        clock: Clock,
    ) -> None:
        self._users = users
        self._unlisted = frozenset(user_issuers) - users.issuers
        self._policies = policies
        self._cedar = cedar
        self._standings = standings
        self._people = people
        self._clock = clock

    async def evaluation(self, request: web.Request) -> web.Response:
        asked = await read_question(request, Evaluation)
        try:
            return answer(await self._decide(asked))
        except QuestionInvalid as error:
            raise BodyInvalid(str(error)) from error

    async def evaluations(self, request: web.Request) -> web.Response:
        batch = await read_question(request, Evaluations)
        if not batch.evaluations:  # without any, it is a single question
            try:
                return answer(await self._decide(batch))
            except QuestionInvalid as error:
                raise BodyInvalid(str(error)) from error
        questions = batch.each()
        for one in questions:
            if one.subject is None or one.action is None or one.resource is None:
                raise BodyInvalid("an evaluation lacks subject, action or resource")
        decisions: list[Document] = []
        semantic = batch.options.evaluations_semantic
        stop_at = {"deny_on_first_deny": False, "permit_on_first_permit": True}.get(semantic)
        for one in questions:
            decisions.append(await self._decide_one(one))
            if decisions[-1]["decision"] is stop_at:
                break
        return answer({"evaluations": decisions})

    async def search_subject(self, request: web.Request) -> web.Response:
        search = await read_question(request, searching.SubjectSearch)
        target, _, _ = search.resource.id.partition("/")
        grants = [
            grant
            for grant in self._grants()
            if grant.target == target or search.resource.type == "http_endpoint"
        ]
        if search.subject.type == "user":
            listed = self._listed(search, searching.acting(search, grants))
            return await self._search(search, listed, grants, most=searching.MAX_USERS_ASKED)
        return await self._search(search, _each(searching.subjects(search, grants)), grants)

    async def search_resource(self, request: web.Request) -> web.Response:
        search = await read_question(request, searching.ResourceSearch)
        cedar = self._cedar.current
        tools = searching.named_tools(self._grants(), cedar.named_tools)
        found = searching.resources(search, cedar.places.values(), tools)
        return await self._search(search, _each(found), [])

    async def search_action(self, request: web.Request) -> web.Response:
        search = await read_question(request, searching.ActionSearch)
        found = searching.actions(search, self._grants())
        return await self._search(search, _each(found), [])

    def _grants(self) -> Iterator[Grant]:
        """Those of the file, and those made by API."""
        policy = self._policies.current
        return chain(policy.index, policy.live.made)

    async def _listed(
        self, search: searching.SubjectSearch, actors: list[Actor]
    ) -> AsyncIterator[Candidate]:
        """The users of directories, from where the page begins. Raises `QuestionInvalid`."""
        issuer, id_ = searching.from_user(searching.position(search).after)
        async for user in self._users.active(issuer, id_):
            for candidate in searching.user(search, actors, *user):
                yield candidate

    async def _search(
        self,
        search: Search,
        candidates: AsyncIterator[Candidate],
        grants: list[Grant],
        *,
        most: int = searching.MAX_ASKED,
    ) -> web.Response:
        results: list[Document] = []
        asked, after, more = 0, "", False
        try:
            place = searching.position(search)
            async for candidate in candidates:
                if candidate.key <= place.after:
                    continue
                if len(results) >= place.limit or asked >= most:
                    more = True
                    break
                asked, after = asked + 1, candidate.key
                if asked % _TURN == 0:
                    await asyncio.sleep(0)
                if (await self._decide(candidate.question))["decision"]:
                    results.append(candidate.result)
        except QuestionInvalid as error:
            raise BodyInvalid(str(error)) from error
        token = searching.next_token(place, after or place.after) if more else ""
        document: Document = {"page": {"next_token": token, "count": len(results)}}
        unlisted = searching.unlisted(search, grants, users_of=self._unlisted)
        if unlisted:
            document["context"] = {"unlisted": unlisted}
        return answer(document | {"results": results})

    async def _decide_one(self, asked: Evaluation) -> Document:
        """A decision of a batch: what can't be read is a deny of its own (section Errors)."""
        try:
            return await self._decide(asked)
        except QuestionInvalid as error:
            return {
                "decision": False,
                "context": {"error": {"status": 400, "message": str(error)}},
            }

    async def _decide(self, asked: Evaluation) -> Document:
        """Raises `QuestionInvalid`."""
        grants, policies = self._policies.current, self._cedar.current
        question = Registry(grants.targets, policies.places).question(asked)
        client, user = question.client, question.user
        try:
            known = await self._people.known(client, question.client_claims, user)
        except AttributesInvalid as error:
            raise QuestionInvalid(f"subject.properties: {error}") from error
        incidents = self._standings.of_question(
            client, question.client_claims, user, question.request.audience
        )
        facts = question.facts(incidents, known)
        return _document(decide(facts, grants, policies, now=self._clock()))


async def _each(candidates: Iterator[Candidate]) -> AsyncIterator[Candidate]:
    for candidate in candidates:
        yield candidate


def _document(decision: Issue | Refuse | NeedsApproval) -> Document:
    if isinstance(decision, NeedsApproval):
        return {
            "decision": False,
            "context": _why(codes.APPROVAL_REQUIRED, decision.issue.policy_ids),
        }
    if isinstance(decision, Refuse):
        return {"decision": False, "context": _why(decision.code, decision.policy_ids)}
    return {
        "decision": True,
        "context": {
            "policies": decision.policy_ids,
            "grants": decision.grant_ids,
            "policy_digest": decision.policy_digest,
        },
    }


def _why(code: Code, policy_ids: tuple[str, ...]) -> Document:
    return {"code": code.name, "reason": code.help, "policies": policy_ids}

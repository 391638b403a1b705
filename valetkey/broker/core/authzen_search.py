"""AuthZEN search: what there is to ask about, in an order that pages can go on from.

A search asks the policy about each candidate; nothing else makes a result. Candidates are what the
broker knows by name: workloads and scopes of grants, targets and routes of the settings, tools that
grants or policies name, users of a directory that names them. What it can't list (other users,
URLs, workloads meant by a pattern) it says.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Collection, Iterable, Iterator
from typing import Annotated, Any, Final

import msgspec

from valetkey.broker.core.authzen import (
    RESOURCES,
    SUBJECTS,
    Action,
    Actor,
    Evaluation,
    QuestionInvalid,
    Resource,
    ResourceProperties,
    Subject,
    SubjectProperties,
    Text,
)
from valetkey.broker.core.grants import Grant
from valetkey.broker.core.places import TargetFacts
from valetkey.contracts.jose import b64url

MAX_LIMIT: Final = 500
# Candidates asked about for one page, of about 0.1 ms each: a page may have fewer results than its
# limit, and then goes on.
MAX_ASKED: Final = 1000
# Of users fewer: their groups may have to be read for each.
MAX_USERS_ASKED: Final = 200
_DEFAULT_LIMIT: Final = 100
_TOKEN_LENGTH: Final = 4096
# Before all that issuers and ids are made of, so that keys are in the order of their parts.
_BETWEEN: Final = "\n"


class SoughtProperties(msgspec.Struct, frozen=True):
    """``act``: users for whom this workload acts; left out, each that a grant names exactly."""

    act: Actor | None = None


class SoughtSubject(msgspec.Struct, frozen=True):
    """An ``id`` in it is ignored, as the specification says."""

    type: Text
    properties: SoughtProperties = SoughtProperties()


class SoughtResource(msgspec.Struct, frozen=True):
    type: Text
    properties: ResourceProperties = ResourceProperties()


class PageRequest(msgspec.Struct, frozen=True):
    """``limit`` is the most results; ``token`` is the ``next_token`` of the page before."""

    token: Annotated[str, msgspec.Meta(max_length=_TOKEN_LENGTH)] = ""
    limit: Annotated[int, msgspec.Meta(ge=0)] | None = None


class SubjectSearch(msgspec.Struct, frozen=True):
    subject: SoughtSubject
    action: Action
    resource: Resource
    page: PageRequest = PageRequest()


class ResourceSearch(msgspec.Struct, frozen=True):
    subject: Subject
    action: Action
    resource: SoughtResource
    page: PageRequest = PageRequest()


class ActionSearch(msgspec.Struct, frozen=True):
    subject: Subject
    resource: Resource
    page: PageRequest = PageRequest()


Search = SubjectSearch | ResourceSearch | ActionSearch


class Position(msgspec.Struct, frozen=True):
    """Where a page ended: which search it was, its limit, and the last candidate."""

    search: str
    limit: int
    after: str


class Candidate(msgspec.Struct, frozen=True):
    """Something to ask about. ``key`` orders; ``result`` is what the caller gets to see."""

    key: str
    question: Evaluation
    result: dict[str, Any]


def position(search: Search) -> Position:
    """Where the page begins. Raises `QuestionInvalid` for a token of another search."""
    page, name = search.page, _name(search)
    limit = None if page.limit is None else min(page.limit, MAX_LIMIT)
    if not page.token:
        return Position(name, _DEFAULT_LIMIT if limit is None else limit, "")
    try:
        raw = base64.urlsafe_b64decode(page.token + "=" * (-len(page.token) % 4))
        known = msgspec.json.decode(raw, type=Position)
    except (binascii.Error, msgspec.DecodeError, ValueError) as error:
        raise QuestionInvalid("page.token is not one of ours") from error
    if known.search != name or limit not in {None, known.limit}:
        raise QuestionInvalid("page.token belongs to another search")
    return known


def next_token(place: Position, after: str) -> str:
    return b64url(msgspec.json.encode(msgspec.structs.replace(place, after=after)))


def _name(search: Search) -> str:
    """base64url SHA-256 of everything but the page."""
    asked = msgspec.structs.replace(search, page=PageRequest())
    encoded = msgspec.json.encode([type(search).__name__, asked], order="deterministic")
    return b64url(hashlib.sha256(encoded).digest())


def subjects(search: SubjectSearch, grants: Iterable[Grant]) -> Iterator[Candidate]:
    """Workloads that a grant names exactly. Raises `QuestionInvalid`."""
    kind = search.subject.type
    if kind not in SUBJECTS:
        raise QuestionInvalid(f"subject.type is one of {', '.join(SUBJECTS)}")
    for issuer, subject in _named(grants):
        result = {"type": kind, "id": subject, "properties": {"issuer": issuer}}
        who = Subject(kind, subject, SubjectProperties(issuer))
        yield Candidate(
            f"{issuer} {subject}", Evaluation(who, search.action, search.resource), result
        )


def _named(grants: Iterable[Grant]) -> list[tuple[str, str]]:
    return sorted({(grant.issuer, grant.workload.text) for grant in grants if grant.workload.exact})


def acting(search: SubjectSearch, grants: Iterable[Grant]) -> list[Actor]:
    """The workloads that users are looked for with."""
    act = search.subject.properties.act
    if act is not None:
        return [act]
    return [Actor(*named) for named in _named(grant for grant in grants if grant.for_users)]


def user(
    search: SubjectSearch, actors: Iterable[Actor], issuer: str, id_: str, subject: str
) -> Iterator[Candidate]:
    """A user, once with each of the workloads. ``id_`` orders the users of an issuer."""
    given = search.subject.properties.act is not None
    for act in actors:
        # What the search says itself needs no place in the key, and could be long.
        by = "" if given else f"{act.iss} {act.sub}"
        properties = SubjectProperties(issuer, act=act)
        who = Subject("user", subject, properties)
        shown = msgspec.to_builtins(act)
        if not act.claims:
            del shown["claims"]
        result = {"type": "user", "id": subject, "properties": {"issuer": issuer, "act": shown}}
        key = _BETWEEN.join((issuer, id_, by))
        yield Candidate(key, Evaluation(who, search.action, search.resource), result)


def from_user(after: str) -> tuple[str, str]:
    """Issuer and ``id_`` of the user that a page of users ended with, empty at the first."""
    issuer, _, rest = after.partition(_BETWEEN)
    return issuer, rest.partition(_BETWEEN)[0]


def resources(
    search: ResourceSearch, places: Iterable[TargetFacts], tools: Collection[tuple[str, str]]
) -> Iterator[Candidate]:
    """Targets, routes or tools (target and name). Raises `QuestionInvalid`."""
    kind, properties = search.resource.type, search.resource.properties
    if kind not in RESOURCES:
        raise QuestionInvalid(f"resource.type is one of {', '.join(RESOURCES)}")
    listed = [place for place in places if properties.target in {"", place.name}]
    if kind == "target":
        names = [place.name for place in listed]
    elif kind == "route":
        names = [f"{place.name}/{route}" for place in listed for route in place.routes]
    elif kind == "tool":
        known = {place.name for place in listed}
        names = [f"{target}/{tool}" for target, tool in tools if target in known]
    else:
        names = []
    for name in sorted(set(names)):
        result: dict[str, Any] = {"type": kind, "id": name}
        if properties.path:
            result["properties"] = {"path": properties.path}
        what = Resource(kind, name, properties)
        yield Candidate(name, Evaluation(search.subject, search.action, what), result)


def actions(search: ActionSearch, grants: Iterable[Grant]) -> Iterator[Candidate]:
    """The scopes that any grant has."""
    for scope in sorted({scope for grant in grants for scope in grant.scopes}):
        question = Evaluation(search.subject, Action(scope), search.resource)
        yield Candidate(scope, question, {"name": scope})


def unlisted(search: Search, grants: Iterable[Grant], *, users_of: Iterable[str] = ()) -> list[str]:
    """What may also be permitted, but has no list: in words, or as a pattern.

    ``users_of`` are the issuers whose users have none.
    """
    if isinstance(search, SubjectSearch):
        of_users = search.subject.type == "user"
        patterns = {
            f"{grant.issuer} {grant.workload.text}"
            for grant in grants
            if not grant.workload.exact and (grant.for_users or not of_users)
        }
        if not of_users:
            return sorted(patterns)
        if search.subject.properties.act is not None:
            patterns = set()
        return [*(f"users of {issuer}" for issuer in sorted(users_of)), *sorted(patterns)]
    if isinstance(search, ResourceSearch) and search.resource.type == "http_endpoint":
        return ["URLs: ask about each, or search for routes"]
    return []


def named_tools(
    grants: Iterable[Grant], named: Iterable[tuple[str, str]]
) -> frozenset[tuple[str, str]]:
    """Tools by target and name: those that grants name exactly, and those that policies name."""
    found = set(named)
    for grant in grants:
        for condition in grant.conditions or ():
            for message in condition.messages or ():
                if message.calls_tools and message.tool.exact:
                    found.add((grant.target, str(message.tool)))
    return frozenset(found)

"""AuthZEN Authorization API 1.0: questions of other systems, read as token exchanges.

A question is turned into the very request that a sidecar would make, so that the answer is the
decision of `exchange.decide` and nothing else: may this workload (for this user) have this scope
for these calls?

Unknown members are ignored (Authorization API 1.0, JSON Serialization): no policy reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, Final, Literal

import msgspec

from valetkey.broker.core.attributes import Known
from valetkey.broker.core.containment import IncidentFacts
from valetkey.broker.core.exchange import ExchangeFacts, Party, User
from valetkey.broker.core.grants import METHOD, SCOPE_TOKEN, Call, Target
from valetkey.broker.core.patterns import PathPattern, PatternInvalid
from valetkey.broker.core.places import TargetFacts
from valetkey.broker.core.request import ExchangeRequest
from valetkey.broker.core.resources import ResourceInvalid, parse_resource, resource_belongs
from valetkey.broker.core.transactions import Transaction
from valetkey.contracts.mcp import METHOD_TOOLS_CALL, NameInvalid, message_patterns
from valetkey.contracts.oauth import TOKEN_TYPE_ACCESS, TOKEN_TYPE_TXN
from valetkey.contracts.secret import Secret

MAX_EVALUATIONS: Final = 256
Text = Annotated[str, msgspec.Meta(min_length=1, max_length=2048)]
Semantic = Literal["execute_all", "deny_on_first_deny", "permit_on_first_permit"]
SUBJECTS: Final = ("workload", "agent", "user")
RESOURCES: Final = ("target", "route", "tool", "http_endpoint")
# Tokens of some targets are bound to a key or a certificate. Who asks here has neither, and is not
# refused for that.
_SOME_KEY: Final = "authzen"


class QuestionInvalid(ValueError):  # noqa: N818 - reads as what it is
    """A question that can't be read as a request. The text is for who asked."""


class Actor(msgspec.Struct, frozen=True):
    """The workload that acts for a user: as in a token (RFC 8693 §4.1), with its own claims."""

    iss: Text
    sub: Text
    claims: dict[str, Any] = {}


class SubjectProperties(msgspec.Struct, frozen=True):
    """``claims`` are those of the subject's token: roles and groups are taken from them."""

    issuer: Text
    claims: dict[str, Any] = {}
    act: Actor | None = None


class ActionProperties(msgspec.Struct, frozen=True):
    """``method`` is the HTTP method of the call."""

    method: str = ""


class ResourceProperties(msgspec.Struct, frozen=True):
    """``path`` is where a tool's MCP server listens; ``target`` confines a search."""

    path: str = ""
    target: str = ""


class Subject(msgspec.Struct, frozen=True):
    """Who: ``workload`` or ``agent`` (the settings say which it is), or ``user``."""

    type: Text
    id: Text
    properties: SubjectProperties


class Action(msgspec.Struct, frozen=True):
    """What: ``name`` is a scope."""

    name: Text
    properties: ActionProperties = ActionProperties()


class Resource(msgspec.Struct, frozen=True):
    """On what.

    ``target`` (by name: any call on it), ``route`` (``target/route`` of the settings), ``tool``
    (``target/tool``, with the path of the MCP server), ``http_endpoint`` (a URL below a target's
    resource, with the action's method).
    """

    type: Text
    id: Text
    properties: ResourceProperties = ResourceProperties()


class Options(msgspec.Struct, frozen=True):
    """Of a batch."""

    evaluations_semantic: Semantic = "execute_all"


class Evaluation(msgspec.Struct, frozen=True):
    """One question; in a batch, or as the batch's defaults, with parts left out."""

    subject: Subject | None = None
    action: Action | None = None
    resource: Resource | None = None
    context: dict[str, Any] | None = None


class Evaluations(Evaluation, frozen=True):
    """A batch (Authorization API 1.0, Access Evaluations)."""

    evaluations: Annotated[tuple[Evaluation, ...], msgspec.Meta(max_length=MAX_EVALUATIONS)] = ()
    options: Options = Options()

    def each(self) -> list[Evaluation]:
        """The questions with the defaults filled in; the batch itself where it holds none."""
        return [
            Evaluation(
                one.subject or self.subject,
                one.action or self.action,
                one.resource or self.resource,
            )
            for one in self.evaluations or (self,)
        ]


@dataclass(frozen=True, slots=True)
class Question:
    """A question as the facts of an exchange. Claims are what the caller says of the parties."""

    request: ExchangeRequest
    client: Party
    client_claims: Mapping[str, Any] = field(repr=False)
    user: User | None

    def facts(self, incidents: IncidentFacts, known: Known) -> ExchangeFacts:
        """What `exchange.decide` is asked with."""
        return ExchangeFacts(
            self.request, self.client, self.user, _SOME_KEY, incidents, _SOME_KEY, known=known
        )


class Registry:
    """The targets, by what questions call them."""

    def __init__(self, targets: Mapping[str, Target], places: Mapping[str, TargetFacts]) -> None:
        self._by_audience = targets
        self._by_name = {target.name: target for target in targets.values()}
        self.places = places

    def question(self, asked: Evaluation) -> Question:
        """Raises `QuestionInvalid`."""
        subject, action, resource = asked.subject, asked.action, asked.resource
        if subject is None or action is None or resource is None:
            raise QuestionInvalid("subject, action and resource are required")
        if not SCOPE_TOKEN.fullmatch(action.name):
            raise QuestionInvalid("action.name is a scope (RFC 6749 §3.3)")
        audience, calls = self._place(resource, action.properties.method)
        client, claims, user = _parties(subject)
        target = self._by_audience.get(audience)
        # A workload asks for the type of token that the target takes; what it would say of its
        # transaction is no part of the decision.
        in_transaction = target is not None and target.credential == "txn_token"
        request = ExchangeRequest(
            subject_token=Secret(""),
            actor_token=Secret(""),
            issued_token_type=TOKEN_TYPE_TXN if in_transaction else TOKEN_TYPE_ACCESS,
            audience=audience,
            resource="",
            scopes=(action.name,),
            details=(),
            calls=calls,
            transaction=Transaction({}, {}) if in_transaction else None,
        )
        return Question(request, client, claims, user)

    def _place(self, resource: Resource, method: str) -> tuple[str, tuple[Call, ...]]:
        """The audience, which is empty for a target that is not ours, and the calls."""
        try:
            if resource.type == "http_endpoint":
                return self._endpoint(resource.id, method)
            name, _, own = resource.id.partition("/")
            target = self._by_name.get(name)
            if resource.type == "target":
                return (target.audience if target and not own else ""), ()
            if resource.type == "route":
                route = self.places[name].routes.get(own) if name in self.places else None
                if target is None or route is None:
                    return "", ()
                return target.audience, tuple(
                    Call(frozenset({one}), route.path) for one in sorted(route.methods)
                )
            if resource.type == "tool":
                return (target.audience if target else ""), _tool_calls(
                    own, resource.properties.path
                )
        except (ResourceInvalid, PatternInvalid, NameInvalid) as error:
            raise QuestionInvalid(f"resource: {error}") from error
        raise QuestionInvalid(f"resource.type is one of {', '.join(RESOURCES)}")

    def _endpoint(self, url: str, method: str) -> tuple[str, tuple[Call, ...]]:
        if not METHOD.fullmatch(method):
            raise QuestionInvalid("action.properties.method is an HTTP method in capitals")
        path = PathPattern.literal(parse_resource(url).path or "/")
        below = [target for target in self._by_name.values() if _holds(target, url)]
        if not below:
            return "", ()
        # The longest: a target below another one is the one that is meant.
        target = max(below, key=lambda target: len(target.resource))
        return target.audience, (Call(frozenset({method}), path),)


def _holds(target: Target, url: str) -> bool:
    return resource_belongs(url, target.resource)


def _tool_calls(tool: str, path: str) -> tuple[Call, ...]:
    if not path:
        raise QuestionInvalid("resource.properties.path is the path of the tool's MCP server")
    (message,) = message_patterns((METHOD_TOOLS_CALL,), (tool,), exact=True)
    return (Call(frozenset({"POST"}), PathPattern.literal(path), (message,)),)


def _parties(subject: Subject) -> tuple[Party, Mapping[str, Any], User | None]:
    properties = subject.properties
    if subject.type in {"workload", "agent"}:
        if properties.act is not None:
            raise QuestionInvalid("act is for users: the workload acts for itself here")
        client = Party(properties.issuer, subject.id, math.inf)
        return client, properties.claims, None
    if subject.type != "user":
        raise QuestionInvalid(f"subject.type is one of {', '.join(SUBJECTS)}")
    if properties.act is None:
        raise QuestionInvalid("a user acts through a workload: subject.properties.act names it")
    actor = properties.act
    user = User(properties.issuer, subject.id, math.inf, claims=properties.claims)
    return Party(actor.iss, actor.sub, math.inf), actor.claims, user

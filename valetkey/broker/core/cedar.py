"""Cedar policies, compiled: one immutable snapshot that answers one question at a time.

Invariants:

- Nothing is permitted that no policy permits, and nothing that one forbids.
- Any error in any policy is a deny. Cedar leaves a policy that errs out of its decision, so that an
  erring ``forbid`` would vanish; here it decides.
- A policy is left out of a question only where its scope names another target: it could not apply.
- What needs an approval is asked twice, without and with one. Only where the second answer is a
  permit is there anything to approve.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

import cedarpy
import msgspec
from cachetools import LRUCache

from valetkey.broker.core.cedar_schema import APPROVED, BASE, SCHEMA
from valetkey.broker.core.cedar_text import (
    ApprovalRule,
    Mistake,
    PoliciesInvalid,
    WrittenPolicy,
    read_policies,
)
from valetkey.broker.core.grants import Call
from valetkey.broker.core.places import TargetFacts
from valetkey.contracts.jose import b64url

Outcome = Literal["permit", "deny", "error", "open"]
Kind = Literal["Workload", "Agent", "User"]
_ACTION: Final = {"type": "Action", "id": "call"}
# Answers remembered over all targets. One takes less than 1 KiB.
_REMEMBERED: Final = 8192
_PLACES: Final = frozenset({"Target", "Route", "Tool"})


@dataclass(frozen=True, slots=True)
class Principal:
    """Somebody who is asked about."""

    kind: Kind
    issuer: str
    subject: str
    roles: frozenset[str] = frozenset()
    groups: frozenset[str] = frozenset()

    @property
    def uid(self) -> dict[str, str]:
        return {"type": self.kind, "id": f"{self.issuer}|{self.subject}"}

    def entity(self) -> dict[str, Any]:
        parents = [{"type": "Role", "id": name} for name in sorted(self.roles)]
        parents += [{"type": "Group", "id": name} for name in sorted(self.groups)]
        attributes = {"issuer": self.issuer, "subject": self.subject}
        return {"uid": self.uid, "attrs": attributes, "parents": parents}


@dataclass(frozen=True, slots=True)
class Verdict:
    """An answer. ``policy_ids`` are the policies that decided, sorted.

    ``open``: a policy reads what the request leaves open. ``approvals`` are what has to be approved
    for this permit; empty: nothing. ``errors`` are for the log.
    """

    outcome: Outcome
    policy_ids: tuple[str, ...] = ()
    approvals: tuple[ApprovalRule, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, eq=False)
class Slice:
    """The policies that can apply on one target.

    ``reads`` are the attributes of the context that any of them reads: no other can matter.
    ``routes`` and ``tools`` are those of the target that any of them names.
    """

    target: TargetFacts
    reads: frozenset[str]
    routes: tuple[tuple[str, Call], ...]
    tools: tuple[str, ...]
    rules: Mapping[str, WrittenPolicy] = field(repr=False)
    policies: cedarpy.PolicySet = field(repr=False)


class Policies:
    """All policies of an installation. Made by `compile`."""

    def __init__(
        self, slices: Mapping[str, Slice], written: Sequence[WrittenPolicy], digest: str
    ) -> None:
        self._slices = slices
        self._places = {name: of.target for name, of in slices.items()}
        self.written = tuple(written)
        self.digest = digest
        self._answers: LRUCache[Any, Verdict] = LRUCache(_REMEMBERED)

    @classmethod
    def compile(cls, files: Mapping[str, str] | None, targets: Iterable[TargetFacts]) -> Policies:
        """``files`` is name to Cedar text; ``None``: what grants give is permitted (`BASE`).

        Raises `PoliciesInvalid`.
        """
        written = read_policies({"built in": BASE} if files is None else files)
        by_name = {target.name: target for target in targets}
        mistakes = [
            Mistake(policy.file, policy.line, message)
            for policy in written
            for message in _unknown_places(policy, by_name)
        ]
        if mistakes:
            raise PoliciesInvalid(mistakes)
        slices = {name: _slice(target, written) for name, target in by_name.items()}
        return cls(slices, written, _digest(written, by_name))

    @property
    def places(self) -> Mapping[str, TargetFacts]:
        """What is known of each target, by name."""
        return self._places

    @property
    def named_tools(self) -> frozenset[tuple[str, str]]:
        """The tools that policies name, each with its target."""
        return frozenset((target, tool) for target, of in self._slices.items() for tool in of.tools)

    def of_target(self, name: str) -> Slice:
        """The policies for a target of the settings."""
        return self._slices[name]

    def evaluate(
        self,
        slice_: Slice,
        principal: Principal,
        parents: tuple[tuple[str, str], ...],
        context: Mapping[str, Any],
    ) -> Verdict:
        """Ask whether ``principal`` may make a call that lies in ``parents`` (type, id).

        ``context`` holds what `Slice.reads` names, but for what the request leaves open, and never
        ``approved``: whether an approval would help is part of the answer.
        """
        try:
            key = (slice_, principal, parents, msgspec.json.encode(context))
        except ValueError as error:
            return Verdict("error", errors=(str(error),))
        answer = self._answers.get(key)
        if answer is None:
            # All that an answer depends on is in the key, so a remembered one is the same answer.
            answer = self._answers[key] = _judge(slice_, principal, parents, context)
        return answer


def _judge(
    slice_: Slice,
    principal: Principal,
    parents: tuple[tuple[str, str], ...],
    context: Mapping[str, Any],
) -> Verdict:
    call = {
        "uid": {"type": "Call", "id": ""},
        "attrs": {},
        "parents": [{"type": kind, "id": name} for kind, name in parents],
    }
    try:
        entities = msgspec.json.encode([principal.entity(), call]).decode()
        if APPROVED not in slice_.reads:
            return _ask(slice_, principal, call, entities, context)
        first = _ask(slice_, principal, call, entities, {**context, APPROVED: False})
        if first.outcome != "deny":
            return first
        second = _ask(slice_, principal, call, entities, {**context, APPROVED: True})
    except ValueError as error:
        # Values that Cedar or JSON do not take: nothing is decided on half of them.
        return Verdict("error", errors=(str(error),))
    if second.outcome != "permit":
        return second if second.outcome == "error" else first
    return _awaiting(slice_, first, second)


def _awaiting(slice_: Slice, first: Verdict, second: Verdict) -> Verdict:
    """A permit that an approval makes, with what the policies that wait for one ask for."""
    lifted = [slice_.rules[name] for name in first.policy_ids]
    permits = [slice_.rules[name] for name in second.policy_ids]
    asking = [rule for rule in lifted if rule.awaits_approval]
    if all(rule.awaits_approval for rule in permits):
        asking += permits  # no policy permits this without one
    rules = tuple(dict.fromkeys(rule.approval for rule in asking)) or (ApprovalRule(),)
    names = {*first.policy_ids, *second.policy_ids}
    return Verdict("permit", tuple(sorted(names)), approvals=rules)


def _ask(
    slice_: Slice,
    principal: Principal,
    call: Mapping[str, Any],
    entities: str,
    context: Mapping[str, Any],
) -> Verdict:
    request = {
        "principal": principal.uid,
        "action": _ACTION,
        "resource": call["uid"],
        "context": msgspec.json.encode(context).decode(),
    }
    result = cedarpy.is_authorized(request, slice_.policies, entities)
    diagnostics = result.diagnostics
    if diagnostics.errors:
        left_open = slice_.reads - context.keys() - {"user"}
        return Verdict("open" if left_open else "error", errors=tuple(diagnostics.errors))
    if result.decision is cedarpy.Decision.NoDecision:
        return Verdict("error", errors=("no decision",))
    outcome: Outcome = "permit" if result.decision is cedarpy.Decision.Allow else "deny"
    return Verdict(outcome, tuple(sorted(diagnostics.reasons)))


def _slice(target: TargetFacts, written: Sequence[WrittenPolicy]) -> Slice:
    rules = {policy.id: policy for policy in written if policy.within in {"", target.name}}
    reads = frozenset[str]().union(*(policy.reads for policy in rules.values()))
    names = sorted(frozenset[tuple[str, str]]().union(*(p.names for p in rules.values())))
    on_target = [
        (kind, name, name.partition("/")[2])
        for kind, name in names
        if kind in _PLACES and name.partition("/")[0] == target.name
    ]
    return Slice(
        target=target,
        reads=reads,
        routes=tuple(
            (name, target.routes[own]) for kind, name, own in on_target if kind == "Route"
        ),
        tools=tuple(own for kind, _, own in on_target if kind == "Tool"),
        rules=rules,
        policies=_policy_set(rules.values()),
    )


def _policy_set(policies: Iterable[WrittenPolicy]) -> cedarpy.PolicySet:
    """A set whose policies have their own ids, so that reasons and errors name them."""
    document = {
        "staticPolicies": {policy.id: policy.tree for policy in policies},
        "templates": {},
        "templateLinks": [],
    }
    return cedarpy.PolicySet.from_json_str(msgspec.json.encode(document).decode())


def _unknown_places(policy: WrittenPolicy, targets: Mapping[str, TargetFacts]) -> list[str]:
    """A misspelt name in a ``forbid`` would forbid nothing."""
    unknown: list[str] = []
    for kind, name in sorted(policy.names):
        if kind not in _PLACES:
            continue
        target, slash, own = name.partition("/")
        if target not in targets or bool(slash) != (kind != "Target") or (slash and not own):
            form = "target" if kind == "Target" else f"target/{kind.lower()}"
            unknown.append(f'{kind}::"{name}": not {form} of a target that the settings have')
        elif kind == "Route" and own not in targets[target].routes:
            unknown.append(f'{kind}::"{name}": the target has no such route in the settings')
    return unknown


def _digest(written: Sequence[WrittenPolicy], targets: Mapping[str, TargetFacts]) -> str:
    """base64url SHA-256 over policies by id, the schema, and what is known of targets."""
    canonical = {
        "policies": {policy.id: policy.tree for policy in written},
        "schema": SCHEMA,
        "targets": {
            name: {
                "environment": target.environment,
                "risk": target.risk,
                "routes": {
                    route: [sorted(call.methods), str(call.path)]
                    for route, call in target.routes.items()
                },
            }
            for name, target in targets.items()
        },
    }
    encoded = msgspec.json.encode(canonical, order="deterministic")
    return b64url(hashlib.sha256(encoded).digest())

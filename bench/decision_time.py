"""How long the broker's decision on an exchange takes: by grants, and by policies.

    python bench/decision_time.py

One process, CPU time of `core.exchange.decide`, the least of many rounds. Grants are those of other
workloads beside two of the one that asks. Policies are five of different kinds (roles, method,
scope, weekday, time), then 195 more on the same target, then 195 on another. "remembered" is a
question that was asked before; "new" is one that was not. Prints two Markdown tables.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from valetkey.broker.core.cedar import Policies
from valetkey.broker.core.containment import Attestation, Epoch, IncidentFacts, Standing
from valetkey.broker.core.exchange import ExchangeFacts, Issue, Party, decide
from valetkey.broker.core.grants import Call, GrantsFile, Policy, Target
from valetkey.broker.core.patterns import PathPattern
from valetkey.broker.core.places import TargetFacts
from valetkey.broker.core.request import ExchangeRequest
from valetkey.contracts.oauth import TOKEN_TYPE_ACCESS
from valetkey.contracts.secret import Secret
from valetkey.contracts.settings import parse

ISSUER = "https://idp.bench.example"
BOT = "spiffe://bench.example/ns/agents/sa/bot"
TARGETS = [
    Target(name, f"https://{name}.bench.example", f"https://{name}.bench.example", "bearer", 120.0)
    for name in ("tickets", "files")
]
NOW = 1_800_000_000.0
FIVE = """
@id("all") permit (principal, action, resource);
@id("a") permit (principal in Role::"x", action, resource in Target::"tickets")
  when { context.method == "GET" };
@id("b") forbid (principal, action, resource in Target::"tickets")
  when { context.scope like "*:delete" };
@id("c") forbid (principal is Agent, action, resource) unless { context.weekday <= 5 };
@id("d") forbid (principal, action, resource) when { context.now > datetime("2099-01-01") };
"""


def more(target: str) -> str:
    return FIVE + "".join(
        f'@id("p{number}") forbid (principal in Role::"r{number}", action, '
        f'resource in Target::"{target}") when {{ context.scope == "s{number}" }};\n'
        for number in range(195)
    )


def grants(count: int) -> Policy:
    """So many grants of other workloads, and two of ours."""
    lines = [
        f"  - {{id: g{number}, workload: '{workload}', issuer: '{ISSUER}', target: tickets, "
        "scopes: [read], conditions: [{methods: [GET], path: '/api/{id}'}]}"
        for number, workload in enumerate(
            [BOT, "spiffe://bench.example/ns/*/sa/bot"]
            + [f"spiffe://bench.example/ns/n{number}/sa/worker" for number in range(count)]
        )
    ]
    file = parse(GrantsFile, "grants:\n" + "\n".join(lines), name="grants", program="broker")
    return Policy.compile(file, TARGETS, issuers=frozenset({ISSUER}))


def policies(text: str | None) -> Policies:
    places = [TargetFacts(target.name) for target in TARGETS]
    return Policies.compile(None if text is None else {"policies": text}, places)


def facts() -> ExchangeFacts:
    request = ExchangeRequest(
        subject_token=Secret(""),
        actor_token=Secret(""),
        issued_token_type=TOKEN_TYPE_ACCESS,
        audience=TARGETS[0].audience,
        resource="",
        scopes=("read",),
        details=(),
        calls=(Call(frozenset({"GET"}), PathPattern.parse("/api/{id}")),),
    )
    standing = Standing(Epoch(), Attestation(None, None), ended=False, key_ended=False)
    incidents = IncidentFacts(standing, None, False, frozenset(), 5.0)
    return ExchangeFacts(request, Party(ISSUER, BOT, NOW + 3600), None, "", incidents)


def least(ask: Callable[[], object], times: int, rounds: int = 40) -> float:
    """Microseconds of CPU for one call, in the quickest round."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in range(times):
            ask()
        found.append((time.process_time() - began) / times * 1e6)
    return min(found)


def main() -> None:
    asked = facts()
    print("| Grants of others | Decision (µs) |\n|---|---|")
    built_in = policies(None)
    for count in (10, 1_000, 10_000):
        policy = grants(count)
        assert isinstance(decide(asked, policy, built_in, now=NOW), Issue)
        print(f"| {count:,} | {least(lambda: decide(asked, policy, built_in, now=NOW), 300):.0f} |")  # noqa: B023
    policy = grants(10)
    print("\n| Policies | Remembered (µs) | New (µs) |\n|---|---|---|")
    for name, text in (
        ("built in", None),
        ("5", FIVE),
        ("200", more("tickets")),
        ("200, 195 of them on another target", more("files")),
    ):
        compiled = policies(text)

        def again(compiled: Policies = compiled) -> object:
            return decide(asked, policy, compiled, now=NOW)

        def anew(compiled: Policies = compiled) -> object:
            compiled._answers.clear()
            return decide(asked, policy, compiled, now=NOW)

        print(f"| {name} | {least(again, 300):.0f} | {least(anew, 30):.0f} |")


if __name__ == "__main__":
    main()

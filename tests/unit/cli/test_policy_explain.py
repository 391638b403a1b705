"""``valetkey policy explain``: the decision, the policies with their places, each grant's part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from valetkey.cli.main import main
from valetkey.contracts import codes

CONFIG = Path(__file__).parents[3] / "config"
CLUSTER = "https://kubernetes.default.svc.cluster.local"
BOT = "system:serviceaccount:agents:bot"
FRIDAY = "2027-01-15T08:00:00Z"
TICKET = "https://tickets.example.com/api/tickets/7"
READS: dict[str, Any] = {
    "id": "reads", "workload": BOT, "issuer": CLUSTER, "target": "tickets",
    "scopes": ["tickets:read"], "on_behalf_of": "users",
}  # fmt: skip
GRANTS = [
    READS,
    {**READS, "id": "reads-for-itself", "on_behalf_of": "nobody"},
    {**READS, "id": "reads-by-pattern", "workload": "system:serviceaccount:*:bot"},
    {**READS, "id": "counted", "max_uses": 3},
    {**READS, "id": "writes", "scopes": ["tickets:write"]},
    {**READS, "id": "lists", "conditions": [{"methods": ["GET"], "path": "/api/tickets"}]},
    {**READS, "id": "past", "not_after": "2026-01-01T00:00:00Z"},
    {**READS, "id": "future", "not_before": "2028-01-01T00:00:00Z"},
    {**READS, "id": "somebody-elses", "workload": "system:serviceaccount:agents:other"},
    {**READS, "id": "elsewhere", "target": "payments"},
    {
        **READS, "id": "closes", "scopes": ["tickets:close"],
        "approval": {"quorum": 2, "roles": ["lead"]},
    },
]  # fmt: skip


def subject(**claims: Any) -> dict[str, Any]:
    properties = {
        "issuer": "https://login.demo.example",
        "claims": claims,
        "act": {"iss": CLUSTER, "sub": BOT},
    }
    return {"type": "user", "id": "alice", "properties": properties}


SUPPORT = subject(realm_access={"roles": ["Support"]})


def asked(
    scope: str = "tickets:read", method: str = "GET", url: str = TICKET, **more: Any
) -> dict[str, Any]:
    return {
        "subject": SUPPORT,
        "action": {"name": scope, "properties": {"method": method}},
        "resource": {"type": "http_endpoint", "id": url},
        **more,
    }


class Desk:
    """Files in a directory, and the command over them."""

    def __init__(self, root: Path) -> None:
        self.question, self.grants, self.policies = (
            root / name for name in ("question.yaml", "grants.yaml", "policies.cedar")
        )
        self.config = CONFIG / "broker.yaml"
        self.grant(GRANTS)
        self.policies.write_text(
            '// all of it\n\n@id("all") @description("Whatever grants give.")\n'
            "permit (principal, action, resource);\n"
        )

    def grant(self, grants: list[dict[str, Any]]) -> None:
        self.grants.write_text(yaml.safe_dump({"grants": grants}))

    def run(self, document: Any, *more: str, at: str = FRIDAY) -> Result:
        text = document if isinstance(document, str) else yaml.safe_dump(document)
        self.question.write_text(text)
        arguments = [
            "policy", "explain", str(self.question), "--config", str(self.config),
            "--grants", str(self.grants), "--policies", str(self.policies), "--at", at,
        ]  # fmt: skip
        return CliRunner().invoke(main, [*arguments, *more])

    def explain(self, document: Any, **more: Any) -> dict[str, Any]:
        found = self.run(document, "--json", **more)
        assert found.exit_code == 0, found.output
        explanation: dict[str, Any] = json.loads(found.stdout)
        return explanation


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    return Desk(tmp_path)


def test_the_example() -> None:
    found = CliRunner().invoke(
        main,
        [
            "policy", "explain", str(CONFIG / "policies/question.yaml"),
            "--config", str(CONFIG / "broker.yaml"), "--grants", str(CONFIG / "grants.yaml"),
            "--policies", str(CONFIG / "policies"), "--at", FRIDAY,
        ],
    )  # fmt: skip
    assert found.exit_code == 0, found.output
    lines = found.stdout.splitlines()
    assert lines[:3] == ["permit", "  tickets:read on tickets, for 120 s", "decided by:"]
    where = f"{CONFIG / 'policies/tickets.cedar'}:8"
    assert lines[3] == f"  tickets-agents-for-support  permit  {where}"
    assert "  agent-reads-tickets  used" in lines
    assert "  agent-closes-tickets  no: does not let the workload act for users" in lines
    assert lines[-1].startswith("not known here: incidents")


def test_what_became_of_each_grant(desk: Desk) -> None:
    found = desk.explain(asked())
    assert (found["decision"], found["scopes"], found["expires_in"]) == (
        "permit", ["tickets:read"], 120,
    )  # fmt: skip
    assert {one["id"]: (one["fit"], one["code"]) for one in found["grants"]} == {
        "reads": ("used", ""),
        "reads-by-pattern": ("used", ""),
        "counted": ("fits", ""),
        "reads-for-itself": ("no", "grant.missing"),
        "writes": ("no", "grant.scope"),
        "closes": ("no", "grant.scope"),
        "lists": ("no", "grant.condition"),
        "past": ("no", "grant.ended"),
        "future": ("no", "grant.outside_window"),
        "somebody-elses": ("no", "grant.missing"),
    }
    why = {one["id"]: one["why"] for one in found["grants"]}
    assert why["reads-for-itself"] != why["somebody-elses"]
    assert all(why[one["id"]] for one in found["grants"] if one["fit"] == "no")
    # Without the lasting ones the counted one is what a token rests on, for one call.
    desk.grant(GRANTS[3:])
    found = desk.explain(asked())
    assert found["single_use"] is True
    assert {one["id"] for one in found["grants"] if one["fit"] == "used"} == {"counted"}


def test_grants_that_fit_only_together(desk: Desk, tmp_path: Path) -> None:
    document = yaml.safe_load(desk.config.read_text())
    path = "/api/tickets/{id}"
    document["targets"]["tickets"]["routes"]["one"] = {"methods": ["GET", "PUT"], "path": path}
    desk.config = tmp_path / "broker.yaml"
    desk.config.write_text(yaml.safe_dump(document))
    methods = ("GET", "PUT", "POST")
    desk.grant(
        [
            {**READS, "id": m.lower(), "conditions": [{"methods": [m], "path": path}]}
            for m in methods
        ]
    )
    found = desk.explain(asked(resource={"type": "route", "id": "tickets/one"}))
    assert {one["id"]: one["fit"] for one in found["grants"]} == {
        "get": "used", "put": "used", "post": "no",
    }  # fmt: skip


def test_a_policy_that_forbids(desk: Desk) -> None:
    with desk.policies.open("a") as file:
        file.write(
            '@id("not-on-fridays")\nforbid (principal, action, resource in Target::"tickets")\n'
            "when { context.weekday == 5 };\n"
            '@id("payments") forbid (principal, action, resource in Target::"payments");\n'
        )
    found = desk.explain(asked())
    assert (found["decision"], found["code"]) == ("deny", "policy.denied")
    assert found["help"] == codes.POLICY_DENIED.help
    assert "not-on-fridays" in found["reason"]
    (policy,) = found["decided"]
    assert policy == {
        "id": "not-on-fridays", "effect": "forbid", "file": str(desk.policies), "line": 5,
        "annotations": {},
    }  # fmt: skip
    # A policy that is confined to another target was not asked.
    assert [one["id"] for one in found["others"]] == ["all"]
    assert found["others"][0]["line"] == 3
    assert found["others"][0]["annotations"] == {"description": "Whatever grants give."}
    # The grants were not in the way.
    assert {one["fit"] for one in found["grants"] if one["id"] == "reads"} == {"fits"}
    assert desk.explain(asked(), at="2027-01-16T08:00:00Z")["decision"] == "permit"


def test_a_policy_that_errs(desk: Desk) -> None:
    with desk.policies.open("a") as file:
        file.write(
            '@id("before") permit (principal, action, resource) when { context.path == "/a" };'
        )
    document = asked(resource={"type": "target", "id": "tickets"})
    found = desk.explain(document)
    assert (found["decision"], found["code"]) == ("deny", "policy.open")
    assert [(one["id"], one["line"]) for one in found["decided"]] == [("before", 5)]
    assert any("path" in error for error in found["errors"])
    shown = desk.run(document)
    assert "  error: " in shown.output
    assert f"  before  permit  {desk.policies}:5" in shown.output


def test_what_waits_for_people(desk: Desk) -> None:
    found = desk.explain(asked("tickets:close"))
    assert (found["decision"], found["approval"]["quorum"]) == ("approve", 2)
    assert found["approval"]["holders"] == [{"roles": ["lead"], "groups": []}]
    assert "  waits for 2 of lead" in desk.run(asked("tickets:close")).output


def test_nothing_is_permitted_without_a_reason(desk: Desk) -> None:
    found = desk.explain(asked(url="https://nobody.example/"))
    assert (found["decision"], found["code"]) == ("deny", "grant.missing")
    assert "grants" not in found
    # Nobody of support: no policy of the examples permits it, and none forbids it.
    desk.policies.write_text((CONFIG / "policies/tickets.cedar").read_text())
    found = desk.explain(asked(subject=subject()))
    assert (found["decision"], found["code"]) == ("deny", "policy.denied")
    assert "decided" not in found
    assert "no policy permits it" in found["reason"]


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ("[", "question.yaml:2: not YAML"),
        ("- a", "question.yaml: "),
        ({"subject": SUPPORT}, "subject, action and resource are required"),
        (asked(url="http://[x/y"), "question.yaml: resource: not a URI"),
        ({**asked(), "resorce": {}}, "$.resorce is no member"),
        (asked(action={"name": "a", "properties": {"methods": "GET"}}), "$.action.properties.methods"),
        (asked(subject=subject(realm_access="S")), "subject.properties: claim realm_access.roles"),
    ],
)  # fmt: skip
def test_what_is_no_question(desk: Desk, document: Any, said: str) -> None:
    found = desk.run(document)
    assert (found.exit_code, found.stdout) == (2, "")
    assert said in found.stderr


def test_files_that_are_wrong(desk: Desk) -> None:
    assert "--at" in desk.run(asked(), at="yesterday").stderr
    desk.policies.write_text('@id("a") permit (principal, action, resource)')
    found = desk.run(asked())
    assert (found.exit_code, f"{desk.policies}:1: " in found.stderr) == (2, True)
    desk.grants.write_text("grants: []")
    found = desk.run(asked())
    assert (found.exit_code, "grants is empty" in found.stderr) == (2, True)


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--config", "C", "--broker", "http://127.0.0.1:1"],
        ["--broker", "http://127.0.0.1:1", "--at", FRIDAY],
    ],
)
def test_options_that_do_not_go_together(desk: Desk, options: list[str]) -> None:
    desk.question.write_text(yaml.safe_dump(asked()))
    config = str(CONFIG / "broker.yaml")
    found = CliRunner().invoke(
        main,
        ["policy", "explain", str(desk.question), *(config if o == "C" else o for o in options)],
        env={"VALETKEY_TOKEN": "x"},
    )
    assert (found.exit_code, "Usage:" in found.stderr) == (2, True)


def test_what_others_wrote_does_not_reach_the_terminal_as_it_is(desk: Desk) -> None:
    desk.policies.write_text(
        '@id("all") @description("\x1b[31mred") permit (principal, action, resource);'
    )
    found = desk.run(asked())
    assert "\x1b" not in found.output
    assert "@description: \\x1b[31mred" in found.output

"""``valetkey policy``: every mistake with its place, and cases that show what policies decide."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from valetkey.cli.main import main

CONFIG = Path(__file__).parents[3] / "config"
ALL = '@id("all") permit (principal, action, resource);\n'
CASES = """
settings: %s
policies: [p.cedar]
cases:
  - name: first
    target: tickets
    actor: {issuer: i, subject: bot}
    scopes: [tickets:read, tickets:write]
    now: "2027-01-15T08:00:00Z"
    expect: permit
    policies: [all]
"""


def policy(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["policy", *map(str, arguments)])


def test_the_examples_are_good() -> None:
    found = policy("check", CONFIG / "policies", "--config", CONFIG / "broker.yaml")
    assert (found.exit_code, found.output) == (0, "ok: 6 policies\n")
    found = policy("test", CONFIG / "policies/tests.yaml")
    assert (found.exit_code, found.output) == (0, "ok: 7 as expected\n")


def test_every_mistake_is_listed(tmp_path: Path) -> None:
    (tmp_path / "a.cedar").write_text(ALL)
    (tmp_path / "b.cedar").write_text(
        f'\n{ALL}@id("b") permit (principal, action, resource) when {{ context.x }};'
    )
    found = policy("check", tmp_path)
    assert found.exit_code == 1
    lines = found.output.splitlines()
    assert lines[0] == f"{tmp_path}/b.cedar:2: the id all is taken by {tmp_path}/a.cedar:1"
    assert lines[1].startswith(f"{tmp_path}/b.cedar:3: ")
    assert len(lines) == 2


def test_places_are_checked_where_the_settings_are_given(tmp_path: Path) -> None:
    file = tmp_path / "a.cedar"
    file.write_text('@id("a") forbid (principal, action, resource in Route::"tickets/clos");')
    assert policy("check", file).output == "ok: 1 policy\n"
    found = policy("check", file, "--config", CONFIG / "broker.yaml")
    assert found.exit_code == 1
    assert (
        found.output
        == f'{file}:1: Route::"tickets/clos": the target has no such route in the settings\n'
    )


@pytest.mark.parametrize(
    ("name", "policies", "cases", "code", "said"),
    [
        ("as expected", ALL, "", 0, "ok: 1 as expected"),
        ("another decision", ALL + '@id("no") forbid (principal, action, resource);', "", 1, "first: expected permit, got deny by no"),
        ("one scope of two", ALL + '@id("no") forbid (principal, action, resource) when { context.scope like "*:write" };', "", 1, "first: expected permit, got deny by all"),
        ("another policy", ALL + '@id("b") permit (principal, action, resource);', "", 1, "first: expected permit by all, got it by all, b"),
        ("no such target", ALL, "nowhere", 1, "first: 'nowhere' is no target of the settings"),
        ("policies that do not load", "permit (", "", 1, "p.cedar:1: "),
        ("a case that is none", ALL, "tickets, expct: x", 2, "cases.0.expct: unknown key"),
    ],
)  # fmt: skip
def test_cases(tmp_path: Path, name: str, policies: str, cases: str, code: int, said: str) -> None:
    (tmp_path / "p.cedar").write_text(policies)
    text = CASES % (CONFIG / "broker.yaml")
    if cases:
        target, *more = cases.split(", ")
        text = text.replace("target: tickets", "\n    ".join([f"target: {target}", *more]))
    (tmp_path / "cases.yaml").write_text(text)
    found = policy("test", tmp_path / "cases.yaml")
    assert found.exit_code == code, name
    assert said in found.output, name


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("policies: [p.cedar]", "policies: []"), "policies and cases must not be empty"),
        (("2027-01-15T08:00:00Z", "soon"), "cases.0"),
        (("[tickets:read, tickets:write]", "[]"), "scopes must be"),
        (("expect: permit", "expect: maybe"), "cases.0.expect"),
        (("expect: permit", "calls: [{method: get, path: /x}]\n    expect: permit"), "in capitals"),
        (("expect: permit", "user: {issuer: i, subject: s, agent: true}\n    expect: permit"), "no agent"),
    ],
)  # fmt: skip
def test_cases_that_can_not_be_read(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    (tmp_path / "p.cedar").write_text(ALL)
    (tmp_path / "cases.yaml").write_text((CASES % (CONFIG / "broker.yaml")).replace(*change))
    found = policy("test", tmp_path / "cases.yaml")
    assert found.exit_code == 2
    assert said in found.output


def test_calls_with_messages(tmp_path: Path) -> None:
    (tmp_path / "p.cedar").write_text(
        ALL + '@id("no") forbid (principal, action, resource in Tool::"tickets/delete");'
    )
    call = (
        "calls: [{method: POST, path: /mcp, mcp: {methods: [tools/call], tools: [%s]}}]\n    expect"
    )
    for tools, code in (("get_*", 0), ("delete", 1), ("de*", 1)):
        text = (CASES % (CONFIG / "broker.yaml")).replace("expect", call % tools, 1)
        (tmp_path / "cases.yaml").write_text(text)
        assert policy("test", tmp_path / "cases.yaml").exit_code == code, tools

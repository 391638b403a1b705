"""Policies as written: what is read from them, and every way to be refused with file and line."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.cedar_schema import BASE
from valetkey.broker.core.cedar_text import ApprovalRule, PoliciesInvalid, read_policies

SCOPE = "(principal, action, resource)"


def mistakes(text: str) -> list[str]:
    with pytest.raises(PoliciesInvalid) as caught:
        read_policies({"p.cedar": text})
    return [str(mistake) for mistake in caught.value.mistakes]


def test_the_built_in_policy_is_one() -> None:
    (policy,) = read_policies({"built in": BASE})
    assert (policy.id, policy.effect, policy.reads) == ("grants-decide", "permit", frozenset())


def test_what_a_policy_reads_and_names() -> None:
    (policy,) = read_policies(
        {
            "p.cedar": """
        // a comment; with a semicolon
        @id("a") @approval_quorum("2") @approval_roles("lead, security")
        forbid (principal is User in Role::"x;y", action == Action::"call",
                resource in Target::"tickets")
        when { context.method == "POST" && {p: context.path}.p like "/a;*" }
        unless { context has user && context.user.roles.contains("lead")
                 || context.approved
                 || resource in Tool::"tickets/t" || resource in [Route::"tickets/r"] };
    """
        }
    )
    assert (policy.line, policy.within) == (3, "tickets")
    assert policy.reads == {"method", "path", "user", "approved"}
    assert policy.names >= {("Tool", "tickets/t"), ("Route", "tickets/r"), ("Role", "x;y")}
    assert policy.approval == ApprovalRule(2, ("lead", "security"), ())


@pytest.mark.parametrize(
    ("scope", "within"),
    [
        ("resource", ""),
        ("resource is Call", ""),
        ('resource in Target::"t"', "t"),
        ('resource in Route::"t/r"', "t"),
        ('resource is Call in Tool::"t/x"', "t"),
    ],
)
def test_the_target_that_a_scope_confines_to(scope: str, within: str) -> None:
    (policy,) = read_policies({"p": f'@id("a") permit (principal, action, {scope});'})
    assert policy.within == within


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "p.cedar:1: no policies"),
        ("// nothing\n", "p.cedar:1: no policies"),
        (f"\n\npermit {SCOPE};", "p.cedar:3: a policy needs @id"),
        (f'@id("A") permit {SCOPE};', "p.cedar:1: a policy needs @id"),
        (f'@id("a") @aproval_quorum("2") permit {SCOPE};', "unknown annotation @aproval_quorum"),
        (f'@id("a") permit {SCOPE}', "p.cedar:1: unexpected end of input"),
        (f'@id("a") permit {SCOPE};\n@id("b") permit {SCOPE} when {{ 1 + }};', "p.cedar:2: unexp"),
        (f'@id("a") permit {SCOPE};\n\n@id("a") permit {SCOPE};', "p.cedar:3: the id a is taken by p.cedar:1"),
        ('@id("a") permit (principal == ?principal, action, resource);', "slots"),
        ('@id("a") permit (principal, action == Action::"read", resource);', "p.cedar:1: "),
        ('@id("a") permit (principal in Rolle::"x", action, resource);', "p.cedar:1: "),
        (f'@id("a") permit {SCOPE} when {{ context.methd == "GET" }};', "`methd`"),
        (f'@id("a") permit {SCOPE} when {{ context.weekday == "1" }};', "p.cedar:1: "),
        (f'@id("a") permit {SCOPE} when {{ context.user.subject == "x" }};', "`user`"),
        (f'@id("a") permit {SCOPE} when {{ context == context }};', "never whole"),
        (f'@id("a") permit {SCOPE} when {{ [context].isEmpty() }};', "never whole"),
        (f'@id("a") permit {SCOPE} when {{ context has path }};', "context has path"),
        (f'@id("a") permit {SCOPE} when {{ resource == Call::"x" }};', "name a Target"),
        (f'@id("a") @approval_quorum("2") permit {SCOPE};', "context.approved is not read"),
        (f'@id("a") @approval_quorum("0") permit {SCOPE} when {{ context.approved }};', "from 1 to 10"),
        (f'@id("a") @approval_quorum permit {SCOPE} when {{ context.approved }};', "from 1 to 10"),
        (f'@id("a") @approval_roles("") permit {SCOPE} when {{ context.approved }};', "list of names"),
    ],
)  # fmt: skip
def test_refused_with_file_and_line(text: str, said: str) -> None:
    found = mistakes(text)
    assert any(said in message for message in found), found
    assert all(message.startswith("p.cedar:") and "policy0" not in message for message in found)


def test_every_mistake_is_told() -> None:
    said = mistakes(
        f'permit {SCOPE};\n@id("b") permit {SCOPE};\n@id("c") forbid {SCOPE} when {{ 1 }};'
    )
    assert [message.split(":")[1] for message in said] == ["1", "3"]


def test_ids_are_unique_over_files() -> None:
    text = f'@id("a") permit {SCOPE};'
    with pytest.raises(PoliciesInvalid, match=r"b\.cedar:1: the id a is taken by a\.cedar:1"):
        read_policies({"a.cedar": text, "b.cedar": text})


@given(st.lists(st.sampled_from(['"a;b"', '// c;"\n', ";", "\n", "permit", '"\\";"', " ", "@id"])))
def test_any_text_is_policies_or_mistakes(pieces: list[str]) -> None:
    with pytest.raises(PoliciesInvalid):
        read_policies({"p": "".join(pieces)})

"""Whatever is asked: granted ⊆ policy ∩ grant ∩ request."""

from __future__ import annotations

from hypothesis import event, given, settings
from hypothesis import strategies as st

from tests.unit.broker.core.cedar_support import IDP, NOW, USERS, call
from tests.unit.broker.core.test_exchange import clean
from tests.unit.broker.core.test_grants import condition, grant, policy_of
from valetkey.broker.core.attributes import Attributes, Known
from valetkey.broker.core.cedar import Policies, Principal
from valetkey.broker.core.exchange import ExchangeFacts, Issue, NeedsApproval, Party, User, decide
from valetkey.broker.core.grants import Call, Target
from valetkey.broker.core.patterns import PathPattern
from valetkey.broker.core.permission import Asking, Permission, permission
from valetkey.broker.core.places import TargetFacts
from valetkey.broker.core.request import ExchangeRequest
from valetkey.contracts.oauth import TOKEN_TYPE_ACCESS
from valetkey.contracts.secret import Secret

TICKETS = Target("tickets", "https://t.example", "https://t.example", "bearer", 120.0)
PLACE = TargetFacts("tickets", routes={"close": call("POST", "/a/{id}/close")})
SCOPES = ["read", "write", "close"]
PATHS = ["/a/{id}", "/a/7", "/a/{id}/close", "/a/{rest*}", "/b"]
METHODS = ["GET", "POST"]
WHO = ["bot", "bot", "bot", "other"]

conditions = st.none() | st.none() | st.lists(
    st.builds(condition, st.sampled_from(PATHS), st.sampled_from(METHODS)),
    min_size=1, max_size=2,
)  # fmt: skip
grants = st.lists(
    st.fixed_dictionaries({
        "workload": st.sampled_from(WHO),
        "scopes": st.lists(st.sampled_from(SCOPES), min_size=1, unique=True),
        "on_behalf_of": st.sampled_from(["users", "nobody"]),
        "conditions": conditions,
    }),
    min_size=1, max_size=3,
)  # fmt: skip
TESTS = [
    "true", "true", "true", 'context.scope == "read"', 'context.method == "GET"', 'context.path == "/a/7"',
    'resource in Route::"tickets/close"', "context has user", "context.actor.agent", "context.approved",
    'principal in Role::"lead"', "context.weekday + 9223372036854775807 > 0",
]  # fmt: skip
policies = st.lists(
    st.tuples(st.sampled_from(["permit", "permit", "permit", "forbid"]), st.sampled_from(TESTS)),
    min_size=1, max_size=4,
)  # fmt: skip
calls = st.lists(
    st.builds(
        lambda method, path: Call(frozenset({method}), PathPattern.parse(path)),
        st.sampled_from(METHODS), st.sampled_from(PATHS),
    ),
    max_size=2,
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    grants, policies, st.lists(st.sampled_from(SCOPES), min_size=1, unique=True), calls,
    st.sampled_from(WHO), st.booleans(), st.booleans(), st.booleans(),
)  # fmt: skip
def test_granted_is_in_policy_grant_and_request(
    written, rules, scopes, asked, who, for_user, agent, lead
) -> None:
    named = [grant(f"g{number}", **{**one, "issuer": IDP}) for number, one in enumerate(written)]
    for one in named:
        if one["conditions"] is None:
            del one["conditions"]
    policy = policy_of(
        *[{**one, "issuer": "https://idp.example"} for one in named], targets=(TICKETS,)
    )
    text = "".join(
        f'@id("p{number}") {effect} (principal, action, resource) when {{ {test} }};'
        for number, (effect, test) in enumerate(rules)
    )
    compiled = Policies.compile({"p": text}, [PLACE])
    request = ExchangeRequest(
        Secret("t"), Secret(""), TOKEN_TYPE_ACCESS, TICKETS.audience, "", tuple(scopes), (), tuple(asked)
    )  # fmt: skip
    roles = frozenset({"lead"}) if lead else frozenset[str]()
    user = User(USERS, "alice", NOW + 60, claims={}) if for_user else None
    facts = ExchangeFacts(
        request, Party("https://idp.example", who, NOW + 30), user, "", clean(user=for_user),
        known=Known(Attributes(roles), agent, Attributes()),
    )  # fmt: skip
    decision = decide(facts, policy, compiled, now=NOW)
    issue = decision.issue if isinstance(decision, NeedsApproval) else decision
    event(type(decision).__name__)
    if not isinstance(issue, Issue):
        return
    # The request.
    assert set(issue.scopes) <= set(scopes)
    assert issue.expires_in <= 30
    # The grants: each scope is given, for every call, by grants that hold it.
    by_id = {one["id"]: one for one in named}
    for scope in issue.scopes:
        holders = [
            one for one in named
            if scope in one["scopes"] and one["workload"] == who
            and (one["on_behalf_of"] == "users" or not for_user)
        ]  # fmt: skip
        for one in asked or [None]:
            assert any(
                "conditions" not in holder
                or (
                    one is not None
                    and any(
                        Call(
                            frozenset(written["methods"]), PathPattern.parse(written["path"])
                        ).includes(one)
                        for written in holder["conditions"]
                    )
                )
                for holder in holders
            )
    assert set(issue.grant_ids) <= by_id.keys()
    # The policies: asked again about what was given alone, for each of the two by itself.
    actor = Principal("Agent" if agent else "Workload", "https://idp.example", who, roles)
    subject = None if user is None else Principal("User", USERS, "alice")
    for scope in issue.scopes:
        again = permission(compiled, Asking("tickets", actor, subject, (scope,), tuple(asked), NOW))
        assert isinstance(again, Permission)
        assert not again.approvals or isinstance(decision, NeedsApproval)
    # No policy forbids it, as read here: a plain forbid that holds for all is never passed by.
    assert ("forbid", "true") not in rules
    assert ("forbid", "context.weekday + 9223372036854775807 > 0") not in rules
    assert ("permit", "context.weekday + 9223372036854775807 > 0") not in rules
    assert not for_user or ("forbid", "context has user") not in rules
    assert not agent or ("forbid", "context.actor.agent") not in rules

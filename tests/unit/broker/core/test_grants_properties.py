"""Whatever is asked: granted is what policy, grants and request have in common, and no more.

Compared with a second reading of the same rules that knows nothing of indexes or patterns.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.broker.core.test_grants import (
    DEPLOYMENT,
    IDP,
    NOW,
    TICKETS,
    at,
    calls,
    condition,
    file_of,
    grant,
    policy_of,
)
from valetkey.broker.core.grants import Granted, OpenWindow

WORKLOADS = ("w/a/x", "w/a/y", "w/b/x")
PATTERNS = (*WORKLOADS, "w/*/x", "w/a/*")
SCOPES = ("s1", "s2", "s3")
METHODS = ("GET", "PUT")
PATHS = ("/p", "/q")
# What patterns mean, written out.
MEANT = {
    **{workload: {workload} for workload in WORKLOADS},
    "w/*/x": {"w/a/x", "w/b/x"},
    "w/a/*": {"w/a/x", "w/a/y"},
}


@dataclass(frozen=True)
class Made:
    """A grant with what is known of it beside its form."""

    written: dict[str, Any]
    by_api: bool
    uses: int
    window: float | None

    def holds(self, asked: dict[str, Any], scope: str, call: tuple[str, str] | None) -> bool:
        form = self.written
        allowed = form.get("conditions")
        covered = allowed is None or (
            call is not None
            and any(call[0] in one["methods"] and call[1] == one["path"] for one in allowed)
        )
        return (
            asked["workload"] in MEANT[form["workload"]]
            and scope in form["scopes"]
            and (form["on_behalf_of"] == "users" or not asked["for_user"])
            and covered
            and asked["now"] >= self.begins
            and asked["now"] <= self.ends - 1
            and self.uses < form.get("max_uses", math.inf)
        )

    @property
    def begins(self) -> float:
        begin = self.written.get("not_before")
        return -math.inf if begin is None else begin.timestamp()

    @property
    def ends(self) -> float:
        ends = [math.inf]
        if self.written.get("not_after") is not None:
            ends.append(self.written["not_after"].timestamp())
        if "window" in self.written:
            ends.append(-math.inf if self.window is None else NOW + self.window)
        return min(ends)


@st.composite
def made(draw: st.DrawFn) -> Made:
    scopes = draw(st.lists(st.sampled_from(SCOPES), min_size=1, unique=True))
    changes: dict[str, Any] = {
        "workload": draw(st.sampled_from(PATTERNS)),
        "scopes": scopes,
        "on_behalf_of": draw(st.sampled_from(["users", "nobody"])),
    }
    if draw(st.booleans()):
        one = st.builds(
            lambda path, methods: condition(path, *methods),
            st.sampled_from(PATHS),
            st.lists(st.sampled_from(METHODS), min_size=1, unique=True),
        )
        changes["conditions"] = draw(st.lists(one, min_size=1, max_size=2))
    if draw(st.booleans()):
        changes["not_before"] = at(draw(st.integers(-5, 3)))
    if draw(st.booleans()):
        changes["not_after"] = at(draw(st.integers(4, 12)))
    if draw(st.booleans()):
        changes["max_uses"] = draw(st.integers(1, 2))
    window = None
    if draw(st.booleans()):
        changes |= DEPLOYMENT
        window = draw(st.one_of(st.none(), st.integers(0, 12).map(float)))
    return Made(grant("g", **changes), draw(st.booleans()), draw(st.integers(0, 2)), window)


@settings(max_examples=400, deadline=None)
@given(
    everything=st.lists(made(), min_size=1, max_size=5),
    workload=st.sampled_from(WORKLOADS),
    for_user=st.booleans(),
    scopes=st.lists(st.sampled_from(SCOPES), min_size=1, max_size=3),
    asked_calls=st.lists(
        st.tuples(st.sampled_from(METHODS), st.sampled_from(PATHS)), max_size=3, unique=True
    ),
    after=st.floats(0, 13),
)
def test_granted_is_what_policy_grants_and_request_have_in_common(
    everything: list[Made],
    workload: str,
    for_user: bool,
    scopes: list[str],
    asked_calls: list[tuple[str, str]],
    after: float,
) -> None:
    now = NOW + after
    known = {f"g{number}": each for number, each in enumerate(everything)}
    policy = policy_of(
        grant("never", workload="w/none"),
        *({**each.written, "id": name} for name, each in known.items() if not each.by_api),
    )
    for name, each in known.items():
        if each.by_api:
            (form,) = file_of([{**each.written, "id": name}]).grants
            policy.live.made.put(policy.rules.compile(form))
        policy.live.count(name, each.uses)
        if each.window is not None:
            policy.live.open(OpenWindow(f"win:{name}", name, NOW + each.window))
    granted = policy.grant(
        TICKETS,
        issuer=IDP,
        workload=workload,
        for_user=for_user,
        scopes=scopes,
        calls=[call for method, path in asked_calls for call in calls(path, method, exact=True)],
        now=now,
    )
    asked = {"workload": workload, "for_user": for_user, "now": now}
    expected = [
        scope
        for scope in dict.fromkeys(scopes)
        if all(
            any(each.holds(asked, scope, call) for each in everything)
            for call in (asked_calls or [None])
        )
    ]
    if not expected:
        assert not isinstance(granted, Granted)
        return
    assert isinstance(granted, Granted)
    assert list(granted.scopes) == expected
    used = [known[name] for name in granted.grant_ids]
    # Each that is used was needed for something, and all of them bound the token.
    for each in used:
        assert any(each.holds(asked, scope, call) for scope in expected
                   for call in (asked_calls or [None]))  # fmt: skip
    assert granted.until == min(each.ends for each in used)
    assert granted.until - now >= 1
    assert [name for name, _ in granted.limited] == sorted(
        name for name in granted.grant_ids if "max_uses" in known[name].written
    )
    assert set(granted.windows) == {
        f"win:{name}" for name in granted.grant_ids if "window" in known[name].written
    }

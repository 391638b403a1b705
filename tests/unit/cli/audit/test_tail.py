from __future__ import annotations

import json

import pytest

from tests.support.chain import WORKLOAD, Chain
from valetkey.cli.audit import tail
from valetkey.cli.audit.record import Found
from valetkey.contracts import events


def chain() -> Chain:
    made = Chain()
    made.boot_event()
    made.call()
    denied = made.decision(
        action_id=2,
        actor={"user": {"uid": "alice"}, "app_uid": WORKLOAD},
        http_request={"http_method": "DELETE", "url": {"path": "/api/tickets/7"}},
        policy={"uid": ""},
        unmapped={"code": "route.no_match", "dropped": ["authorization", "x-api-key"]},
    )
    made.outcome(
        denied,
        http_response={"code": 403},
        unmapped={"decision": denied, "outcome": "denied", "duration_us": 120},
    )
    made.decision()
    return made


def test_a_call_is_one_row(audit, store):
    made = chain()
    result = audit("tail", "--db", store(made))
    assert result.exit_code == 0, result.output
    header, allowed, denied, cut = (line.rstrip() for line in result.output.splitlines())
    assert header.split() == [
        "time", "workload", "call", "target/route", "decision", "status", "ms", "notes",
    ]  # fmt: skip
    assert allowed.split() == [
        "00:00:00.000", WORKLOAD, "GET", "/api/tickets/7", "tickets/tickets-read", "allowed", "200", "9.0",
    ]  # fmt: skip
    assert f"{WORKLOAD} for alice" in denied
    assert "DELETE /api/tickets/7" in denied
    assert "denied route.no_match" in denied
    assert " 403 " in denied
    assert denied.endswith("dropped authorization, x-api-key")
    assert cut.endswith("no outcome")


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ({"path": "/a", "hostname": "x.example"}, "GET /a  (x.example)  denied"),
        ({"path": "/a", "hostname": "x.example", "port": 81}, "GET /a  (x.example:81)  denied"),
        ({"path": "/a", "hostname": "x.example", "port": "81"}, "GET /a  (x.example)  denied"),
        ({"path": "/a", "hostname": 7}, "GET /a  denied"),
    ],
)
def test_where_a_call_without_a_target_wanted_to_go(audit, store, url, shown):
    made = Chain()
    made.decision(
        action_id=2,
        api={"operation": "GET", "service": {"name": ""}},
        http_request={"url": url},
        policy={"uid": ""},
        unmapped={"code": "target.no_match"},
    )
    output = audit("tail", "--db", store(made)).output
    assert " ".join(shown.split()) in " ".join(output.split())


def test_an_outcome_that_was_no_completion_is_named(audit, store):
    made = Chain()
    made.outcome(
        made.decision(), unmapped={"decision": f"{made.boot}-1", "outcome": "cut", "code": "x.y"}
    )
    assert audit("tail", "--db", store(made)).output.rstrip().endswith("cut x.y")


def test_a_loss_is_named(audit, store):
    made = Chain()
    made.gap(made.boot, 0, 0, lost=12)
    result = audit("tail", "--db", store(made), "--type", events.TYPE_GAP)
    assert "12 events lost: damaged spool record" in result.output


def test_what_callers_wrote_can_not_move_the_cursor(audit, store):
    made = Chain()
    path = "/\x1b[2K\x1b[32mallowed[bold]"
    made.decision(http_request={"http_method": "GET", "url": {"path": path}})
    output = audit("tail", "--db", store(made)).output
    assert "\x1b" not in output
    assert "/\\x1b[2K\\x1b[32mallowed[bold]" in output


def test_a_call_of_a_tool_names_it(audit, store):
    made = Chain()
    for mcp in ({"method": "tools/call", "tool": "create_issue"}, {"method": "tools/list"}):
        made.decision(
            http_request={"http_method": "POST", "url": {"path": "/mcp"}}, unmapped={"mcp": mcp}
        )
    output = audit("tail", "--db", store(made)).output
    assert "POST /mcp tools/call create_issue  " in output
    assert "POST /mcp tools/list  " in output


@pytest.mark.parametrize(
    "data", [{}, {"actor": 5, "api": [], "policy": "x", "unmapped": {"dropped": 7, "mcp": 7}}]
)
def test_an_odd_event_is_a_row_all_the_same(audit, store, data):
    made = Chain()
    made.add(events.TYPE_DECISION, data)
    result = audit("tail", "--db", store(made))
    assert result.exit_code == 0, result.output
    assert "no outcome" in result.output


def test_json_lines(audit, store):
    made = chain()
    result = audit("tail", "--db", store(made), "--json")
    lines = [json.loads(line) for line in result.output.splitlines()]
    assert [line["event"]["sequence"] for line in lines] == ["2", "4", "6"]
    assert [line["outcome"] and line["outcome"]["sequence"] for line in lines] == ["3", "5", None]


FILTERS = {
    ("--decision", "denied"): ["4"],
    ("--code", "route.no_match"): ["4"],
    ("--workload", WORKLOAD): ["2", "4", "6"],
    ("--route", "tickets-read", "--limit", "1"): ["6"],
    ("--target", "other"): [],
    ("--source", "urn:valetkey:sidecar:agent-0", "--decision", "allowed"): ["2", "6"],
    ("--boot", "00000000000000a1", "--type", events.TYPE_OUTCOME): ["3", "5"],
}


@pytest.mark.parametrize(("options", "found"), FILTERS.items(), ids=map("".join, FILTERS))
def test_filters(audit, store, options, found):
    result = audit("tail", "--db", store(chain()), "--json", *options)
    assert [json.loads(line)["event"]["sequence"] for line in result.output.splitlines()] == found


def test_gaps_and_breaks_are_warned_of(audit, store):
    made = Chain().calls(3)
    result = audit("tail", "--db", store(Chain(events=made.events[2:])))
    assert "1 open gaps, 0 breaks" in result.stderr
    assert audit("tail", "--db", store(made)).stderr == ""


# --- following ------------------------------------------------------------------------------------


class Arriving:
    """A record whose pages are given; `Stop` ends the following like an interrupt."""

    def __init__(self, pages):
        self.pages = list(pages)
        self.cursors = []

    def after(self, filters, cursor, limit):
        self.cursors.append(cursor)
        if not self.pages:
            raise KeyboardInterrupt
        return self.pages.pop(0)


def found(cursor, *, outcome, received=0):
    raw = Chain(boot=f"{cursor:016x}")
    raw.decision()
    return Found(cursor, raw.source, received, raw.events[0], b"{}" if outcome else None)


def follow(pages, now=0.0):
    shown, slept = [], []
    record = Arriving(pages)
    with pytest.raises(KeyboardInterrupt):
        tail.follow(
            record, {}, 5, lambda rows: shown.append([row.cursor for row in rows]),
            clock=lambda: now, sleep=slept.append,
        )  # fmt: skip
    return shown, record.cursors, len(slept)


def test_a_decision_waits_for_its_outcome():
    waiting, complete = found(7, outcome=False), found(7, outcome=True)
    shown, cursors, _ = follow([[found(6, outcome=True), waiting], [waiting], [complete], []])
    assert shown == [[6], [7]]
    assert cursors == [5, 6, 6, 7, 7]


def test_a_decision_waits_for_a_while_only():
    shown, _, _ = follow([[found(6, outcome=False, received=1000)]], now=4.5)
    assert shown == [[6]]


def test_what_needs_no_outcome_does_not_wait():
    heartbeat = Chain()
    heartbeat.heartbeat()
    event = Found(6, heartbeat.source, 0, heartbeat.events[0])
    assert follow([[event]])[0] == [[6]]


def test_a_full_page_is_followed_by_the_next_at_once():
    page = [found(cursor, outcome=True) for cursor in range(1, 201)]
    assert follow([page, []])[2] == 1

"""Events of calls that ran through the real enforcement point, without sockets."""

from __future__ import annotations

import errno
import json
import time
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from tests.support.enforcement import CANARY, Stand, Wire
from valetkey.contracts import events
from valetkey.contracts.codes import by_name
from valetkey.contracts.errors import AuditError
from valetkey.proxy.audit import segment as segment_module
from valetkey.proxy.audit.segment import FRAME_SIZE
from valetkey.proxy.audit.spool import OUTCOME_ROOM, SpoolFull
from valetkey.proxy.core.credential import Succession
from valetkey.proxy.core.entry import Entry
from valetkey.proxy.http1.inbound import WorkloadConnection
from valetkey.proxy.http1.outbound import Place
from valetkey.proxy.streams import Watch


@pytest.fixture
def stand(tmp_path):
    made = Stand(tmp_path)
    made.credential()
    yield made
    made.close()


def check_ocsf(event: dict[str, Any], method: str) -> dict[str, Any]:
    """What OCSF 1.6 requires of an API Activity."""
    data = event["data"]
    activity = events.OCSF_ACTIVITY.get(method, 99)
    assert (data["category_uid"], data["class_uid"]) == (6, 6003)
    assert (data["activity_id"], data["type_uid"]) == (activity, 600_300 + activity)
    assert data["severity_id"] == 1
    assert abs(data["time"] - time.time() * 1000) < 60_000
    assert data["metadata"]["version"] == "1.6.0"
    assert data["metadata"]["product"] == {"name": "valetkey"}
    assert "app_uid" in data["actor"]
    assert data["api"]["operation"] == method
    assert data["src_endpoint"] == {"ip": "127.0.0.1", "port": 4444}
    return data


def check_decision(event: dict[str, Any], method: str, *, allowed: bool) -> dict[str, Any]:
    """The same with the security control profile."""
    assert event["type"] == events.TYPE_DECISION
    data = check_ocsf(event, method)
    assert data["metadata"]["profiles"] == ["security_control"]
    assert data["action_id"] == data["disposition_id"] == (1 if allowed else 2)
    return data


def check_outcome(event: dict[str, Any], method: str, decision: dict[str, Any]) -> dict[str, Any]:
    """An outcome, and whose it is."""
    assert event["type"] == events.TYPE_OUTCOME
    data = check_ocsf(event, method)
    assert data["unmapped"]["decision"] == decision["id"]
    named = data["actor"]["app_uid"]
    assert decision["data"]["actor"]["app_uid"].startswith(named)
    assert len(named) >= min(len(decision["data"]["actor"]["app_uid"]), 128 // 6)
    assert "code" not in data["unmapped"] or data["unmapped"]["code"]
    return data


TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
segment = st.text("abcXYZ019-._~!$&'()*+,;=:@", min_size=1, max_size=20).filter(
    lambda part: part.partition(";")[0] not in {"", ".", ".."}
)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.sampled_from(["GET", "HEAD", "PUT", "PURGE"]),
    path=st.lists(segment | st.sampled_from(["%20", "%C3%BC", "a%25b"]), min_size=1, max_size=6),
    query=st.booleans(),
    trace=st.booleans(),
    status=st.integers(200, 599).filter(lambda status: status not in {401, 407}),
    who=st.fixed_dictionaries(
        dict.fromkeys(("subject", "actor", "jti", "txn", "policy_digest"), text)
        | dict.fromkeys(("policies", "grants"), st.lists(text, max_size=12).map(tuple))
    ),
    ending=st.sampled_from(["completed", "target_failed", "client_closed", "cut"]),
)
def test_every_allowed_call(stand, method, path, query, trace, status, who, ending):
    stand.credential(**who)
    target_path = "/api/" + "/".join(path)
    before = stand.spool.seq
    head = (
        f"{method} {target_path}{f'?q={CANARY}&access_token={CANARY}' if query else ''} HTTP/1.1\r\n"
        f"Host: localhost\r\nAuthorization: Bearer {CANARY}\r\nX-Custom: {CANARY}\r\n"
        + (f"traceparent: {TRACE}\r\n" if trace else "")
        + ("Content-Length: 400\r\n" if ending == "client_closed" else "")
        + "\r\n"
        + (CANARY if ending == "client_closed" else "")
    )
    connection, target = stand.open(), stand.target()
    connection.data_received(head.encode())
    stand.turn.run()
    assume(stand.spool.seq == before + 1)
    decision = json.loads(stand.events()[0])
    if ending == "target_failed":
        target.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n")
    elif ending == "cut":
        target.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n" + b"x")
        target.connection_lost(None)
    elif ending == "completed":
        target.data_received(f"HTTP/1.1 {status} X\r\nContent-Length: 0\r\n\r\n".encode())
    stand.turn.run()
    connection.connection_lost(None)
    target.connection_lost(None)
    (raw,) = stand.events()
    outcome = json.loads(raw)
    assert stand.spool.open_calls == 0

    data = check_decision(decision, method, allowed=True)
    assert decision.get("traceparent", "") == (TRACE if trace else "")
    user = {"user": {"uid": who["subject"]}} if who["subject"] != who["actor"] else {}
    assert data["actor"] == user | {"app_uid": who["actor"]}
    assert data["http_request"] == {"url": {"path": target_path}}
    assert data["policy"] == {"uid": "read.all"}
    unmapped = data["unmapped"]
    assert unmapped["scopes"] == ["%d%%", "100%s", "t:read"]
    assert unmapped["credential"] == "bearer"
    assert [unmapped[name] for name in ("jti", "txn")] == [who[name] for name in ("jti", "txn")]
    assert unmapped.get("grants", []) == list(who["grants"][:8])
    version = {"version": who["policy_digest"]}
    named = [{"uid": name} | version for name in who["policies"][:8]]
    assert data["authorizations"] == [
        {"decision": "allowed", "policy": policy} for policy in named or [version]
    ]
    assert unmapped["dropped"] == ["authorization", *(["access_token"] if query else [])]

    ended = check_outcome(outcome, method, decision)
    assert outcome.get("traceparent", "") == (TRACE if trace else "")
    assert ended["unmapped"]["outcome"] == (
        "completed" if method == "HEAD" and ending == "cut" else ending
    )
    if ending == "completed":
        assert ended["http_response"]["code"] == status
        assert "code" not in ended["unmapped"]
    assert len(raw) + FRAME_SIZE <= OUTCOME_ROOM


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    method=st.from_regex(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]{1,32}", fullmatch=True).filter(
        lambda method: method.upper() != "CONNECT"
    ),
    path=st.text(
        st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters="?"), max_size=80
    ),
)
def test_every_refused_call(stand, method, path):
    path = "/other/" + path
    answer = stand.call(
        f"{method} {path}?q={CANARY} HTTP/1.1\r\nHost: localhost\r\nCookie: {CANARY}\r\n\r\n".encode()
    )
    decision, outcome = map(json.loads, stand.events())
    data = check_decision(decision, method, allowed=False)
    assert data["http_request"]["url"]["path"] == path
    code = by_name(data["unmapped"]["code"])
    assert answer.startswith(b"HTTP/1.1 %d " % code.status)
    ended = check_outcome(outcome, method, decision)
    assert ended["unmapped"]["code"] == code.name
    assert ended["http_response"]["code"] == code.status


def test_a_refused_call_names_workload_route_and_dropped_credentials(stand):
    stand.call(b"DELETE /api/x HTTP/1.1\r\nHost: h\r\nX-Api-Key: " + CANARY.encode() + b"\r\n\r\n")
    data = json.loads(stand.events()[0])["data"]
    assert data["actor"]["app_uid"] == 'bot "%s" \\ ü'
    assert data["api"]["service"] == {"name": "tickets"}
    assert data["unmapped"]["code"] == "route.no_match"
    assert data["unmapped"]["dropped"] == ["x-api-key"]


def message(method: str, **params: Any) -> bytes:
    body = json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).encode()
    head = b"POST /mcp HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
    return head + b"Content-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize("tool", ["get_issue", 'get_"%s"%%\\', "get_tür \U0001f511"])
def test_a_message_is_named_by_method_and_tool_and_nothing_else_of_it(stand, tool):
    stand.credential(1)
    stand.call(message("tools/call", name=tool, arguments={"secret": CANARY}))
    stand.call(message("tools/list", cursor=CANARY))
    stand.call(message("tools/call", name="s" + tool, arguments={"secret": CANARY}))
    stand.call(message("prompts/get", name=CANARY))
    stand.call(message("tools/call", arguments={"name": CANARY}))
    found = [json.loads(raw) for raw in stand.events()]
    decided = [
        event["data"]["unmapped"] for event in found if event["type"] == events.TYPE_DECISION
    ]
    assert [unmapped.get("mcp") for unmapped in decided] == [
        {"method": "tools/call", "tool": tool},
        {"method": "tools/list"},
        {"method": "tools/call", "tool": "s" + tool},
        {"method": "prompts/get"},
        None,
    ]
    assert [unmapped.get("code", "") for unmapped in decided] == [
        "", "", "mcp.no_match", "mcp.no_match", "mcp.malformed",
    ]  # fmt: skip
    assert {
        event["data"]["http_request"]["url"]["path"]
        for event in found
        if "http_request" in event["data"]
    } == {"/mcp"}


def test_a_long_path_is_cut_and_the_event_stays_whole(stand):
    stand.call(b"GET /api/%b HTTP/1.1\r\nHost: h\r\n\r\n" % (b"%C3%BC" * 2000))
    data = json.loads(stand.events()[0])["data"]
    assert len(data["http_request"]["url"]["path"]) == 1024


# To begin with, for a connection that was stale, for a nonce, for another credential.
MOST_ATTEMPTS = 4
ID = "i" * 22  # as long as the broker's own
GRANTS = ("g" * 128,) * 8


@pytest.mark.parametrize(
    "who",
    [
        {"jti": "\x01" * 1000, "txn": "\x01" * 1000, "grants": ("\x01" * 1000,) * 9},
        {"jti": "i" * 1000, "txn": ID},
        {"jti": ID, "txn": ID, "approval": "a" * 26},
        {"jti": ID, "txn": ID, "grants": ("g" * 50,)},
        {"jti": ID, "txn": ID, "approval": "a" * 26, "grants": GRANTS},
    ],
    ids=["strange", "long", "usual", "about all", "most grants"],
)
def test_the_longest_outcome_fits_into_its_room(stand, who):
    """Every free part at its longest."""
    stand.cached().actor = "\x01" * 1000
    connection, target = stand.open(), stand.target()
    connection.data_received(
        b"PURGE /api/x HTTP/1.1\r\nHost: h\r\ntraceparent: %b\r\n\r\n" % TRACE.encode()
    )
    stand.turn.run()
    call = connection.call
    call.sent = call.received = 10**18
    call.started -= 10**6
    stand.credential(**who)
    call.kind = "x" * 64 + "/" + "1" * 64
    call.watch = Watch(stand.cached(), 0.0)
    call.watch.checks = 10**9
    call.sessions, call.scrubbed = True, "head,body"
    call.succession = Succession(call.permit.credential)
    for attempts in range(1, MOST_ATTEMPTS + 1):
        call.succession.note(stand.cached(), attempts)
    stand.pep.accounts.stream_opened(call.kind)
    target.connection_lost(None)
    stand.turn.run()
    connection.connection_lost(None)
    raw = stand.events()[-1]
    assert b'"rechecks":1000000000,"jti":"' in raw
    found = json.loads(raw)["data"]["unmapped"]["credentials"]
    assert len(found) == MOST_ATTEMPTS
    assert all(who["jti"].startswith(one["jti"]) and len(one["jti"]) > 9 for one in found)
    names = 63 * 3 + 63 + 32 * 2  # source, route and target may be 63 long, a method 32
    assert len(raw) + FRAME_SIZE + names <= OUTCOME_ROOM


def test_a_stream_says_what_it_was_and_what_it_rested_on_last(stand):
    connection, target = stand.open(), stand.target()
    connection.data_received(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
    stand.turn.run()
    target.data_received(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 5\r\n\r\n"
    )
    call = connection.call
    assert call.kind == "event_stream"
    stand.credential(jti="later")
    call.watch = Watch(stand.cached(), 0.0)
    call.watch.checks = 3
    target.data_received(b"hello")
    _, outcome = map(json.loads, stand.events())
    assert outcome["data"]["unmapped"]["stream"] == {
        "kind": "event_stream", "rechecks": 3, "jti": "later",
    }  # fmt: skip


def test_a_long_answer_that_was_permitted_again_says_so_too(stand):
    connection, target = stand.open(), stand.target()
    connection.data_received(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
    stand.turn.run()
    connection.call.watch = Watch(stand.cached(), 0.0)
    target.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    assert b'"stream"' not in stand.events()[-1]
    target.place = Place.IDLE
    connection.data_received(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n")
    stand.turn.run()
    connection.call.watch = Watch(stand.cached(), 0.0)
    connection.call.watch.checks = 1
    target.data_received(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello")
    stream = json.loads(stand.events()[-1])["data"]["unmapped"]["stream"]
    assert stream == {"kind": "", "rechecks": 1, "jti": "j"}


def test_the_start_says_where_the_boot_before_ended(tmp_path):
    first = Stand(tmp_path)
    first.recorder.booted("digest")
    (raw,) = first.events()
    assert json.loads(raw)["type"] == events.TYPE_BOOT
    assert "previous_boot" not in json.loads(raw)["data"]["unmapped"]
    first.close()
    second = Stand(tmp_path)
    second.recorder.booted("digest")
    stated = json.loads(second.events()[0])["data"]["unmapped"]
    assert stated["policy_digest"] == "digest"
    assert stated["previous_boot"] == first.spool.boot
    assert (stated["previous_seq"], stated["previous_hash"]) == (1, events.digest(raw))
    assert stated["torn_tail"] is False
    second.close()


def test_a_gap_is_recorded_as_soon_as_there_is_room(stand):
    stand.recorder.unrecorded(went_on=True)
    stand.recorder.unrecorded(went_on=False)
    assert stand.recorder.lost == 4
    stand.recorder.heartbeat()
    gap, beat = map(json.loads, stand.events())
    assert gap["type"] == events.TYPE_GAP
    stated = gap["data"]["unmapped"]
    assert (stated["lost"], stated["first"], stated["last"]) == (4, 0, 0)
    assert (stated["calls_went_on"], stated["calls_refused"]) == (1, 1)
    assert beat["data"]["unmapped"] == {"open_calls": 0, "lost": 4}
    stand.recorder.heartbeat()
    assert [json.loads(raw)["type"] for raw in stand.events()] == [events.TYPE_HEARTBEAT]


def test_a_declared_loss_names_its_range_and_counts(stand):
    stand.recorder.declare_lost("00000000000000a1", 5, 9, "why")
    (raw,) = stand.events()
    stated = json.loads(raw)["data"]["unmapped"]
    assert stated == {
        "boot": "00000000000000a1", "first": 5, "last": 9, "lost": 5, "reason": "why",
    }  # fmt: skip
    assert stand.recorder.lost == 5


def test_without_room_calls_are_refused_and_open_calls_stay_right(tmp_path):
    stand = Stand(tmp_path, segment_size=64 << 10, max_size=128 << 10)
    stand.credential()
    request = b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n"
    while stand.call(request).startswith(b"HTTP/1.1 204"):
        pass
    assert b"503" in stand.call(request).partition(b"\r\n")[0]
    assert stand.spool.open_calls == 0

    def beats():
        while True:
            stand.recorder.heartbeat()

    with pytest.raises(SpoolFull):
        beats()
    stand.close()


def test_a_failed_disk_refuses_events(stand):
    stand.spool._fail("the disk is gone")
    with pytest.raises(AuditError, match="the disk is gone"):
        stand.recorder.heartbeat()
    assert b"503" in stand.call(b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n").partition(b"\r\n")[0]


def broken_pwrite(_fd, _data, _at):
    raise OSError(errno.EIO, "Input/output error")


def test_a_call_whose_record_can_not_be_written_goes_nowhere(stand, monkeypatch):
    request = b"GET /api/x HTTP/1.1\r\nHost: h\r\n\r\n"
    assert b"204" in stand.call(request).partition(b"\r\n")[0]
    before = stand.spool.kept
    monkeypatch.setattr(segment_module.os, "pwrite", broken_pwrite)
    connection, target = stand.open(), stand.target()
    aborted = []
    for wire in (connection.transport, target.transport):
        wire.abort = lambda wire=wire: aborted.append(wire)
    connection.data_received(request)
    call = connection.call
    assert call.decision_seq == before + 1
    stand.turn.run()
    assert target.transport.written == b""
    assert target.transport in aborted
    # The connection that is lost by it is taken for a stale one: the call is tried again, in vain.
    again = stand.target()
    stand.pep._send(call, call.permit, again)
    stand.turn.run()
    assert again.transport.written == b""
    assert b"503" in connection.transport.written.partition(b"\r\n")[0]
    assert b"audit.unavailable" in connection.transport.written
    assert stand.spool.kept == before
    assert b"503" in stand.call(request).partition(b"\r\n")[0]


@pytest.mark.parametrize(
    ("entry", "request_", "allowed"),
    [
        (Entry(target="tickets", destination=("203.0.113.9", 80)), b"GET /api/a", True),
        (Entry(target="tickets", destination=("2001:db8::9", 80)), b"GET /other", False),
        (Entry(transparent=True, destination=("203.0.113.9", 80)), b"GET /api/a", False),
        (Entry(transparent=True, destination=("203.0.113.9", 80)), b"no request", False),
    ],
    ids=["allowed", "without a route", "without a target", "no HTTP"],
)
def test_where_a_redirected_connection_was_going(stand, entry, request_, allowed):
    connection, target = WorkloadConnection(stand.pep, entry), stand.target()
    connection.connection_made(Wire())
    connection.data_received(request_ + b" HTTP/1.1\r\nHost: Some.Example:80\r\n\r\n")
    stand.turn.run()
    target.data_received(b"HTTP/1.1 204 No Content\r\n\r\n")
    stand.turn.run()
    connection.connection_lost(None)
    target.connection_lost(None)
    decision, outcome = (json.loads(raw)["data"] for raw in stand.events())
    host, port = entry.destination
    assert decision["dst_endpoint"] == {"ip": host, "port": port}
    assert decision["src_endpoint"] == outcome["src_endpoint"] == {"ip": "127.0.0.1", "port": 4444}
    assert "dst_endpoint" not in outcome
    assert decision["action_id"] == (1 if allowed else 2)


@pytest.mark.parametrize(
    ("entry", "head", "url"),
    [
        (Entry(), b"GET /a HTTP/1.1\r\nHost: A.example.\r\n\r\n",
         {"path": "/a", "hostname": "a.example"}),
        (Entry(forward=True), b"GET http://a.example:81/a HTTP/1.1\r\nHost: a.example:81\r\n\r\n",
         {"path": "/a", "hostname": "a.example", "port": 81}),
        (Entry(), b"GET /a HTTP/1.0\r\n\r\n", {"path": "/a"}),
        (Entry(target="tickets"), b"GET /a HTTP/1.1\r\nHost: a.example\r\n\r\n", {"path": "/a"}),
        (Entry(), b"GET /a HTTP/1.1\r\nHost: %b\r\n\r\n" % (b"a" * 1000),
         {"path": "/a", "hostname": "a" * 512}),
    ],
    ids=["by host", "by origin", "no host", "a target", "a long one"],
)  # fmt: skip
def test_the_host_is_told_where_no_target_is(stand, entry, head, url):
    connection = WorkloadConnection(stand.pep, entry)
    connection.connection_made(Wire())
    connection.data_received(head)
    stand.turn.run()
    connection.connection_lost(None)
    decision, _ = (json.loads(raw)["data"] for raw in stand.events())
    assert decision["action_id"] == 2
    assert decision["http_request"]["url"] == url

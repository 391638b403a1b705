from __future__ import annotations

import msgspec
import pytest

from valetkey.collector.core import stream
from valetkey.collector.core.stream import Stream, findings
from valetkey.contracts import events

SUBJECTS = "valetkey.record.>"
FIT = Stream(
    subjects=(SUBJECTS,),
    retention="limits",
    storage="file",
    discard="new",
    max_age=0,
    max_msgs=-1,
    max_bytes=-1,
    max_msgs_per_subject=-1,
    duplicate_window=120,
    deny_delete=True,
    deny_purge=True,
)

FOUND = {
    "as it should be": ({}, []),
    "full streams that refuse": ({"max_bytes": 10, "discard": "new"}, []),
    "a year": ({"max_age": 365 * 86_400.0}, []),
    "more subjects": ({"subjects": (SUBJECTS, "more.>")}, [(True, "its subjects are not")]),
    "a part of the subjects": ({"subjects": ("valetkey.record.gap.>",)}, [(True, "its subjects")]),
    "a work queue": ({"retention": "workqueue"}, [(True, "consumers would delete")]),
    "interest": ({"retention": "interest"}, [(True, "consumers would delete")]),
    "no acknowledgements": ({"no_ack": True}, [(True, "acknowledges nothing")]),
    "sealed": ({"sealed": True}, [(True, "sealed")]),
    "a mirror": ({"mirrored": True}, [(True, "a mirror")]),
    "other subjects inside": ({"transformed": True}, [(True, "changes subjects")]),
    "the last of each subject": ({"max_msgs_per_subject": 1}, [(True, "per subject")]),
    "a short memory of ids": ({"duplicate_window": 5}, [(False, "duplicate window")]),
    "in memory": ({"storage": "memory"}, [(False, "a restart empties it")]),
    "drops the oldest": ({"discard": "old", "max_msgs": 5}, [(False, "drops the oldest")]),
    "an hour": ({"max_age": 3600.0}, [(False, "for 3600 s only")]),
    "may be purged": ({"deny_purge": False}, [(False, "can be deleted")]),
    "several": ({"no_ack": True, "sealed": True}, [(True, "acknowledges"), (True, "sealed")]),
}


@pytest.mark.parametrize(("changes", "expected"), FOUND.values(), ids=FOUND)
def test_what_stream_may_have_the_record(changes, expected):
    found = list(findings(msgspec.structs.replace(FIT, **changes), SUBJECTS))
    assert [finding.refused for finding in found] == [refused for refused, _ in expected]
    for finding, (_, text) in zip(found, expected, strict=True):
        assert text in finding.text


SUBJECT_OF = {
    "a denial": (events.TYPE_DECISION, "denied", "agent-1", "p.decision.denied.agent-1"),
    "an outcome": (events.TYPE_OUTCOME, "", "agent-1", "p.outcome.none.agent-1"),
    "a type of later": ("valetkey.new.v1", "", "agent-1", "p.other.none.agent-1"),
    "a name with dots": (events.TYPE_GAP, "", "a..b.", "p.gap.none.a%2E%2Eb%2E"),
}


@pytest.mark.parametrize(
    ("type_", "decision", "name", "expected"), SUBJECT_OF.values(), ids=SUBJECT_OF
)
def test_the_subject_of_an_event(type_, decision, name, expected):
    source = events.SOURCE_PREFIX + name
    assert stream.subject("p", type_, decision, source) == expected


def test_two_sidecars_can_not_have_one_id():
    one, other = (stream.message_id(events.SOURCE_PREFIX + name, "b-1") for name in ("a", "b"))
    assert one == "a/b-1"
    assert one != other

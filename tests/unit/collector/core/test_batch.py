from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.chain import Chain, batch
from valetkey.collector.core.batch import MAX_EVENTS, Contradiction, read_batch
from valetkey.collector.core.coverage import Range
from valetkey.contracts import codes, events
from valetkey.contracts.errors import CallerError


def chain() -> Chain:
    made = Chain()
    made.boot_event()
    return made.calls(3)


def altered(**members: object) -> bytes:
    """A batch of one event with members replaced."""
    event = msgspec.json.decode(chain().events[0])
    return msgspec.json.encode([event | members])


GOOD = chain().events

REFUSED = {
    "nothing": b"",
    "no JSON": b"[",
    "no array": GOOD[0],
    "no event": b"[]",
    "an array of numbers": b"[1]",
    "bytes behind the array": batch(GOOD) + b"x",
    "no UTF-8": batch([GOOD[0].replace(b"valetkey.sidecar.boot.v1", b"\xff")]),
    "no UTF-8 in a member nobody reads": batch([GOOD[0][:-1] + b',"x":"\xff"}']),
    "a bad escape in a member nobody reads": batch([GOOD[0][:-1] + b',"x":"\\q"}']),
    "two sources": batch([GOOD[0], Chain(instance="other").calls(1).events[0]]),
    "two boots": batch([GOOD[0], Chain(boot="00000000000000b2").calls(1).events[0]]),
    "an id that does not follow": altered(id="x"),
    "a source that is no sidecar": altered(source="urn:x"),
    "a sequence of zero": altered(sequence="0"),
    "a sequence beyond the store": altered(sequence=str(2**63), id=f"00000000000000a1-{2**63}"),
    "a link that is no hash": altered(prevhash="x"),
    "another version": altered(specversion="0.3"),
    "data that is no object": altered(data=[]),
    "data that is missing": batch([GOOD[0].replace(b'"data":', b'"date":')]),
    "nested beyond reading": b"[" * 100_000,
    "an event nested beyond reading": batch(
        [GOOD[0][:-1] + b',"x":' + b"[" * 100_000 + b"]" * 100_000 + b"}"]
    ),
    "too many": batch([GOOD[0]] * (MAX_EVENTS + 1)),
}


@pytest.mark.parametrize("body", REFUSED.values(), ids=REFUSED)
def test_refused(body):
    with pytest.raises(CallerError) as refused:
        read_batch(body)
    assert refused.value.code is codes.AUDIT_BATCH_INVALID


def test_the_bytes_are_kept_as_they_came():
    spaced = b' {"specversion" : "1.0",' + GOOD[0][len(b'{"specversion":"1.0",') :] + b"\n"
    found = read_batch(b"[" + spaced + b"]").events[0]
    assert found.raw == spaced.strip()
    assert found.hash == events.digest(spaced.strip())


def test_events_come_out_in_order_and_equal_copies_once():
    found = read_batch(batch([GOOD[3], GOOD[1], GOOD[3], GOOD[2]]))
    assert [event.raw for event in found.events] == GOOD[1:4]
    assert (found.source, found.boot, found.repeated) == (chain().source, chain().boot, 1)


def test_a_batch_that_contradicts_itself():
    other = GOOD[1].replace(b"tickets:read", b"tickets:rEad")
    with pytest.raises(Contradiction) as refused:
        read_batch(batch([GOOD[1], other]))
    assert refused.value.code is codes.AUDIT_CONFLICT
    assert refused.value.seq == 2
    assert refused.value.hashes == (events.digest(GOOD[1]), events.digest(other))


def test_statements_are_read_from_their_own_types_only():
    made = Chain()
    made.boot_event(chain())
    made.gap(chain().boot, 3, 4)
    made.add(
        events.TYPE_HEARTBEAT, {"unmapped": {"boot": made.boot, "first": 1, "last": 2, "lost": 2}}
    )
    boot, gap, heartbeat = read_batch(batch(made.events)).events
    assert boot.previous is not None
    assert boot.previous.seq == len(chain().events)
    assert gap.declaration is not None
    assert gap.declaration.range == Range(3, 4)
    assert heartbeat.declaration is None
    assert heartbeat.previous is None


@given(st.binary(max_size=64), st.integers(0, len(batch(GOOD))))
def test_damaged_batches_are_read_or_refused(noise, at):
    body = batch(GOOD)
    try:
        found = read_batch(body[:at] + noise + body[at + len(noise) :])
    except CallerError:
        return
    assert all(events.read(event.raw).seq == event.seq for event in found.events)

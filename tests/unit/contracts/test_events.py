"""Events: what is one, and chains that hold, break or were cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.contracts import events
from valetkey.contracts.events import GENESIS, ChainHead, EventInvalid

BOOT = "00112233445566aa"
SOURCE = "urn:valetkey:sidecar:agent-1"


def event(seq: int, prevhash: str, **members: Any) -> bytes:
    document = {
        "specversion": "1.0",
        "id": f"{BOOT}-{seq}",
        "source": SOURCE,
        "type": events.TYPE_DECISION,
        "time": "2026-11-24T10:00:00.000Z",
        "boot": BOOT,
        "sequence": str(seq),
        "prevhash": prevhash,
        "data": {"n": seq},
        **members,
    }
    return json.dumps(
        {name: value for name, value in document.items() if value is not None}
    ).encode()


def chain(count: int) -> list[bytes]:
    raws: list[bytes] = []
    for seq in range(1, count + 1):
        raws.append(event(seq, events.digest(raws[-1]) if raws else GENESIS))
    return raws


def test_an_event_is_read_and_its_data_stays_as_it_was() -> None:
    read = events.read(event(7, GENESIS, data={"b": 1, "a": [2]}, subject="s"))
    assert (read.seq, read.subject, read.traceparent) == (7, "s", "")
    assert bytes(read.data) == b'{"b": 1, "a": [2]}'
    assert events.data_of(read) == {"b": 1, "a": [2]}


INVALID = {
    "not JSON": b"{",
    "a list": b"[]",
    "another specversion": event(1, GENESIS, specversion="0.3"),
    "no data": event(1, GENESIS, data=None),
    "no boot": event(1, GENESIS, boot=None),
    "boot too short": event(1, GENESIS, boot="0011", id="0011-1"),
    "boot in capitals": event(1, GENESIS, boot="00112233445566AA", id="00112233445566AA-1"),
    "sequence zero": event(1, GENESIS, sequence="0", id=f"{BOOT}-0"),
    "sequence with a leading zero": event(1, GENESIS, sequence="01", id=f"{BOOT}-01"),
    "sequence negative": event(1, GENESIS, sequence="-1", id=f"{BOOT}--1"),
    "sequence is a number": event(1, GENESIS, sequence=1),
    "sequence in other digits": event(1, GENESIS, sequence="١", id=f"{BOOT}-1"),
    "sequence beyond 64 bits": event(1, GENESIS, sequence="9" * 20, id=f"{BOOT}-{'9' * 20}"),
    "another id": event(1, GENESIS, id=f"{BOOT}-2"),
    "source of another kind": event(1, GENESIS, source="https://x.test.example"),
    "source without a name": event(1, GENESIS, source="urn:valetkey:sidecar:"),
    "source with a slash": event(1, GENESIS, source="urn:valetkey:sidecar:a/b"),
    "prevhash in capitals": event(1, "A" * 64),
    "prevhash too short": event(1, "0" * 63),
}


@pytest.mark.parametrize("raw", INVALID.values(), ids=INVALID)
def test_what_is_not_an_event(raw: bytes) -> None:
    with pytest.raises(EventInvalid):
        events.read(raw)


@pytest.mark.parametrize("data", ["text", 7, [1]])
def test_data_that_is_no_object_can_not_be_queried(data: Any) -> None:
    with pytest.raises(EventInvalid, match="data is not a JSON object"):
        events.data_of(events.read(event(1, GENESIS, data=data)))


def breaks(raws: list[bytes], after: ChainHead | None = None) -> list[tuple[int, str]]:
    return [(each.seq, each.reason) for each in events.check_chain(BOOT, raws, after=after)[1]]


def test_a_whole_chain_holds_and_ends_at_its_head() -> None:
    raws = chain(5)
    assert events.check_chain(BOOT, raws) == (ChainHead(BOOT, 5, events.digest(raws[-1])), [])


def test_a_chain_is_checked_in_stretches() -> None:
    raws = chain(5)
    head, _ = events.check_chain(BOOT, raws[:3])
    assert breaks(raws[3:], after=head) == []


def test_an_empty_stretch_is_where_it_began() -> None:
    assert events.check_chain(BOOT, []) == (ChainHead(BOOT, 0, GENESIS), [])


CHANGED = "the event was changed: the next one's link differs"
OTHER = event(3, "1" * 64, boot="ffffffffffffffff", id="ffffffffffffffff-3")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda raws: [*raws[:1], *raws[2:]], [(2, "sequence jumps from 1 to 3")]),
        (lambda raws: raws[1:], [(1, "sequence jumps from 0 to 2")]),
        (
            lambda raws: [raws[0], raws[2], raws[1], raws[3]],
            [
                (2, "sequence jumps from 1 to 3"),
                (4, "sequence jumps from 3 to 2"),
                (3, "sequence jumps from 2 to 4"),
            ],
        ),
        (lambda raws: [*raws[:2], raws[1], *raws[2:]], [(3, "sequence jumps from 2 to 2")]),
        (lambda raws: [*raws[:2], OTHER, *raws[2:]], [(3, "event of another boot")]),
        (
            lambda raws: [raws[0], raws[1].replace(b'"n": 2', b'"n": 9'), *raws[2:]],
            [(2, CHANGED)],
        ),
        (
            lambda raws: [event(1, "1" * 64), *raws[1:]],
            [(1, "the first event is not linked to the genesis"), (1, CHANGED)],
        ),
    ],
    ids=["left out", "first left out", "swapped", "twice", "of another boot", "changed", "genesis"],
)
def test_each_tampering_is_named_with_its_place(
    change: Any, expected: list[tuple[int, str]]
) -> None:
    assert breaks(change(chain(4))) == expected


def test_bytes_that_are_no_event_break_the_chain_there() -> None:
    raws = chain(3)
    (first, second) = breaks([raws[0], b"{", raws[2]])
    assert first[0] == 2
    assert first[1].startswith("not an event: ")
    assert second == (2, CHANGED)


@given(st.data())
def test_any_changed_byte_before_the_last_event_breaks_the_chain(data: st.DataObject) -> None:
    raws = chain(4)
    which = data.draw(st.integers(0, 2))
    position = data.draw(st.integers(0, len(raws[which]) - 1))
    value = data.draw(st.integers(0, 255).filter(lambda byte: byte != raws[which][position]))
    changed = bytearray(raws[which])
    changed[position] = value
    assert breaks([*raws[:which], bytes(changed), *raws[which + 1 :]])


def test_a_batch_is_split_into_exact_bytes() -> None:
    raws = chain(3)
    assert events.split_batch(b"[" + b" ,\n".join(raws) + b"]") == raws
    assert events.split_batch(b"[]") == []


@pytest.mark.parametrize("body", [b"", b"{}", b"[1", b"[{}]x", b"null"])
def test_what_is_not_a_batch(body: bytes) -> None:
    with pytest.raises(EventInvalid, match="not a JSON array"):
        events.split_batch(body)

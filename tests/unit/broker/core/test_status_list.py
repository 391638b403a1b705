"""The bits of a status list."""

from __future__ import annotations

import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from valetkey.broker.core.status_list import SIZE, packed
from valetkey.contracts.jose import b64url_decode


def test_the_example_of_the_draft() -> None:
    """§4.1 and §4.2: bytes 0xB9 0xA3 under "bits": 1."""
    lst = packed([0, 3, 4, 5, 7, 8, 9, 13, 15], size=16)
    assert lst == "eNrbuRgAAhcBXQ"
    assert zlib.decompress(b64url_decode(lst)) == b"\xb9\xa3"


@given(st.sets(st.integers(0, SIZE - 1), max_size=200))
def test_each_index_has_its_bit(invalid: set[int]) -> None:
    octets = zlib.decompress(b64url_decode(packed(invalid)))
    assert len(octets) * 8 == SIZE
    assert {i for i in range(SIZE) if octets[i // 8] >> (i % 8) & 1} == invalid


def test_what_is_no_list() -> None:
    for invalid, size in (([], 12), ([16], 16), ([-1], 16)):
        with pytest.raises(ValueError, match=r"size|index"):
            packed(invalid, size=size)

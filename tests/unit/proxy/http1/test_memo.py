"""The memo: keeps what comes twice, never much."""

from __future__ import annotations

from valetkey.proxy.http1.memo import Memo


def test_only_what_comes_again_is_kept() -> None:
    memo: Memo[int] = Memo()
    memo.offer(b"once", 1)
    assert memo.entries == {}
    memo.offer(b"once", 2)
    assert memo.entries == {b"once": 2}


def test_long_keys_are_not_kept() -> None:
    memo: Memo[int] = Memo()
    for _ in range(3):
        memo.offer(b"k" * 2049, 1)
        memo.offer(b"k" * 2048, 1)
    assert set(memo.entries) == {b"k" * 2048}


def test_what_is_kept_is_bounded() -> None:
    memo: Memo[int] = Memo()
    for n in range(5000):
        for _ in range(2):
            memo.offer(b"%d" % n, n)
        assert len(memo.entries) <= 256
        assert len(memo._seen) <= 1024
    assert memo.entries[b"4999"] == 4999

"""Token buckets: what they give, and when they are full."""

from __future__ import annotations

from protocol.core.buckets import Bucket

S = 1_000_000_000


def test_a_burst_then_the_rate_then_full_again() -> None:
    bucket = Bucket(1, 0, burst_s=2)
    assert bucket.is_full(0)
    assert [bucket.take(0) for _ in range(3)] == [True, True, False]
    assert not bucket.has_one(S - 1)
    assert bucket.take(S)
    assert not bucket.is_full(3 * S - 1)
    assert bucket.is_full(3 * S)


def test_times_that_go_back_give_and_take_nothing() -> None:
    """Datagrams are judged by when they arrived, which is not the order in which they are read."""
    bucket = Bucket(1, 5 * S, burst_s=2)
    assert bucket.take(5 * S)
    assert bucket.has_one(4 * S)
    assert bucket.take(4 * S)
    assert not bucket.has_one(5 * S)
    assert bucket.has_one(6 * S)

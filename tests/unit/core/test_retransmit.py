"""Back-off maths."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.errors import LocalError
from protocol.core.retransmit import NS_PER_MS, Backoff, with_jitter


def test_doubles_up_to_the_maximum() -> None:
    backoff = Backoff(40 * NS_PER_MS, 1000 * NS_PER_MS, 8)
    delays = [backoff.delay_ns(n) // NS_PER_MS for n in range(9)]
    assert delays == [40, 80, 160, 320, 640, 1000, 1000, 1000, 1000]
    assert backoff.total_ns() == sum(delays) * NS_PER_MS
    assert not backoff.is_spent(7)
    assert backoff.is_spent(8)
    assert backoff.delay_ns(10**9) == 1000 * NS_PER_MS


@given(st.integers(0, 10**12), st.integers(0, 10**9), st.integers(0, 2**64))
def test_jitter_only_delays_and_is_bounded(delay, jitter, draw) -> None:
    assert delay <= with_jitter(delay, jitter, draw) <= delay + jitter


def test_nonsense_is_refused() -> None:
    for attempt in (
        lambda: Backoff(0, 1, 1),
        lambda: Backoff(2, 1, 1),
        lambda: Backoff(1, 1, -1),
        lambda: Backoff(1, 1, 1, factor=0),
        lambda: with_jitter(1, -1, 0),
        lambda: with_jitter(1, 1, -1),
    ):
        with pytest.raises(LocalError):
            attempt()


def test_a_factor_of_one_stays_and_ends() -> None:
    assert Backoff(5, 9, 3, factor=1).delay_ns(100) == 5

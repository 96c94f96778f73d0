"""The anti-replay window against a slow and obvious twin."""

from __future__ import annotations

import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from protocol.core.antireplay import SEQUENCE_MAX, AntiReplayWindow


class ObviousWindow:
    """Keeps every number ever seen."""

    def __init__(self, bits: int) -> None:
        self.bits = bits
        self.seen: set[int] = set()

    def mark(self, sequence: int) -> bool:
        too_old = bool(self.seen) and sequence <= max(self.seen) - self.bits
        if sequence in self.seen or too_old:
            return False
        self.seen.add(sequence)
        return True


near = st.integers(0, 60)
anywhere = st.integers(0, SEQUENCE_MAX)


@given(st.sampled_from([1, 8, 32, 64]), st.lists(near | anywhere, max_size=80))
def test_agrees_with_the_obvious_twin(bits, sequences) -> None:
    fast, slow = AntiReplayWindow(bits), ObviousWindow(bits)
    for sequence in sequences:
        fresh = fast.is_fresh(sequence)
        assert fast.mark(sequence) == slow.mark(sequence) == fresh


def test_memory_is_bounded_by_the_window() -> None:
    window = AntiReplayWindow(64)
    for sequence in (0, 1, 1 << 63, SEQUENCE_MAX):
        assert window.mark(sequence)
    assert sys.getsizeof(window._seen) < 64
    assert window.highest == SEQUENCE_MAX


def test_numbers_that_do_not_fit_are_refused() -> None:
    window = AntiReplayWindow()
    assert not window.mark(-1)
    assert not window.mark(SEQUENCE_MAX + 1)
    assert window.highest == -1


def test_checking_marks_nothing() -> None:
    window = AntiReplayWindow()
    assert window.is_fresh(3)
    assert window.is_fresh(3)
    assert window.mark(3)
    assert not window.is_fresh(3)


def test_a_window_has_a_size() -> None:
    with pytest.raises(ValueError, match="at least one bit"):
        AntiReplayWindow(0)

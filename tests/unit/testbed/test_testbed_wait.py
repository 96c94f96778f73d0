"""Waiting: looks first, says what it saw, tells slow from broken."""

from __future__ import annotations

import time

import pytest

from testbed.errors import DeadlineError
from testbed.wait import wait_until


def test_what_is_there_needs_no_waiting() -> None:
    start = time.monotonic()
    assert wait_until(lambda: "yes", 0.0, "never asked", pause_s=60) == "yes"
    assert time.monotonic() - start < 0.5


def test_the_first_true_value_is_returned() -> None:
    answers = iter([None, 0, "", [3]])
    assert wait_until(lambda: next(answers), 5, "more answers", pause_s=0.001) == [3]


def test_failure_says_what_was_seen() -> None:
    with pytest.raises(DeadlineError, match=r"2 of 3 are up \(waited"):
        wait_until(lambda: False, 0.02, lambda: "only 2 of 3 are up", pause_s=0.005)


def test_late_is_slow_and_never_is_broken() -> None:
    late = time.monotonic() + 0.05
    with pytest.raises(DeadlineError, match=r"^slow: the bridge"):
        wait_until(
            lambda: time.monotonic() > late, 0.01, "the bridge", pause_s=0.005, grace_factor=100
        )
    with pytest.raises(DeadlineError, match=r"^broken: the bridge"):
        wait_until(lambda: False, 0.01, "the bridge", pause_s=0.005, grace_factor=2)


def test_an_error_of_the_predicate_ends_the_wait() -> None:
    with pytest.raises(ZeroDivisionError):
        wait_until(lambda: 1 // 0, 5, "never")

"""Waiting for a state, never for a time: check first, then sleep; say what was seen on failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final, TypeVar

from testbed.errors import DeadlineError

T = TypeVar("T")

_FIRST_PAUSE_S: Final = 0.002


def wait_until(
    predicate: Callable[[], T | None],
    deadline_s: float,
    describe: Callable[[], str] | str,
    *,
    pause_s: float = 0.02,
    grace_factor: float = 1.0,
) -> T:
    """Return the predicate's first true value.

    Args:
        predicate: looks at the state; anything false means "not yet". What it raises ends the wait.
        deadline_s: how long the state may take.
        describe: what is awaited and what is there instead; called once, on failure.
        pause_s: longest pause between two looks; the first ones are shorter.
        grace_factor: above 1, waiting goes on after the deadline to tell slow from broken.

    Raises:
        DeadlineError: the state did not come in time. The text says whether it came late
            ("slow") or not at all ("broken").
    """
    start = time.monotonic()
    limit = start + deadline_s
    pause = _FIRST_PAUSE_S
    while True:
        value = predicate()
        now = time.monotonic()
        if value:
            if now > limit and grace_factor > 1:
                raise DeadlineError(
                    f"slow: {_text(describe)}: took {now - start:.2f} s, allowed {deadline_s:g} s"
                )
            return value
        if now >= start + deadline_s * grace_factor:
            verdict = "broken: " if grace_factor > 1 else ""
            raise DeadlineError(f"{verdict}{_text(describe)} (waited {now - start:.2f} s)")
        time.sleep(min(pause, max(0.0, limit - now) or pause))
        pause = min(pause * 1.5, pause_s)


def _text(describe: Callable[[], str] | str) -> str:
    return describe if isinstance(describe, str) else describe()

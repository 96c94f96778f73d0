"""Waiting for observable state with a deadline; what was seen last is in the failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

POLL_S = 0.02


def wait_until(
    probe: Callable[[], T],
    within_s: float,
    what: str,
    *,
    accept: Callable[[T], bool] = bool,
    tolerate: tuple[type[Exception], ...] = (),
) -> T:
    """Return the first accepted value of ``probe``; fail after ``within_s`` with the last one."""
    deadline_s = time.monotonic() + within_s
    seen: object = "nothing"
    while True:
        try:
            value = probe()
            if accept(value):
                return value
            seen = value
        except tolerate as error:
            seen = error
        if time.monotonic() >= deadline_s:
            raise AssertionError(f"not within {within_s:g} s: {what}; last seen: {seen!r}")
        time.sleep(POLL_S)  # poll

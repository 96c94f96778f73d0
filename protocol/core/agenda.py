"""Virtual time: what is due, in the order of time and then of asking."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

NS_PER_MS = 1_000_000

CALLS_AT_ONCE_MAX = 50_000
"""Calls at one instant; more means that somebody is called again and again without end."""


class StandstillError(Exception):
    """Virtual time does not pass any more."""


class Agenda:
    """A heap of calls; time passes only from one call to the next.

    Attributes:
        now_ns: virtual time in nanoseconds.
        done: calls made so far.
    """

    __slots__ = ("_at_once", "_heap", "_order", "done", "now_ns")

    def __init__(self, now_ns: int = 0) -> None:
        self.now_ns = now_ns
        self.done = 0
        self._heap: list[tuple[int, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = 0
        self._at_once = 0

    @property
    def now_ms(self) -> float:
        """Virtual time in milliseconds."""
        return self.now_ns / NS_PER_MS

    def at(self, at_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call at this time, or as soon as it can be if that has passed."""
        self._order += 1
        now_ns = self.now_ns
        heappush(self._heap, (at_ns if at_ns > now_ns else now_ns, self._order, action, arguments))

    def after(self, delay_ns: int, action: Callable[..., None], *arguments: Any) -> None:
        """Call after this time."""
        self.at(self.now_ns + delay_ns, action, *arguments)

    def run(self, end_ns: int) -> None:
        """Make every call that is due until ``end_ns``, and let the time come to that.

        Raises:
            StandstillError: there were too many calls at one instant.
        """
        heap = self._heap
        while heap and heap[0][0] <= end_ns:
            self._call()
        self.skip(end_ns)

    def step(self, end_ns: int) -> bool:
        """Make the next call if it is due until ``end_ns``; say whether there was one.

        Raises:
            StandstillError: there were too many calls at one instant.
        """
        if not self._heap or self._heap[0][0] > end_ns:
            return False
        self._call()
        return True

    def _call(self) -> None:
        """Make the next call."""
        at_ns, _, action, arguments = heappop(self._heap)
        # After `skip` some calls are late; time never goes back.
        if at_ns > self.now_ns:
            self.now_ns = at_ns
            self._at_once = 0
        elif self._at_once >= CALLS_AT_ONCE_MAX:
            raise StandstillError(f"{CALLS_AT_ONCE_MAX} calls at one instant")
        self._at_once += 1
        self.done += 1
        action(*arguments)

    def skip(self, to_ns: int) -> None:
        """Let time pass without a call; what was due meanwhile is late."""
        self.now_ns = max(self.now_ns, to_ns)

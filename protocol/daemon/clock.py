"""The real clocks behind core's `Instant`.

The wall clock can be shifted by a known offset, and that of an emulated device set while it runs.
That is only for tests: all network namespaces of one kernel share one clock (a time namespace has
no CLOCK_REALTIME of its own), so without it there is nothing to correct and no clock to step.
"""

from __future__ import annotations

import time
from typing import Protocol

from protocol.core.engine import Instant


class Clock(Protocol):
    """What the daemon reads time from; tests pass a clock they turn by hand."""

    def now(self) -> Instant:
        """Read both clocks."""
        ...


class SystemClock:
    """CLOCK_MONOTONIC and CLOCK_REALTIME, the latter shifted by an offset.

    Attributes:
        offset_ns: added to every wall reading.
    """

    def __init__(self, offset_ns: int = 0) -> None:
        self.offset_ns = offset_ns

    def now(self) -> Instant:
        """Read both clocks, the monotonic one first."""
        return Instant(time.monotonic_ns(), time.time_ns() + self.offset_ns)

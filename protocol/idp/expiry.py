"""When a device of the connectivity table is down, if it goes on being silent (IDP-7, IDP-10).

Pure state, owned and driven by the engine.
"""

from __future__ import annotations

from protocol.core.counters import RuleCounters
from protocol.core.engine import Effect, Instant, SetTimer
from protocol.idp import rules
from protocol.idp.connectivity import Change, ConnectivityTable, PeerEntry

TIMER_EXPIRY = "idp.expiry"


class Expiry:
    """Keeps one timer for the whole table.

    Args:
        table: whose devices.
        interval_ns: our own hello interval.
        counters: count how often we did not run.
    """

    def __init__(self, table: ConnectivityTable, interval_ns: int, counters: RuleCounters) -> None:
        self._table = table
        self._interval_ns = interval_ns
        self._counters = counters
        self._at_mono_ns: int | None = None

    def heard(self, entry: PeerEntry) -> list[Effect]:
        """Set the timer if this device would be down before it fires.

        Hellos move deadlines back without touching the timer: when it fires too early, it is set
        again, at most once per dead interval.
        """
        if self._at_mono_ns is None or entry.deadline_mono_ns < self._at_mono_ns:
            return self.timer()
        return []

    def timer(self) -> list[Effect]:
        """Set the timer for the device that would be down first."""
        self._at_mono_ns = self._table.next_deadline_mono_ns
        return [] if self._at_mono_ns is None else [SetTimer(TIMER_EXPIRY, self._at_mono_ns)]

    def due(self, now: Instant) -> list[Change]:
        """Return who is down (IDP-7), unless it was us who did not run (IDP-10)."""
        if self._at_mono_ns is None:
            return []
        if rules.was_not_running(self._at_mono_ns, self._interval_ns, now.mono_ns):
            self._counters.count("idp.excused")
            self._table.excuse(now.mono_ns)
        return self._table.expire(now.mono_ns)

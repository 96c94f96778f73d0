"""When a device of the connectivity table is down, if it goes on being silent (IDP-7, IDP-10).

Pure state, owned and driven by the engine. The table's times are those of arrival: a device was
heard when its hello arrived, and is silent only up to the arrival of what we have read.
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

    Attributes:
        behind_ns: how long what we read last of a device that we know had waited in our socket.
    """

    def __init__(self, table: ConnectivityTable, interval_ns: int, counters: RuleCounters) -> None:
        self._table = table
        self._interval_ns = interval_ns
        self._counters = counters
        self._at_mono_ns: int | None = None
        self.behind_ns = 0

    def heard(self, entry: PeerEntry) -> list[Effect]:
        """Set the timer if this device would be down before it fires.

        Hellos move deadlines back without touching the timer: when it fires too early, it is set
        again, at most once per dead interval.
        """
        due_mono_ns = entry.deadline_mono_ns + self.behind_ns
        return self.timer() if self._at_mono_ns is None or due_mono_ns < self._at_mono_ns else []

    def timer(self) -> list[Effect]:
        """Set the timer for the device that would be down first."""
        deadline_mono_ns = self._table.next_deadline_mono_ns
        if deadline_mono_ns is None:
            self._at_mono_ns = None
            return []
        self._at_mono_ns = deadline_mono_ns + self.behind_ns
        return [SetTimer(TIMER_EXPIRY, self._at_mono_ns)]

    def heard_until(self, now: Instant) -> int:
        """IDP-10: return up to which time we know who was silent (monotonic)."""
        return now.mono_ns - self.behind_ns

    def due(self, now: Instant) -> list[Change]:
        """Return who is down (IDP-7), unless it was us who did not run (IDP-10)."""
        if self._at_mono_ns is None:
            return []
        if rules.was_not_running(self._at_mono_ns, self._interval_ns, now.mono_ns):
            self._counters.count("idp.excused")
            self._table.excuse(self.heard_until(now))
        return self._table.expire(self.heard_until(now))

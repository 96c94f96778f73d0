"""Counters per rule and the recent refusals, bounded whatever arrives.

Everything here can be driven by an attacker's datagrams, so the number of entries has a limit and
the log gets at most one line per (peer, reason) and minute.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from protocol.core.engine import Instant

COUNTERS_MAX = 256
"""Distinct counter names; the rule tables have well under a hundred rows."""

REFUSALS_MAX = 64
"""Refusals remembered for ``status``; the oldest gives way."""

LOG_INTERVAL_NS = 60_000_000_000
"""One log line per (peer, reason) in a minute."""

OVERFLOW = "other"
"""Where counts go when all names are taken."""


class RuleCounters:
    """Counts by rule id or refusal reason; at most ``limit`` names."""

    __slots__ = ("_counts", "_limit")

    def __init__(self, limit: int = COUNTERS_MAX) -> None:
        self._limit = limit
        self._counts: dict[str, int] = {}

    def count(self, name: str, amount: int = 1) -> None:
        """Add to a counter."""
        counts = self._counts
        if name in counts:
            counts[name] += amount
            return
        if len(counts) >= self._limit:
            name = OVERFLOW
        counts[name] = counts.get(name, 0) + amount

    def __getitem__(self, name: str) -> int:
        return self._counts.get(name, 0)

    def as_dict(self) -> dict[str, int]:
        """Return a copy, sorted by name."""
        return dict(sorted(self._counts.items()))


@dataclass(slots=True)
class Refusal:
    """Why something was refused, when last, and how often.

    Attributes:
        peer: who claimed to have sent it (a device's name or an address); not authenticated.
        rule: the rule's id.
        reason: one sentence.
        last_wall_ns: UTC of the last time.
        count: how often since the entry was made.
        logged_mono_ns: when the log last got a line of it.
    """

    peer: str
    rule: str
    reason: str
    last_wall_ns: int
    count: int
    logged_mono_ns: int

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values for ``status``."""
        return {
            "peer": self.peer,
            "rule": self.rule,
            "reason": self.reason,
            "last_wall_ns": self.last_wall_ns,
            "count": self.count,
        }


class RefusalLog:
    """The last refusals, one entry per (peer, rule), least recently seen evicted first."""

    __slots__ = ("_entries", "_interval_ns", "_limit", "_line_mono_ns")

    def __init__(self, limit: int = REFUSALS_MAX, interval_ns: int = LOG_INTERVAL_NS) -> None:
        self._limit = limit
        self._interval_ns = interval_ns
        self._entries: OrderedDict[tuple[str, str], Refusal] = OrderedDict()
        self._line_mono_ns: int | None = None

    def note(self, peer: str, rule: str, reason: str, now: Instant) -> bool:
        """Record one refusal; True if the log should get a line of it now.

        An entry that was evicted and returns may log again, so while the table is full a new entry
        logs only if no line was written in the last interval: a flood of invented senders gets one
        line a minute.
        """
        key = (peer, rule)
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
            entry.count += 1
            entry.last_wall_ns = now.wall_ns
            entry.reason = reason
            due = now.mono_ns - entry.logged_mono_ns >= self._interval_ns
        else:
            full = len(self._entries) >= self._limit
            if full:
                self._entries.popitem(last=False)
            quiet = (
                self._line_mono_ns is None or now.mono_ns - self._line_mono_ns >= self._interval_ns
            )
            due = quiet or not full
            entry = Refusal(peer, rule, reason, now.wall_ns, 1, now.mono_ns)
            self._entries[key] = entry
        if due:
            entry.logged_mono_ns = now.mono_ns
            self._line_mono_ns = now.mono_ns
        return due

    def __len__(self) -> int:
        return len(self._entries)

    def recent(self) -> list[Refusal]:
        """Return the entries, most recent first."""
        return list(reversed(self._entries.values()))

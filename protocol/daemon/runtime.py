"""Runs one engine: an event and the time go in, the effects are performed in order.

Answers to effects (an SA batch applied, a key fetched) are events that wait until the effect list
that caused them was performed to its end. The path from a datagram to its effects holds nothing but
one clock reading, the engine, and one dictionary look-up for each effect.
"""

from __future__ import annotations

import traceback
from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any

from protocol.core.engine import Effect, Engine, Event, FromNetwork, TimerExpired
from protocol.daemon.clock import Clock
from protocol.daemon.effects import Performer
from protocol.daemon.logfile import LogFile
from protocol.daemon.trace import TraceWriter


class Runtime:
    """Feeds one engine and performs what it returns.

    Attributes:
        counters: events dropped, by reason.
        recording: whether every event goes to the trace, for replay.
    """

    def __init__(
        self,
        engine: Engine,
        clock: Clock,
        trace: TraceWriter,
        log: LogFile,
        *,
        recording: bool = False,
    ) -> None:
        self.counters: Counter[str] = Counter()
        self.recording = recording
        self._engine = engine
        self._now = clock.now
        self._trace = trace
        self._log = log
        self._performers: dict[type[Effect], Performer] = {}
        self._queue: deque[Event] = deque()
        self._busy = False
        self._clock_limit_ns = 0
        self._on_clock_set: Callable[[int], None] = lambda _step_ns: None
        self.note_clock()

    def watch_clock(self, limit_ns: int, on_set: Callable[[int], None]) -> None:
        """Tell when the wall clock was set by more than a limit since `note_clock`, in ns."""
        self._clock_limit_ns, self._on_clock_set = limit_ns, on_set

    def note_clock(self) -> None:
        """Take the wall clock as it is now for right."""
        now = self._now()
        self._skew_ns = now.wall_ns - now.mono_ns

    def perform_with(self, table: Mapping[type[Effect], Callable[[Any], None]]) -> None:
        """Add the functions that perform effects."""
        self._performers.update(table)

    def on_timer(self, name: str) -> None:
        """Hand in the expiry of a timer."""
        self.deliver(TimerExpired(name))

    def deliver(self, event: Event) -> None:
        """Hand an event to the engine and perform its effects, then those of their answers."""
        self._queue.append(event)
        if self._busy:
            return
        self._busy = True
        try:
            while self._queue:
                self._step(self._queue.popleft())
        finally:
            self._busy = False
            self._queue.clear()

    def _step(self, event: Event) -> None:
        now = self._now()
        step_ns = now.wall_ns - now.mono_ns - self._skew_ns
        if self._clock_limit_ns and abs(step_ns) > self._clock_limit_ns:
            self._skew_ns += step_ns
            self._on_clock_set(step_ns)
        if self.recording:
            # With the very time that the engine gets: a replay needs that.
            self._trace.report("event", recorded(event), now)
        try:
            effects = self._engine.handle(event, now)
        except Exception:
            # A fault of our own. What others sent must not be able to end the daemon; anything else
            # ends it in order, with the traceback in the log (which never shows local values).
            self._log.write("error", f"internal error: {traceback.format_exc(limit=-6)}")
            self.counters["daemon.internal_error"] += 1
            if not isinstance(event, FromNetwork):
                raise
            return
        performers = self._performers
        for effect in effects:
            performers[effect.__class__](effect)


def recorded(event: Event) -> dict[str, Any]:
    """Return an event as JSON values: a datagram in full, keys never."""
    values: dict[str, Any] = {"type": type(event).__name__}
    for item in fields(event):
        value = getattr(event, item.name)
        if isinstance(event, FromNetwork) and isinstance(value, bytes):
            values[item.name] = value.hex()
        elif isinstance(value, str | int | float | bool | None):
            values[item.name] = value
        elif item.repr and not isinstance(value, bytes):
            values[item.name] = str(value)
    return values

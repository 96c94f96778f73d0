"""How idle the processors are while something is measured; a starved machine measures itself."""

from __future__ import annotations

import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from testbed.errors import naming_the_gone

INTERVAL_S: Final = 0.5
_STAT: Final = Path("/proc/stat")
_IDLE: Final = 3
_IOWAIT: Final = 4
_COUNTED: Final = 8
"""user nice system idle iowait irq softirq steal; guest time is part of user (proc_stat(5))."""


@dataclass(frozen=True, slots=True)
class IdleReport:
    """Idle share of the processors.

    Attributes:
        series: (UTC ns at the end of the interval, idle percent over all processors).
        minimum_percent: the worst interval; the mean if there was none.
        mean_percent: over the whole time.
        interval_s: nominal length of an interval.
    """

    series: tuple[tuple[int, float], ...]
    minimum_percent: float
    mean_percent: float
    interval_s: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return asdict(self)


class IdleSampler:
    """Samples ``/proc/stat`` from a thread of its own until closed."""

    def __init__(self, interval_s: float = INTERVAL_S, stat: Path = _STAT) -> None:
        self._interval_s = interval_s
        self._stat = stat
        self._series: list[tuple[int, float]] = []
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._last = self._boundary = read_counters(stat)
        self._thread = threading.Thread(target=self._run, name="idle-sampler", daemon=True)
        self._thread.start()

    def report(self) -> IdleReport:
        """Return what was seen since the last call."""
        with self._lock:
            now = read_counters(self._stat)
            mean = idle_percent(self._boundary, now)
            series, self._series = tuple(self._series), []
            self._boundary = now
        minimum = min((percent for _, percent in series), default=mean)
        return IdleReport(series, minimum, mean, self._interval_s)

    def close(self) -> None:
        """End the thread; idempotent."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            with self._lock:
                now = read_counters(self._stat)
                self._series.append((time.time_ns(), idle_percent(self._last, now)))
                self._last = now


def read_counters(stat: Path = _STAT) -> tuple[int, int]:
    """Return (idle, total) processor time so far, in ticks over all processors."""
    with stat.open(encoding="ascii") as stream:
        ticks = [int(word) for word in stream.readline().split()[1 : 1 + _COUNTED]]
    return ticks[_IDLE] + ticks[_IOWAIT], sum(ticks)


def idle_percent(before: tuple[int, int], after: tuple[int, int]) -> float:
    """Return the idle share between two readings; 100 when no tick has passed."""
    total = after[1] - before[1]
    return 100.0 if total <= 0 else round(100.0 * (after[0] - before[0]) / total, 1)


def processor_ns(pid: int) -> int:
    """Return the processor time of a process so far (Linux ``/proc/PID/schedstat``), in ns.

    Raises:
        ProcessGoneError: it has ended.
    """
    with naming_the_gone(f"process {pid}", "its processor time cannot be read"):
        return int(Path(f"/proc/{pid}/schedstat").read_text(encoding="ascii").split()[0])

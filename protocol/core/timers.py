"""Named deadlines: what a runner of engines needs to perform `SetTimer` and `CancelTimer`.

Pure: it knows deadlines, not the time. The daemon's runtime and the simulator share it, so both
fire timers in the same order: by deadline, then in the order in which they were set.
"""

from __future__ import annotations

import heapq


class TimerTable:
    """Deadlines by name; setting a name again replaces its deadline."""

    __slots__ = ("_current", "_heap", "_serial")

    def __init__(self) -> None:
        self._current: dict[str, tuple[int, int, str]] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._serial = 0

    def __len__(self) -> int:
        return len(self._current)

    def __contains__(self, name: str) -> bool:
        return name in self._current

    def set(self, name: str, at_mono_ns: int) -> None:
        """(Re)start a timer."""
        self._serial += 1
        entry = (at_mono_ns, self._serial, name)
        self._current[name] = entry
        heapq.heappush(self._heap, entry)
        self._compact()

    def cancel(self, name: str) -> None:
        """Stop a timer; no error if it is not running."""
        self._current.pop(name, None)
        self._compact()

    def clear(self) -> None:
        """Stop all."""
        self._current.clear()
        self._heap.clear()

    def deadline(self, name: str) -> int | None:
        """Return when this timer fires, or None if it is not running."""
        entry = self._current.get(name)
        return None if entry is None else entry[0]

    def next_deadline(self) -> int | None:
        """Return the earliest deadline, or None."""
        self._drop_stale()
        return self._heap[0][0] if self._heap else None

    def pop_expired(self, now_mono_ns: int) -> str | None:
        """Remove and return the first timer that is due, or None.

        One at a time, because handling one may cancel or restart the next.
        """
        self._drop_stale()
        if not self._heap or self._heap[0][0] > now_mono_ns:
            return None
        name = heapq.heappop(self._heap)[2]
        del self._current[name]
        return name

    def _drop_stale(self) -> None:
        """Remove replaced and cancelled entries from the top."""
        heap, current = self._heap, self._current
        while heap and current.get(heap[0][2]) is not heap[0]:
            heapq.heappop(heap)

    def _compact(self) -> None:
        """Keep memory within twice the number of running timers, however often they restart."""
        if len(self._heap) > 2 * len(self._current) + 16:
            self._heap = list(self._current.values())
            heapq.heapify(self._heap)

"""The daemon's log: plain lines with UTC time, rate limited, written when idle.

Two limits keep a flood of bad datagrams from filling the disk: the same text is written once a
minute with the number of its repetitions, and all lines together pass a token bucket. What was
suppressed is said in the log itself. The standard library's logging is not used: importing it
costs as much as a third of the daemon's start, and it writes where it stands.
"""

from __future__ import annotations

from pathlib import Path
from time import gmtime, strftime

from protocol.daemon.appendfile import AppendFile
from protocol.daemon.clock import Clock

REPEAT_INTERVAL_NS = 60_000_000_000
LINES_PER_SECOND = 20
LINES_BURST = 200
TEXTS_MAX = 256
"""Distinct texts whose repetitions are counted; beyond that the oldest is forgotten."""

LEVELS = ("debug", "info", "warning", "error")


class LogFile:
    """The log of one daemon.

    Attributes:
        suppressed_total: lines not written because of the rate limits.
    """

    def __init__(self, path: Path, clock: Clock, *, level: str = "info") -> None:
        self.suppressed_total = 0
        self._file = AppendFile(path)
        self._clock = clock
        self._level = LEVELS.index(level)
        self._pending = False
        self._repeats: dict[tuple[str, str], tuple[int, int]] = {}
        self._tokens_ns = LINES_BURST * 1_000_000_000
        self._refilled_mono_ns = clock.now().mono_ns
        self._suppressed_since_note = 0

    @property
    def pending(self) -> bool:
        """Whether `flush` has something to do."""
        return self._pending

    @property
    def lost_total(self) -> int:
        """Lines that never reached the file because the disk refused."""
        return self._file.lost_total

    def write(self, level: str, text: str) -> None:
        """Queue one line; a text with line breaks becomes one line."""
        if LEVELS.index(level) < self._level:
            return
        mono_ns, wall_ns = self._clock.now()
        repeats = 0
        if level != "error":
            known = self._repeats.get((level, text))
            if known is not None and mono_ns - known[0] < REPEAT_INTERVAL_NS:
                self._repeats[(level, text)] = (known[0], known[1] + 1)
                self.suppressed_total += 1
                return
            repeats = known[1] if known is not None else 0
        if not self._take_token(mono_ns):
            self.suppressed_total += 1
            self._suppressed_since_note += 1
            return
        if level != "error":
            self._remember(level, text, mono_ns)
        if self._suppressed_since_note:
            count, self._suppressed_since_note = self._suppressed_since_note, 0
            self._put(wall_ns, "warning", f"{count} lines were suppressed: too many at once")
        self._put(wall_ns, level, f"{text} (and {repeats} times before)" if repeats else text)

    def _remember(self, level: str, text: str, mono_ns: int) -> None:
        self._repeats.pop((level, text), None)
        if len(self._repeats) >= TEXTS_MAX:
            del self._repeats[next(iter(self._repeats))]
        self._repeats[(level, text)] = (mono_ns, 0)

    def _take_token(self, mono_ns: int) -> bool:
        gained_ns = (mono_ns - self._refilled_mono_ns) * LINES_PER_SECOND
        self._refilled_mono_ns = mono_ns
        self._tokens_ns = min(self._tokens_ns + gained_ns, LINES_BURST * 1_000_000_000)
        if self._tokens_ns < 1_000_000_000:
            return False
        self._tokens_ns -= 1_000_000_000
        return True

    def _put(self, wall_ns: int, level: str, text: str) -> None:
        seconds, rest_ns = divmod(wall_ns, 1_000_000_000)
        stamp = strftime("%Y-%m-%dT%H:%M:%S", gmtime(seconds))
        line = " ".join(text.splitlines())
        self._file.put(f"{stamp}.{rest_ns // 1000:06d}Z {level} {line}")
        self._pending = True

    def flush(self) -> bool:
        """Write what is queued; return whether all of it reached the file."""
        done = self._file.flush()
        lost = self._file.take_lost()
        if lost:
            self._put(self._clock.now().wall_ns, "error", f"{lost} lines were lost: disk refused")
            done = self._file.flush()
        self._pending = not done
        return done

    def close(self) -> None:
        """Flush and close; idempotent."""
        self.flush()
        self._file.close()

"""Progress of a run for people: a bar on a terminal, a line now and then elsewhere.

Inside the virtual machine standard error is no terminal, but what is written there is shown on one:
``TESTBED_TTY=1`` and ``COLUMNS`` (set by the VM layer) say so.
"""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType
from typing import Any, Final, Self, TextIO

LINE_INTERVAL_S: Final = 15.0
"""Without a terminal: at most one line in so long, besides the first and the last."""

_COLUMNS_DEFAULT: Final = 100


class Progress:
    """Counts steps; shows what is done now, how much, and the time left.

    Args:
        total: steps in all.
        label: what is being run.
        stream: where to, standard error by default.
    """

    def __init__(self, total: int, label: str, stream: TextIO | None = None) -> None:
        self._total = total
        self._label = label
        self._stream = stream or sys.stderr
        self._stage = ""
        self._done = 0
        self._began = time.monotonic()
        self._last_line = float("-inf")
        self._bar: Any = None

    def __enter__(self) -> Self:
        """Start showing."""
        self._began = time.monotonic()
        if is_terminal(self._stream):
            from tqdm import tqdm

            tqdm.monitor_interval = 0  # no thread: the run forks
            self._bar = tqdm(
                total=self._total,
                desc=self._label,
                file=self._stream,
                ncols=_columns(self._stream),
                unit="step",
                mininterval=0.2,
            )
        else:
            self._line()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()
            self._bar = None
        elif kind is None:
            self._line()

    def stage(self, text: str) -> None:
        """Say what is being done now, e.g. ``repetition 3/10``; does not count."""
        self._stage = text
        if self._bar is not None:
            self._bar.set_description_str(f"{self._label}: {text}")
        else:
            self._line(seldom=True)

    def step(self, text: str = "", count: int = 1) -> None:
        """Count steps as done."""
        self._done += count
        if self._bar is not None:
            if text:
                self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(count)
        else:
            self._line(seldom=True)

    def note(self, text: str) -> None:
        """Print a line without disturbing the bar."""
        if self._bar is not None:
            self._bar.write(text, file=self._stream)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _line(self, *, seldom: bool = False) -> None:
        now = time.monotonic()
        if seldom and now - self._last_line < LINE_INTERVAL_S:
            return
        self._last_line = now
        spent = now - self._began
        parts = [f"{self._label}: {self._done}/{self._total}"]
        if self._stage:
            parts.append(self._stage)
        parts.append(f"{duration(spent)} spent")
        if 0 < self._done < self._total:
            parts.append(f"about {duration(spent / self._done * (self._total - self._done))} left")
        self._stream.write(", ".join(parts) + "\n")
        self._stream.flush()


def is_terminal(stream: TextIO) -> bool:
    """Return whether what we write is seen on a terminal."""
    return os.environ.get("TESTBED_TTY") == "1" or stream.isatty()


def duration(seconds: float) -> str:
    """Return a duration for people: ``42 s``, ``3 min 05 s``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60:02d} s"


def _columns(stream: TextIO) -> int | None:
    """Return the width of the terminal; None lets tqdm find and follow it."""
    if stream.isatty():
        return None
    text = os.environ.get("COLUMNS", "")
    return int(text) if text.isdigit() and int(text) > 20 else _COLUMNS_DEFAULT

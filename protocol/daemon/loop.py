"""One thread, one `select`: readers, writers, named timers and idle work.

Not asyncio: see docs/decisions/0003-daemon-loop.md (import time, wake-up latency, timer resolution,
measured). ``select`` takes its time-out in microseconds where ``epoll`` rounds up to milliseconds,
and a daemon has fewer than twenty descriptors.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable

from protocol.core.errors import LocalError
from protocol.core.timers import TimerTable

FD_MAX = 1024
"""FD_SETSIZE of the C library; ``select`` cannot watch a larger descriptor."""

QUIET_NS = 250_000_000
"""Idle work (writing the trace) waits for this long a silence: a join is over in less."""

IDLE_DELAY_NS_MAX = 5_000_000_000
"""... but not longer than this, when peers' hellos never leave a silence."""


class Loop:
    """The event loop of a daemon.

    Attributes:
        idle_wanted: tells whether idle work is waiting.
        on_idle: does the idle work.
        timers: the deadlines of the named timers.
    """

    def __init__(self) -> None:
        self.idle_wanted: Callable[[], bool] = lambda: False
        self.on_idle: Callable[[], None] = lambda: None
        self.timers = TimerTable()
        self._readers: dict[int, Callable[[], None]] = {}
        self._writers: dict[int, Callable[[], None]] = {}
        self._reader_fds: list[int] = []
        self._writer_fds: list[int] = []
        self._callbacks: dict[str, Callable[[str], None]] = {}
        self._running = False
        self._wanted_since_ns = 0

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever ``fd`` is readable; readers added first are served first."""
        self._check(fd)
        self._readers[fd] = callback
        self._reader_fds = list(self._readers)

    def remove_reader(self, fd: int) -> None:
        """Stop watching ``fd``; no error if it was not watched."""
        self._readers.pop(fd, None)
        self._reader_fds = list(self._readers)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        """Call back whenever ``fd`` is writable."""
        self._check(fd)
        self._writers[fd] = callback
        self._writer_fds = list(self._writers)

    def remove_writer(self, fd: int) -> None:
        """Stop watching ``fd`` for writing; no error if it was not watched."""
        self._writers.pop(fd, None)
        self._writer_fds = list(self._writers)

    @staticmethod
    def _check(fd: int) -> None:
        if not 0 <= fd < FD_MAX:
            raise LocalError(f"descriptor {fd} is out of range: too many files are open")

    def set_timer(self, name: str, at_mono_ns: int, callback: Callable[[str], None]) -> None:
        """(Re)start the named timer; it fires once, at or after ``at_mono_ns``."""
        self.timers.set(name, at_mono_ns)
        self._callbacks[name] = callback

    def cancel_timer(self, name: str) -> None:
        """Stop the named timer; no error if it is not running."""
        self.timers.cancel(name)
        self._callbacks.pop(name, None)

    def fire_due(self, now_mono_ns: int) -> int:
        """Fire what is due, in order of time then of setting; return how many fired.

        No more than were running at the beginning, so that an engine which sets a timer into the
        past again and again cannot starve its own sockets.
        """
        limit = len(self.timers)
        fired = 0
        while fired < limit and (name := self.timers.pop_expired(now_mono_ns)) is not None:
            fired += 1
            self._callbacks.pop(name)(name)
        return fired

    def stop(self) -> None:
        """Make `run` return after the callback that is running."""
        self._running = False

    def run(self) -> None:
        """Serve until `stop`."""
        self._running = True
        last_activity_ns = time.monotonic_ns()
        while self._running:
            now_ns = time.monotonic_ns()
            timer_ns = self.timers.next_deadline()
            idle_ns = self._idle_at_ns(now_ns, last_activity_ns) if self.idle_wanted() else None
            wake_ns = timer_ns if idle_ns is None else min(idle_ns, timer_ns or idle_ns)
            timeout_s = None if wake_ns is None else max(wake_ns - now_ns, 0) / 1e9
            readable, writable, _ = select.select(self._reader_fds, self._writer_fds, (), timeout_s)
            for fd in readable:
                callback = self._readers.get(fd)
                if callback is not None:
                    callback()
            for fd in writable:
                callback = self._writers.get(fd)
                if callback is not None:
                    callback()
            now_ns = time.monotonic_ns()
            fired = self.fire_due(now_ns) if timer_ns is not None else 0
            if fired or readable or writable:
                last_activity_ns = now_ns
            if idle_ns is not None and now_ns >= self._idle_at_ns(now_ns, last_activity_ns):
                self._wanted_since_ns = 0
                self.on_idle()
                # What is left now (a disk refused) is tried again later, not at once and for ever.
                last_activity_ns = time.monotonic_ns()

    def _idle_at_ns(self, now_ns: int, last_activity_ns: int) -> int:
        if self._wanted_since_ns == 0:
            self._wanted_since_ns = now_ns
        return min(last_activity_ns + QUIET_NS, self._wanted_since_ns + IDLE_DELAY_NS_MAX)


class Signals:
    """SIGTERM and SIGINT as a readable descriptor; the second one exits at once."""

    def __init__(self, loop: Loop, on_signal: Callable[[], None]) -> None:
        self._on_signal = on_signal
        self._seen = False
        self._read_fd, self._write_fd = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(self._write_fd, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        loop.add_reader(self._read_fd, self._readable)

    def close(self) -> None:
        """Give the signals back their default meaning."""
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_DFL)
        os.close(self._read_fd)
        os.close(self._write_fd)

    def _handle(self, number: int, _frame: object) -> None:
        if self._seen:
            os._exit(128 + number)
        self._seen = True

    def _readable(self) -> None:
        """Drain the pipe; act only on a signal that has a meaning here."""
        try:
            os.read(self._read_fd, 64)
        except BlockingIOError:
            return
        if self._seen:
            self._on_signal()


def watch_parent(loop: Loop, on_exit: Callable[[], None]) -> None:
    """Call back when the process that started this one has ended.

    A process descriptor in the loop rather than PR_SET_PDEATHSIG: it needs no ctypes, it is about
    the process and not the thread that forked, and the daemon stops in order.
    """
    fd = os.pidfd_open(os.getppid())

    def ended() -> None:
        loop.remove_reader(fd)
        os.close(fd)
        on_exit()

    loop.add_reader(fd, ended)

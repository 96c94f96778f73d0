"""A file that only grows, and that the protocol never waits for.

Trace and log share it. Text is held in memory until `flush`; when the disk refuses (full, quota,
read-only), lines are kept up to a bound and then dropped and counted, and the first line written
after that says how many are missing. A half-written line is completed before anything else. The
file is locked, which also keeps a second daemon off the same device.
"""

from __future__ import annotations

import fcntl
import os
import stat
from pathlib import Path

from protocol.core.errors import LocalError

BUFFER_BYTES_MAX = 4 * 1024 * 1024
"""What a refusing disk may cost in memory: about 20,000 trace lines."""


class AppendFile:
    """Append-only text with a bounded buffer.

    Attributes:
        lost_total: lines dropped because the disk refused for too long.
        error: why the last write failed, or an empty string.
    """

    def __init__(self, path: Path, buffer_bytes_max: int = BUFFER_BYTES_MAX) -> None:
        self.path = path
        self.lost_total = 0
        self.error = ""
        self._buffer = bytearray()
        self._buffer_bytes_max = buffer_bytes_max
        self._lost_since_note = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            self._fd = os.open(path, flags, 0o640)
        except OSError as error:
            raise LocalError(f"{path}: cannot write: {error.strerror}") from error
        if not stat.S_ISREG(os.fstat(self._fd).st_mode):
            os.close(self._fd)
            raise LocalError(f"{path}: not a regular file")
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise LocalError(f"{path}: another daemon is running here (stop it first)") from error

    def put(self, line: str) -> None:
        """Queue one line (without its newline); drop and count it when the buffer is full."""
        data = line.encode("utf-8", "backslashreplace")
        if len(self._buffer) + len(data) + 1 > self._buffer_bytes_max:
            self.lost_total += 1
            self._lost_since_note += 1
            return
        self._buffer += data
        self._buffer += b"\n"

    def take_lost(self) -> int:
        """Return how many lines were dropped since the last call, once there is room again.

        The caller writes its own note about them, in its own format.
        """
        if self._buffer:
            return 0
        lost, self._lost_since_note = self._lost_since_note, 0
        return lost

    def flush(self) -> bool:
        """Write what is queued; return whether all of it is out. Never raises."""
        while self._buffer:
            try:
                written = os.write(self._fd, self._buffer)
            except OSError as error:
                self.error = error.strerror or str(error)
                return False
            del self._buffer[:written]
        self.error = ""
        return True

    def close(self) -> None:
        """Write what is queued and close; idempotent."""
        if self._fd >= 0:
            self.flush()
            os.close(self._fd)
            self._fd = -1

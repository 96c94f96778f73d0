"""The trace: JSON Lines of measurement points, stamped when performed, written when idle.

Stamping costs two clock readings and a list append; formatting and the file wait for an idle moment
(`TraceWriter.flush`), so that measuring does not disturb what is measured.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol.core.engine import Instant
from protocol.daemon.appendfile import BUFFER_BYTES_MAX, AppendFile
from protocol.daemon.clock import Clock

PENDING_LINES_MAX = 20_000
"""Stamped lines held until the next idle moment; a busy minute makes a few hundred."""


class TraceWriter:
    """Collects and writes the trace of one daemon."""

    def __init__(
        self,
        path: Path,
        device: str,
        daemon: str,
        clock: Clock,
        *,
        pending_lines_max: int = PENDING_LINES_MAX,
        buffer_bytes_max: int = BUFFER_BYTES_MAX,
    ) -> None:
        self._file = AppendFile(path, buffer_bytes_max)
        self._device = device
        self._daemon = daemon
        self._clock = clock
        self._pending: list[tuple[int, int, str, Mapping[str, Any]]] = []
        self._pending_lines_max = pending_lines_max
        self._overflow_total = 0
        self._overflow_since_note = 0

    @property
    def pending(self) -> bool:
        """Whether `flush` has something to do."""
        return bool(self._pending)

    @property
    def lost_total(self) -> int:
        """Lines that never reached the file: memory bound, or a disk that refused."""
        return self._overflow_total + self._file.lost_total

    @property
    def error(self) -> str:
        """Why the file cannot be written at the moment, or an empty string."""
        return self._file.error

    def report(self, point: str, fields: Mapping[str, Any], at: Instant | None = None) -> None:
        """Stamp a point with both clocks: as given, or now."""
        if len(self._pending) >= self._pending_lines_max:
            self._overflow_total += 1
            self._overflow_since_note += 1
            return
        mono_ns, wall_ns = at or self._clock.now()
        self._pending.append((wall_ns, mono_ns, point, fields))

    def flush(self) -> bool:
        """Format and write what is pending; return whether all of it reached the file."""
        pending, self._pending = self._pending, []
        self._file.flush()
        lost = self._file.take_lost() + self._overflow_since_note
        if lost:
            self._overflow_since_note = 0
            mono_ns, wall_ns = self._clock.now()
            self._put(wall_ns, mono_ns, "trace.lost", {"lines": lost})
        for line in pending:
            self._put(*line)
        return self._file.flush()

    def _put(self, wall_ns: int, mono_ns: int, point: str, fields: Mapping[str, Any]) -> None:
        record = {
            "wall_ns": wall_ns,
            "mono_ns": mono_ns,
            "device": self._device,
            "daemon": self._daemon,
            "point": point,
            **fields,
        }
        self._file.put(json.dumps(record, separators=(",", ":"), default=_plain))

    def close(self) -> None:
        """Flush and close; idempotent."""
        self.flush()
        self._file.close()


def _plain(value: object) -> str:
    """Return what JSON cannot say, as text; never the content of bytes, which may be a key."""
    if isinstance(value, bytes | bytearray | memoryview):
        return f"<{len(value)} bytes>"
    return str(value)

"""Reads the daemons' traces while they are being written: only new, complete lines are parsed."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_CHUNK_BYTES: Final = 1 << 20
_HEAD: Final = ("wall_ns", "mono_ns", "device", "daemon", "point")


@dataclass(frozen=True, slots=True)
class Event:
    """One line of a daemon's trace.

    Attributes:
        wall_ns: UTC of the device's own clock.
        mono_ns: monotonic time of the machine.
        device: name of the device.
        daemon: ``idpd`` or ``miked``.
        point: ``t_hello``, ``t_written``, ... or a dotted event name.
        fields: everything else on the line.
    """

    wall_ns: int
    mono_ns: int
    device: str
    daemon: str
    point: str
    fields: Mapping[str, Any]


class TraceReader:
    """Follows one trace file.

    Attributes:
        damaged_total: lines that were no event.
    """

    def __init__(self, path: Path) -> None:
        self.damaged_total = 0
        self._path = path
        self._descriptor = -1
        self._rest = b""

    def read(self) -> list[Event]:
        """Return the events of the lines completed since the last call."""
        if self._descriptor < 0:
            try:
                self._descriptor = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                return []
        events: list[Event] = []
        while data := os.read(self._descriptor, _CHUNK_BYTES):
            *lines, self._rest = (self._rest + data).split(b"\n")
            for line in lines:
                event = parse(line)
                if event is None:
                    self.damaged_total += 1
                else:
                    events.append(event)
        return events

    def close(self) -> None:
        """Close the file; idempotent."""
        if self._descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(self._descriptor)
            self._descriptor = -1


def parse(line: bytes) -> Event | None:
    """Return a trace line as an event, None if it is none."""
    try:
        values = json.loads(line)
        wall_ns, mono_ns, device, daemon, point = (values.pop(name) for name in _HEAD)
        return Event(int(wall_ns), int(mono_ns), str(device), str(daemon), str(point), values)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None

"""Records the black wire: one tcpdump per black link, an owned process of the run.

A capture that is not whole is no evidence. tcpdump is therefore asked what it got and what the
kernel dropped before it could, and one that ended early is an error. A link may go down meanwhile.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from testbed.errors import DeadlineError, TestbedError
from testbed.network import Network
from testbed.processes import ProcessTable, last_line
from testbed.wait import wait_until

_START_DEADLINE_S: Final = 20.0
_STOP_GRACE_S: Final = 20.0
_PCAP_HEADER_BYTES: Final = 24
_BUFFER_KIB: Final = 4096
_COUNTS: Final = 3
_DRAIN_DEADLINE_S: Final = 5.0
_COUNT: Final = re.compile(r"(\d+) packets? (captured|received by filter|dropped by kernel)")


@dataclass(frozen=True, slots=True)
class CapturePoint:
    """Where one link is recorded.

    Attributes:
        link: name of the link, also of the file.
        interface: an interface that sees both directions.
        node_pid: process in whose namespaces it is; None: the run's own.
    """

    link: str
    interface: str
    node_pid: int | None = None


@dataclass(frozen=True, slots=True)
class CapturedLink:
    """What was recorded of one link.

    Attributes:
        link: name of the link.
        path: pcap file.
        packets: in the file.
        dropped: packets up to the end of the recording that the file lacks.
    """

    link: str
    path: Path
    packets: int
    dropped: int

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return asdict(self) | {"path": self.path.name}


def black_points(network: Network) -> list[CapturePoint]:
    """Return a point on every black link of a built network."""
    return [
        CapturePoint(end.link, end.interface, None if end.node is None else network.pid(end.node))
        for end in network.black_links
    ]


class Capture:
    """A recording of several links.

    Args:
        points: where.
        run_id: of the run that owns the processes.
        folder: existing directory for the files.
    """

    def __init__(self, points: Iterable[CapturePoint], run_id: str, folder: Path) -> None:
        self._points = tuple(points)
        self._processes = ProcessTable(run_id)
        self._folder = folder

    def start(self) -> None:
        """Return when all links are being recorded.

        Raises:
            TestbedError: tcpdump is missing or one of them does not start.
        """
        program = shutil.which("tcpdump")
        if program is None:
            raise TestbedError("tcpdump is not installed; run 'make setup', or run without capture")
        # -Z root: else tcpdump gives up its rights and cannot write here; -U: whole packets at
        # once; -p: the interface stays as it is.
        command = [program, "-Z", "root", "-U", "-p", "-n", "-B", str(_BUFFER_KIB)]
        for point in self._points:
            file = self._file(point)
            file.unlink(missing_ok=True)
            self._output(point).unlink(missing_ok=True)
            self._processes.start(
                point.link,
                [*command, "-i", point.interface, "-w", str(file)],
                output=self._output(point),
                node_pid=point.node_pid,
            )
        try:
            wait_until(
                lambda: not self._missing(),
                _START_DEADLINE_S,
                lambda: f"tcpdump has not begun to record on {', '.join(self._missing())}",
            )
        except BaseException:
            self.abandon()
            raise

    def stop(self) -> tuple[CapturedLink, ...]:
        """End the recording; the files are complete then.

        Raises:
            TestbedError: a tcpdump ended before, or does not say what it got.
        """
        self._processes.check()
        # The kernel hands packets over in blocks, and tcpdump would leave the last one unread. On a
        # link that is always busy it may never catch up; what it lacks is counted as dropped then.
        drained: set[str] = set()
        with contextlib.suppress(DeadlineError):
            wait_until(lambda: self._all_drained(drained), _DRAIN_DEADLINE_S, "tcpdump lags")
        killed = self._processes.stop(grace_s=_STOP_GRACE_S)
        if killed:
            raise TestbedError(f"tcpdump on {', '.join(killed)} did not end: its file is torn")
        return tuple(self._result(point, point.link in drained) for point in self._points)

    def abandon(self) -> None:
        """End the recording if it still goes on, whatever becomes of the files; idempotent."""
        self._processes.stop(grace_s=0)

    def check(self) -> None:
        """Raise `DaemonDiedError` if a tcpdump has ended."""
        self._processes.check()

    def _missing(self) -> Sequence[str]:
        self._processes.check()
        return [
            point.link
            for point in self._points
            if not self._file(point).exists()
            or self._file(point).stat().st_size < _PCAP_HEADER_BYTES
        ]

    def _all_drained(self, drained: set[str]) -> bool:
        """Ask every tcpdump how far it is; note those that have read all since we first asked."""
        for point in self._points:
            counts = self._counts(point)
            if counts and _missed(counts) == counts["dropped by kernel"]:
                drained.add(point.link)
            elif point.link not in drained:
                self._processes[point.link].signal(signal.SIGUSR1)
        return len(drained) == len(self._points)

    def _counts(self, point: CapturePoint) -> dict[str, int]:
        """Return the last of each count that tcpdump has told, nothing if it has not told all."""
        text = self._output(point).read_text(encoding="utf-8", errors="replace")
        counts = {what: int(count) for count, what in _COUNT.findall(text)}
        return counts if len(counts) == _COUNTS else {}

    def _result(self, point: CapturePoint, drained: bool) -> CapturedLink:
        counts = self._counts(point)
        if not counts:
            said = last_line(self._output(point))
            raise TestbedError(f"tcpdump on {point.link} does not say what it got: {said}")
        # What came after it had read all came after the end of the recording.
        dropped = counts["dropped by kernel"] if drained else _missed(counts)
        return CapturedLink(point.link, self._file(point), counts["captured"], dropped)

    def _file(self, point: CapturePoint) -> Path:
        return self._folder / f"{point.link}.pcap"

    def _output(self, point: CapturePoint) -> Path:
        return self._folder / f"{point.link}.tcpdump.out"


def _missed(counts: dict[str, int]) -> int:
    """Return what reached the interface and not the file; "received" includes what was dropped."""
    return max(counts["received by filter"] - counts["captured"], counts["dropped by kernel"])

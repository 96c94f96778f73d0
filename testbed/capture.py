"""Records the black wire: one tcpdump per cable, an owned process of the run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from testbed.errors import TestbedError
from testbed.network import Network
from testbed.processes import ProcessTable
from testbed.wait import wait_until

_START_DEADLINE_S: Final = 20.0
_PCAP_HEADER_BYTES: Final = 24


def start_captures(network: Network, processes: ProcessTable, folder: Path) -> list[Path]:
    """Start a capture at the switch's end of every black cable; return when all are recording.

    Raises:
        TestbedError: tcpdump is missing or one of them does not start.
    """
    program = shutil.which("tcpdump")
    if program is None:
        raise TestbedError("tcpdump is not installed; run 'make setup', or run without capture")
    files = []
    for device in network.topology.devices:
        target = folder / f"{device.name}.pcap"
        processes.start(
            f"capture/{device.name}",
            # -Z root: else tcpdump gives up its rights and cannot write here; -U: whole packets.
            [program, "-Z", "root", "-U", "-n", "-i", network.port(device.name), "-w", str(target)],
            output=folder / f"{device.name}.tcpdump.out",
            must_live=False,
        )
        files.append(target)

    def recording() -> bool:
        return all(f.exists() and f.stat().st_size >= _PCAP_HEADER_BYTES for f in files)

    wait_until(recording, _START_DEADLINE_S, "tcpdump has not begun to record on every cable")
    return files

"""Room in the kernel's table of neighbours: one table for all network namespaces of a machine.

Linux keeps at most ``gc_thresh3`` IPv6 neighbours (1024) over all namespaces together. Where fifty
devices talk to each other there are 2450: the kernel then drops packets, multicast too, and says
nothing but "neighbor table overflow" in its own log.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

TABLE: Final = Path("/proc/sys/net/ipv6/neigh/default")

WANTED: Final = {"gc_thresh1": 8_192, "gc_thresh2": 32_768, "gc_thresh3": 65_536}
"""Enough for 200 devices that know each other; an entry takes memory only once it is there."""


def make_room(table: Path = TABLE) -> bool:
    """Raise the kernel's limits, never lower them; they stay until the machine is started anew.

    To be called in the machine's own network namespace: others do not have the setting.

    Returns:
        Whether there is room now. Without the right to raise them small networks work all the same.
    """
    try:
        for name, wanted in WANTED.items():
            path = table / name
            if int(path.read_text(encoding="ascii")) < wanted:
                path.write_text(f"{wanted}\n", encoding="ascii")
    except (OSError, ValueError):
        return False
    return True

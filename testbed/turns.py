"""Who runs first where many emulated devices share few processors.

On their own hardware the devices of a group compute side by side: what a bystander does at a join
delays neither the joiner nor the monitor. On two processors that emulate ten devices it does, and
the delay grows with the group although no protocol asks for it. So a measurement may give the
devices it measures the processors first: the daemons of all others run under SCHED_IDLE
(sched(7)), which any other process preempts at once. They do all of their work, only later; what is
reported of *them* (dispersal, SADs of all devices) includes that wait. Every manifest says which
arrangement was used.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from contextlib import suppress


def give_turns(pids: Mapping[str, Iterable[int]], first: Iterable[str] | None) -> None:
    """Let the processes of some devices run before those of all others.

    Args:
        pids: the processes of each device.
        first: the devices that go first; None: all are equal again.
    """
    ahead = set(pids) if first is None else set(first)
    for device, processes in pids.items():
        policy = os.SCHED_BATCH if device in ahead else os.SCHED_IDLE
        for pid in processes:
            with suppress(ProcessLookupError):  # its end is noticed where processes are watched
                os.sched_setscheduler(pid, policy, os.sched_param(0))

"""Who runs first where many emulated devices share few processors.

On their own hardware the devices of a group compute side by side: what a bystander does at a join
delays neither the joiner nor the monitor. On two processors that emulate ten devices it does, and
the delay grows with the group although no protocol asks for it. So a measurement may rank the
devices it measures: their daemons run under SCHED_RR, the first named before the second, and the
daemons of all others under SCHED_IDLE (sched(7)), which any other process preempts at once. They do
all of their work, only later; what is reported of *them* (dispersal, SADs of all devices) includes
that wait. Every manifest says which arrangement was used.

These others are dealt out to the processors by turns. A datagram to the group wakes all of them in
one instant, and the kernel, which looks for an idle processor for each as it is woken, often puts
nearly all of them in one queue while the other processor has nothing to do. A device that alone is
ranked sits where fewest others do. (Of several, each may compute beside another.)
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Final

from testbed.errors import TestbedError

LOWEST_RANK: Final = 10
"""SCHED_RR priority of the last of those who are ranked."""


def give_turns(pids: Mapping[str, Iterable[int]], ranked: Sequence[str] | None) -> None:
    """Let the processes of some devices run before those of all others, which get a seat each.

    Args:
        pids: the processes of each device.
        ranked: the devices that go first, in this order; None: all are equal again.

    Raises:
        TestbedError: the kernel does not let us.
    """
    processors = sorted(os.sched_getaffinity(0))
    seats = itertools.cycle(processors)
    first = ranked or ()
    for device in sorted(pids, key=lambda device: device in first):  # the others before them
        seat = set(processors)
        if ranked is None:
            policy, priority = os.SCHED_BATCH, 0
        elif device in ranked:
            behind = len(ranked) - 1 - ranked.index(device)
            policy, priority = os.SCHED_RR, LOWEST_RANK + behind
        else:
            policy, priority = os.SCHED_IDLE, 0
        if ranked is not None and (device not in ranked or len(ranked) == 1):
            seat = {next(seats)}
        for pid in pids[device]:
            try:
                # Its end is noticed where processes are watched.
                with suppress(ProcessLookupError):
                    os.sched_setscheduler(pid, policy, os.sched_param(priority))
                    os.sched_setaffinity(pid, seat)
            except PermissionError:
                raise TestbedError(
                    "the kernel refuses real-time scheduling here (no CAP_SYS_NICE, or a control "
                    'group without a real-time budget): run as root, or with cpu = "equal"'
                ) from None

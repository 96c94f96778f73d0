"""Whether a network fits into the memory that is free: asked before anything is built.

What a node takes was measured natively with six devices behind three border routers: private memory
and its share of what is common (Pss), with a margin of a tenth.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, assert_never

from testbed.errors import TestbedError
from testbed.spec import NodeKind, Topology
from testbed.wiring import RED, Wiring

NODE_KIB: Final = 2000
"""A node with its shell, namespace and interfaces: 650 measured, and a margin."""

ROUTER_KIB: Final = 19_000
"""zebra, ospf6d and pim6d."""

DAEMON_KIB: Final = 10_500
"""idpd, miked, mproxyd or gatewayd, forked by the nursery."""


def refuse_without_memory(topology: Topology, *, daemons: bool) -> None:
    """Refuse a network that plainly does not fit.

    Args:
        topology: what is to be built.
        daemons: whether its daemons will be started too.

    Raises:
        TestbedError: how much it needs, how much there is, and what to do.
    """
    needed = len(topology.nodes) * NODE_KIB + (_daemons_kib(topology) if daemons else 0)
    free = free_kib()
    if needed > free:
        raise TestbedError(
            f"{len(topology.nodes)} nodes{' and their daemons' if daemons else ''} need about "
            f"{needed >> 10} MiB and {free >> 10} MiB are free; choose a smaller network or a "
            "larger machine (the guest: python -m testbed.environment --memory MIB -- COMMAND)"
        )


def _daemons_kib(topology: Topology) -> int:
    wiring = Wiring(topology)
    total = 0
    for node in topology.nodes:
        match node.kind:
            case NodeKind.ROUTER:
                total += ROUTER_KIB
            case NodeKind.LAN_ROUTER:
                total += DAEMON_KIB
            case NodeKind.DEVICE:
                lan = any(port.interface == RED for port in wiring.ports[node.name])
                total += DAEMON_KIB * (3 if lan else 2)
            case NodeKind.GATEWAY:  # idpd and miked for each leg
                total += DAEMON_KIB * (1 + 2 * len(wiring.ports[node.name]))
            case NodeKind.SWITCH | NodeKind.CLIENT:
                pass
            case _:
                assert_never(node.kind)
    return total


def free_kib() -> int:
    """Return what new processes can have without swapping (proc(5), meminfo)."""
    lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    values = {name: value for name, _, value in (line.partition(":") for line in lines)}
    return int(values["MemAvailable"].split()[0])

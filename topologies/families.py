"""Topologies that are computed instead of written down: ``star(n)``."""

from __future__ import annotations

from ipaddress import IPv6Interface, IPv6Network
from typing import Final

from testbed.spec import NODES_MAX, Link, Node, NodeKind, SecureGroup, Topology, TopologyError

NATIONS: Final = (
    "alpha",
    "bravo",
    "charlie",
    "delta",
    "echo",
    "foxtrot",
    "golf",
    "hotel",
    "india",
    "juliett",
)
"""Names of nations, by the spelling alphabet; beyond ten, devices share them in turn."""

BLACK: Final = IPv6Network("2001:db8:b::/64")
BANDWIDTH_MBIT: Final = 100.0


def device(number: int) -> Node:
    """Return the device of that number (from 1): address, nation and red LAN follow from it."""
    return Node(
        name=f"d{number}",
        kind=NodeKind.DEVICE,
        nation=NATIONS[(number - 1) % len(NATIONS)],
        black=IPv6Interface((BLACK[number], BLACK.prefixlen)),
        red=IPv6Interface(f"fd00:{number:x}::1/64"),
    )


def star(devices: int) -> Topology:
    """Return IPsec devices on one black switch, each with its red LAN interface.

    Raises:
        TopologyError: fewer than one device, or more than a machine can hold.
    """
    if not 1 <= devices < NODES_MAX:
        raise TopologyError(f"star({devices}): from 1 to {NODES_MAX - 1} devices are possible")
    members = tuple(device(number) for number in range(1, devices + 1))
    switch = Node("s1", NodeKind.SWITCH)
    return Topology(
        name=f"star({devices})",
        title=f"{devices} IPsec devices on one black switch, no routers",
        nodes=(switch, *members),
        links=tuple(Link((member.name, switch.name), BANDWIDTH_MBIT) for member in members),
        group=SecureGroup(),
    )

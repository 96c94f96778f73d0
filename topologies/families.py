"""Topologies that are computed instead of written down: stars, lines and coalitions of any size."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from ipaddress import IPv4Interface, IPv6Interface, IPv6Network
from itertools import pairwise
from typing import Final

from testbed.spec import (
    NODES_MAX,
    Address,
    Link,
    Node,
    NodeKind,
    RendezvousPoint,
    SecureGroup,
    Side,
    Topology,
    TopologyError,
)
from testbed.speccheck import checked

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
"""Names of nations, by the spelling alphabet; beyond ten, devices of a star share them in turn."""

BLACK: Final = IPv6Network("2001:db8:b::/64")
"""The black switch that the devices of a star share."""

CORE: Final = IPv6Network("2001:db8:c::/64")
"""The black switch that the border routers of a coalition share."""

BANDWIDTH_MBIT: Final = 100.0


DEVICES_PER_ROUTER_MAX: Final = 16
"""Well below the 31 links between which a router forwards multicast."""

_CORE_ROUTERS_MIN: Final = 3
_CLIENTS_MAX: Final = 20
_PARTITIONS_MAX: Final = 10
_PARTITION_DEVICES_MAX: Final = 20


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
    return checked(
        Topology(
            name=f"star({devices})",
            title=f"{devices} IPsec devices on one black switch, no routers",
            nodes=(switch, *members),
            links=tuple(Link((member.name, switch.name), BANDWIDTH_MBIT) for member in members),
        )
    )


def line(routers: int) -> Topology:
    """Return a line of black routers with an IPsec device behind each.

    The rendezvous point is a router of its own beside the one in the middle: on a router with a
    device it would lose the first seconds of that device's multicast.

    Raises:
        TopologyError: fewer than one router, or more than a machine can hold.
    """
    most = (NODES_MAX - 1) // 2
    if not 1 <= routers <= most:
        raise TopologyError(f"line({routers}): from 1 to {most} routers are possible")
    numbers = range(1, routers + 1)
    middle = (routers + 1) // 2
    cables = [(number, number + 1) for number in numbers[:-1]] + [(middle, 0)]
    towards: dict[int, dict[str, tuple[Address, ...]]] = {number: {} for number in (0, *numbers)}
    for one, other in cables:
        prefix = f"2001:db8:a:{one:x}" if other else "2001:db8:a:0"
        towards[one][f"r{other}"] = (IPv6Interface(f"{prefix}::1/64"),)
        towards[other][f"r{one}"] = (IPv6Interface(f"{prefix}::2/64"),)
    members = [_border_device(number, NATIONS[(number - 1) % len(NATIONS)]) for number in numbers]
    for number in numbers:
        towards[number][f"d{number}"] = _router_address(number)
    return checked(
        Topology(
            name=f"line({routers})",
            title=f"{routers} IPsec devices, each behind a router of a line",
            nodes=(*(_router(number, towards[number]) for number in (0, *numbers)), *members),
            links=(
                *(Link((f"r{one}", f"r{other}"), BANDWIDTH_MBIT) for one, other in cables),
                *(Link((f"r{number}", f"d{number}"), BANDWIDTH_MBIT) for number in numbers),
            ),
            group=SecureGroup(),
        )
    )


def coalition(nations: int, devices: int = 1, clients: int = 2) -> Topology:
    """Return nations with red LANs behind IPsec devices, on border routers around a black switch.

    Two more routers without devices are the rendezvous point and its backup.

    Each device has a LAN router behind it and a LAN with its clients, in IPv6 and IPv4; a single
    client is cabled to the LAN router directly. Devices take turns at the routers.

    Args:
        nations: how many.
        devices: of each nation.
        clients: of each device.

    Raises:
        TopologyError: fewer than one of something, or more than a machine can hold.
    """
    name = f"coalition({nations},{devices}" + (")" if clients == 2 else f",{clients})")
    if min(nations, devices, clients) < 1 or clients > _CLIENTS_MAX:
        raise TopologyError(
            f"{name}: a nation, a device and from 1 to {_CLIENTS_MAX} clients are needed"
        )
    total = nations * devices
    routers = max(_CORE_ROUTERS_MIN, -(-total // DEVICES_PER_ROUTER_MAX))
    needed = 3 + routers + total * (2 + clients + (clients > 1))
    if needed > NODES_MAX:
        raise TopologyError(f"{name}: {needed} nodes; more than {NODES_MAX} are refused")
    behind = {number: (number - 1) % routers + 1 for number in range(1, total + 1)}
    towards: dict[int, dict[str, tuple[Address, ...]]] = {
        router: {"s1": (IPv6Interface((CORE[router + 1], CORE.prefixlen)),)}
        for router in range(routers + 1)
    }
    nodes: list[Node] = []
    backup = Node(
        "rb",
        NodeKind.ROUTER,
        loopback=IPv6Interface("2001:db8:f::ff/128"),
        rendezvous_point=RendezvousPoint.BACKUP,
        towards={"s1": (IPv6Interface((CORE[0xFF], CORE.prefixlen)),)},
    )
    links = [Link((f"r{router}", "s1"), BANDWIDTH_MBIT) for router in (*towards, "b")]
    for number, router in behind.items():
        towards[router][f"d{number}"] = _router_address(number)
        links.append(Link((f"r{router}", f"d{number}"), BANDWIDTH_MBIT))
        red_nodes, red_links = _national_lan(number, clients)
        nodes += [_border_device(number, _nation((number - 1) // devices), lan=True), *red_nodes]
        links += red_links
    return checked(
        Topology(
            name=name,
            title=f"{nations} nations with {total} IPsec devices behind {routers} border routers "
            "around a black switch",
            nodes=(
                Node("s1", NodeKind.SWITCH),
                *(_router(router, peers) for router, peers in towards.items()),
                backup,
                *nodes,
            ),
            links=tuple(links),
        )
    )


def partitions(count: int, devices: int = 1) -> Topology:
    """Return partitions in a row, each a black switch with devices of its own, and gateways.

    Two redundant gateways join the first two partitions, one gateway joins each further pair. Every
    device has a red LAN with one client.

    Args:
        count: of partitions, named a, b, c and so on.
        devices: in each.

    Raises:
        TopologyError: fewer than two partitions or one device, or more than there are names for.
    """
    name = f"partitions({count}" + (")" if devices == 1 else f",{devices})")
    if not 2 <= count <= _PARTITIONS_MAX or not 1 <= devices <= _PARTITION_DEVICES_MAX:
        raise TopologyError(
            f"{name}: from 2 to {_PARTITIONS_MAX} partitions of 1 to {_PARTITION_DEVICES_MAX} "
            "devices are possible"
        )
    names = [chr(ord("a") + index) for index in range(count)]
    black = {here: f"2001:db8:{place:x}" for place, here in enumerate(names, 0xA)}
    nodes = [Node(here, NodeKind.SWITCH) for here in names]
    links: list[Link] = []
    for place, here in enumerate(names):
        for index in range(devices):
            number = place * devices + index + 1
            red = f"fd00:{place + 0xA:x}:0:{index:x}::"
            nodes += [
                Node(
                    f"d{number}",
                    NodeKind.DEVICE,
                    nation=_nation(place),
                    black=IPv6Interface(f"{black[here]}::{index + 1:x}/64"),
                    red=IPv6Interface(f"{red}1/64"),
                ),
                Node(f"c{number}", NodeKind.CLIENT, red=IPv6Interface(f"{red}11/64")),
            ]
            links += [
                Link((f"d{number}", here), BANDWIDTH_MBIT),
                Link((f"d{number}", f"c{number}"), BANDWIDTH_MBIT),
            ]
    pairs = [(names[0], names[1]), *pairwise(names)]
    for number, (near, far) in enumerate(pairs, 1):
        towards: dict[str, tuple[Address, ...]] = {
            here: (IPv6Interface(f"{black[here]}::f{number:x}/64"),) for here in (near, far)
        }
        nation = _nation(names.index(near))
        nodes.append(Node(f"g{number}", NodeKind.GATEWAY, nation=nation, towards=towards))
        links += [Link((f"g{number}", here), BANDWIDTH_MBIT) for here in (near, far)]
    return checked(
        Topology(
            name=name,
            title=f"{count} partitions of {devices} IPsec devices in a row, joined by gateways",
            nodes=tuple(nodes),
            links=tuple(links),
        )
    )


def _nation(index: int) -> str:
    return NATIONS[index] if index < len(NATIONS) else f"nation{index + 1}"


def _router(number: int, towards: Mapping[str, tuple[Address, ...]]) -> Node:
    """Return a border router; number 0 is the rendezvous point."""
    return Node(
        f"r{number}",
        NodeKind.ROUTER,
        loopback=IPv6Interface(f"2001:db8:f::{number + 1:x}/128"),
        rendezvous_point=None if number else RendezvousPoint.PRIMARY,
        towards=towards,
    )


def _router_address(number: int) -> tuple[Address, ...]:
    """Return the address of the router that device ``number`` is behind, on their link."""
    return (IPv6Interface(f"2001:db8:b:{number:x}::1/64"),)


def _border_device(number: int, nation: str, *, lan: bool = False) -> Node:
    """Return a device on a link of its own to a router."""
    return Node(
        f"d{number}",
        NodeKind.DEVICE,
        nation=nation,
        black=IPv6Interface(f"2001:db8:b:{number:x}::2/64"),
        red=IPv6Interface(f"fd00:{number:x}::1/64"),
        red4=IPv4Interface(f"10.{number}.0.1/24") if lan else None,
    )


def _national_lan(number: int, clients: int) -> tuple[list[Node], list[Link]]:
    """Return what is behind a device: LAN router, switch if there are clients to join, clients."""
    router, switch = f"l{number}", f"w{number}"
    names = [f"c{number}{chr(ord('a') + index)}" for index in range(clients)]
    entry = names[0] if clients == 1 else switch
    lan6, lan4 = f"fd00:{number:x}:0:1::", f"10.{number}.1."
    nodes = [
        Node(
            router,
            NodeKind.LAN_ROUTER,
            towards={
                f"d{number}": (
                    IPv6Interface(f"fd00:{number:x}::2/64"),
                    IPv4Interface(f"10.{number}.0.2/24"),
                ),
                entry: (IPv6Interface(f"{lan6}1/64"), IPv4Interface(f"{lan4}1/24")),
            },
        )
    ]
    links = [Link((f"d{number}", router), BANDWIDTH_MBIT), Link((router, entry), BANDWIDTH_MBIT)]
    if clients > 1:
        nodes.append(Node(switch, NodeKind.SWITCH, side=Side.RED))
        links += [Link((name, switch), BANDWIDTH_MBIT) for name in names]
    nodes += [
        Node(
            name,
            NodeKind.CLIENT,
            red=IPv6Interface(f"{lan6}{host}/64"),
            red4=IPv4Interface(f"{lan4}{host}/24"),
        )
        for host, name in enumerate(names, 11)
    ]
    return nodes, links


FAMILIES: Final[Mapping[str, Callable[..., Topology]]] = {
    "star": star,
    "line": line,
    "coalition": coalition,
    "partitions": partitions,
}
"""The families by name."""


def usage(name: str) -> str:
    """Return how a family is written, such as ``coalition(nations[,devices[,clients]])``."""
    text = ""
    for parameter in reversed([*inspect.signature(FAMILIES[name]).parameters.values()]):
        optional = parameter.default is not inspect.Parameter.empty
        text = f"[,{parameter.name}{text}]" if optional else f"{parameter.name}{text}"
    return f"{name}({text})"


def make(name: str, numbers: list[int]) -> Topology:
    """Return a member of a family.

    Raises:
        TopologyError: not that many numbers, or numbers that are not possible.
    """
    try:
        inspect.signature(FAMILIES[name]).bind(*numbers)
    except TypeError:
        given = ",".join(map(str, numbers))
        raise TopologyError(f"{name}({given}): it is written {usage(name)}") from None
    return FAMILIES[name](*numbers)

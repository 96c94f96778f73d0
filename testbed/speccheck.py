"""The rules of a topology: what may be joined to what, and how it must be addressed.

They hold for files and for computed families alike. Each rule yields its complaints as `Problem`,
with a path that `testbed.specreader` turns into the line of the file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from itertools import pairwise
from typing import Final

from protocol.gateway.config import LEGS_MAX
from testbed.spec import (
    BLACK_MTU_MIN,
    MTU_MIN,
    NODE_NAME_MAX,
    NODES_MAX,
    TUNNEL_OVERHEAD,
    Link,
    Node,
    NodeKind,
    RendezvousPoint,
    Side,
    Topology,
    TopologyError,
)
from testbed.tomllines import KeyPath
from testbed.wiring import RED, Port, Wire, Wiring

LINKS_MAX: Final = 31
"""Links of a router: the kernel's multicast routing has 32 interfaces (MAXMIFS in linux/mroute6.h),
and PIM takes one of them for registering."""

_ROUTING: Final = frozenset({NodeKind.ROUTER, NodeKind.LAN_ROUTER, NodeKind.GATEWAY})
"""Kinds whose addresses are said by neighbour."""

_IPSEC: Final = frozenset({NodeKind.DEVICE, NodeKind.GATEWAY})


@dataclass(frozen=True, slots=True)
class Problem:
    """A mistake in a topology.

    Attributes:
        at: the value's place in the file.
        field: as a user would call it.
        text: what is wrong, and the cure where it is not obvious.
    """

    at: KeyPath
    field: str
    text: str


def checked(topology: Topology) -> Topology:
    """Return a topology that keeps all rules.

    Raises:
        TopologyError: it does not; names the field.
    """
    if (problem := first_problem(topology)) is not None:
        raise TopologyError(f"{topology.name}: {problem.field}: {problem.text}")
    return topology


def first_problem(topology: Topology) -> Problem | None:
    """Return the first thing that is wrong, None if nothing is."""
    return next(_problems(topology), None)


def _problems(topology: Topology) -> Iterator[Problem]:
    # The most basic rules first: each relies on what those before it have found in order.
    yield from _node_problems(topology)
    yield from _address_problems(topology)
    yield from _link_problems(topology)
    yield from _towards_problems(topology)
    yield from _router_problems(topology)
    wiring = Wiring(topology)
    for wire in wiring.wires:
        yield from _wire_problems(wiring, wire)
    yield from _prefix_problems(wiring)
    yield from _red_problems(wiring)
    yield from _partition_problems(wiring)


def _node_problems(topology: Topology) -> Iterator[Problem]:
    if not topology.nodes:
        yield Problem((), "node", "at least one [[node]] is needed")
    if len(topology.nodes) > NODES_MAX:
        yield Problem((), "node", f"{len(topology.nodes)} nodes; more than {NODES_MAX} are refused")
    names: dict[str, int] = {}
    for index, node in enumerate(topology.nodes):
        at: KeyPath = ("node", index, "name")
        if len(node.name) > NODE_NAME_MAX:
            yield Problem(
                at,
                f"node {node.name}: name",
                f"longer than {NODE_NAME_MAX} characters, which interface names cannot hold",
            )
        if node.name in names:
            yield Problem(
                at,
                f"node {node.name}: name",
                f"is the name of node {names[node.name] + 1} already",
            )
        names[node.name] = index


def _addresses(node: Node) -> Iterator[tuple[tuple[str, ...], IPv6Address | IPv4Address]]:
    """Yield each address of a node with the field that it stands in."""
    for field in ("black", "red", "red4", "loopback"):
        if (interface := getattr(node, field)) is not None:
            yield (field,), interface.ip
    for neighbour, interfaces in node.towards.items():
        for interface in interfaces:
            yield ("towards", neighbour), interface.ip


def _address_problems(topology: Topology) -> Iterator[Problem]:
    owners: dict[IPv6Address | IPv4Address, str] = {}
    for index, node in enumerate(topology.nodes):
        for path, address in _addresses(node):
            field = ".".join(path)
            if address in owners:
                yield Problem(
                    ("node", index, *path),
                    f"node {node.name}: {field}",
                    f"address {address} belongs to {owners[address]} already",
                )
            owners[address] = f"node {node.name} ({field})"


def _link_problems(topology: Topology) -> Iterator[Problem]:
    nodes = {node.name: node for node in topology.nodes}
    pairs: dict[frozenset[str], int] = {}
    used: dict[tuple[str, Side], int] = {}
    links_of: dict[str, list[int]] = {name: [] for name in nodes}
    for index, link in enumerate(topology.links):
        at: KeyPath = ("link", index, "ends")
        field = f"link {index + 1}: ends"
        if (text := _cannot_join(link, nodes)) is not None:
            yield Problem(at, field, text)
            return
        pair = frozenset(link.ends)
        if pair in pairs:
            yield Problem(at, field, f"link {pairs[pair] + 1} joins {' and '.join(link.ends)} too")
        pairs[pair] = index
        (side,) = nodes[link.ends[0]].sides & nodes[link.ends[1]].sides
        for end in link.ends:
            links_of[end].append(index)
            if nodes[end].kind is not NodeKind.DEVICE:
                continue
            if (end, side) in used:
                yield Problem(
                    at,
                    field,
                    f"device {end} has its {side} cable in link {used[end, side] + 1} already",
                )
            used[end, side] = index
        if side is Side.BLACK and link.mtu is not None and link.mtu < BLACK_MTU_MIN:
            yield Problem(
                ("link", index, "mtu"),
                f"link {index + 1}: mtu",
                f"a black link needs at least {BLACK_MTU_MIN}: the {MTU_MIN} octets that every red "
                f"IPv6 host may send, and {TUNNEL_OVERHEAD} for the tunnel",
            )
        if link.jitter_ms > link.delay_ms:
            yield Problem(
                ("link", index, "jitter_ms"),
                f"link {index + 1}: jitter_ms",
                f"{link.jitter_ms:g} ms is more than the delay of {link.delay_ms:g} ms",
            )
    for index, node in enumerate(topology.nodes):
        yield from _count_problems(index, node, links_of[node.name], used)


def _cannot_join(link: Link, nodes: dict[str, Node]) -> str | None:
    """Return why a link is impossible, None if it is possible."""
    for end in link.ends:
        if end not in nodes:
            return f"there is no node {end!r}"
    one, other = (nodes[end] for end in link.ends)
    if one is other:
        return f"joins {one.name} to itself"
    kinds = {one.kind, other.kind}
    if kinds == {NodeKind.DEVICE}:
        return (
            "joins two devices, and so says neither black nor red; a link joins a device to a "
            "router or black switch, or to a LAN router, red switch or client"
        )
    if kinds <= _IPSEC:
        return "joins IPsec devices directly; put a black switch between them"
    if kinds == {NodeKind.SWITCH}:
        return "joins two switches; join their nodes to one switch"
    if not one.sides & other.sides:
        black, red = (one, other) if Side.BLACK in one.sides else (other, one)
        return (
            f"joins black {black.name} ({black.kind}) to red {red.name} ({red.kind}); "
            "only an IPsec device stands between black and red"
        )
    return None


def _count_problems(
    index: int, node: Node, links: list[int], used: dict[tuple[str, Side], int]
) -> Iterator[Problem]:
    at: KeyPath = ("node", index)
    field = f"node {node.name}"
    if node.kind is NodeKind.SWITCH:
        return
    if node.kind is NodeKind.DEVICE:
        if (node.name, Side.BLACK) not in used:
            yield Problem(at, field, "has no black [[link]], to a black switch or a router")
    elif not links:
        yield Problem(at, field, "has no [[link]]")
    elif node.kind is NodeKind.CLIENT and len(links) > 1:
        yield Problem(
            ("link", links[1], "ends"),
            f"link {links[1] + 1}: ends",
            f"client {node.name} is joined by link {links[0] + 1} already",
        )
    if node.kind is NodeKind.GATEWAY and not 2 <= len(links) <= LEGS_MAX:
        yield Problem(at, field, f"a gateway has from 2 to {LEGS_MAX} legs, this has {len(links)}")
    if len(links) > LINKS_MAX:
        yield Problem(
            at,
            field,
            f"has {len(links)} links; the kernel routes multicast between {LINKS_MAX} at most",
        )


def _towards_problems(topology: Topology) -> Iterator[Problem]:
    joined: dict[str, dict[str, int]] = {}
    for number, link in enumerate(topology.links, 1):
        for name, peer in (link.ends, link.ends[::-1]):
            joined.setdefault(name, {})[peer] = number
    for index, node in enumerate(topology.nodes):
        if node.kind not in _ROUTING:
            continue
        for peer in node.towards:
            if peer not in joined[node.name]:
                yield Problem(
                    ("node", index, "towards", peer),
                    f"node {node.name}: towards.{peer}",
                    f"no [[link]] joins {node.name} and {peer}",
                )
        for peer, number in joined[node.name].items():
            addresses = node.towards.get(peer, ())
            field = f"node {node.name}: towards.{peer}"
            if not addresses:
                yield Problem(
                    ("node", index),
                    field,
                    f"is missing: the address of {node.name} on link {number}",
                )
                continue
            versions = sorted(address.version for address in addresses)
            black = node.kind is not NodeKind.LAN_ROUTER
            if versions != [6] and (black or versions != [4, 6]):
                allowed = (
                    "one IPv6 address"
                    if black
                    else "one IPv6 address, and one IPv4 address if the LAN has it"
                )
                yield Problem(("node", index, "towards", peer), field, f"must be {allowed}")


def _router_problems(topology: Topology) -> Iterator[Problem]:
    chosen: list[str] = []
    backups: list[str] = []
    kinds = {node.name: node.kind for node in topology.nodes}
    for index, node in enumerate(topology.nodes):
        if node.kind is not NodeKind.ROUTER:
            continue
        if node.loopback is not None and node.loopback.network.prefixlen != 128:
            yield Problem(
                ("node", index, "loopback"),
                f"node {node.name}: loopback",
                f"{node.loopback} must be one address: /128",
            )
        if node.rendezvous_point is None:
            continue
        at: KeyPath = ("node", index, "rendezvous_point")
        field = f"node {node.name}: rendezvous_point"
        if node.rendezvous_point is RendezvousPoint.BACKUP:
            backups.append(node.name)
            if any(kinds.get(peer) is NodeKind.DEVICE for peer in node.towards):
                yield Problem(at, field, "a backup has no IPsec device: it only waits to be needed")
        elif chosen:
            yield Problem(
                at,
                field,
                f'{chosen[0]} is the rendezvous point already; a second one is "backup"',
            )
        else:
            chosen.append(node.name)
        if node.loopback is None:
            yield Problem(at, field, "the rendezvous point needs a loopback address")
        if len(backups) > 1:
            yield Problem(at, field, f"{backups[0]} is the backup already")
    if topology.routers and not chosen:
        first = topology.routers[0]
        yield Problem(
            ("node", topology.nodes.index(first)),
            f"node {first.name}: rendezvous_point",
            "no router is the rendezvous point; give one of them rendezvous_point = true "
            "(best one without IPsec devices)",
        )


def _wire_problems(wiring: Wiring, wire: Wire) -> Iterator[Problem]:
    if not wire.ports:
        return
    first = wire.ports[0]
    for port in wire.ports:
        for address in port.addresses:
            like = [a.network for a in first.addresses if a.version == address.version]
            if like and like[0] != address.network:
                at, field = _place(wiring, port.node, port, address.version)
                yield Problem(
                    at, field, f"{address} is not in {like[0]}, the prefix of {first.node} there"
                )
        versions = {address.version for address in port.addresses}
        wanted = {address.version for address in first.addresses}
        if versions != wanted:
            lacking, having = (port, first) if 4 in wanted else (first, port)
            at, field = _place(wiring, lacking.node, lacking, 4)
            yield Problem(at, field, f"has no IPv4 address, but {having.node} on its LAN has one")
        mtu, other = (wiring.topology.links[end.link].mtu for end in (port, first))
        if mtu != other:
            yield Problem(
                ("link", port.link, "mtu"),
                f"link {port.link + 1}: mtu",
                f"all links of switch {wire.name} need the same, and link {first.link + 1} differs",
            )


def _place(wiring: Wiring, name: str, port: Port | None, version: int) -> tuple[KeyPath, str]:
    """Return where the file says a port's address: its path, and the field's name.

    No port: the red side of a device with nobody else on it.
    """
    node = wiring.nodes[name]
    index = wiring.topology.nodes.index(node)
    if port is not None and node.kind in _ROUTING:
        return ("node", index, "towards", port.peer), f"node {name}: towards.{port.peer}"
    field = "red4" if version == 4 else "red"
    if port is not None and node.kind is NodeKind.DEVICE and port.interface != RED:
        field = "black"
    return ("node", index, field), f"node {name}: {field}"


def _prefix_problems(wiring: Wiring) -> Iterator[Problem]:
    for version in (4, 6):
        places = [place for place in wiring.prefixes() if place.prefix.version == version]
        # Sorted, a prefix that contains another stands right before the first one inside.
        places.sort(key=lambda place: (int(place.prefix.network_address), place.prefix.prefixlen))
        for outer, inner in pairwise(places):
            if inner.prefix.network_address in outer.prefix:
                at, field = _place(wiring, inner.node, inner.port, version)
                yield Problem(
                    at,
                    field,
                    f"{inner.where} ({inner.prefix}) and {outer.where} ({outer.prefix}) overlap",
                )


def _red_problems(wiring: Wiring) -> Iterator[Problem]:
    nations: dict[str, Node] = {}
    for device in wiring.topology.devices:
        for name in wiring.topology.red_part([device.name]):
            first = nations.setdefault(name, device)
            if first.nation != device.nation:
                yield Problem(
                    ("node", wiring.topology.nodes.index(device)),
                    f"node {device.name}",
                    f"shares the red LAN of {first.name}, which is of nation {first.nation}",
                )
    for index, node in enumerate(wiring.topology.nodes):
        wants_device = node.kind in (NodeKind.LAN_ROUTER, NodeKind.CLIENT)
        if wants_device and node.name not in nations:
            yield Problem(
                ("node", index), f"node {node.name}", "no red link leads to an IPsec device"
            )


def _partition_problems(wiring: Wiring) -> Iterator[Problem]:
    for index, gateway in enumerate(wiring.topology.nodes):
        if gateway.kind is not NodeKind.GATEWAY:
            continue
        seen: dict[str, str] = {}
        for leg in wiring.topology.legs:
            if leg.host != gateway.name:
                continue
            partition = wiring.partition(leg.name)
            if partition in seen:
                yield Problem(
                    ("node", index),
                    f"node {gateway.name}",
                    f"its legs {seen[partition]} and {leg.name} are in one partition",
                )
            seen[partition] = leg.name

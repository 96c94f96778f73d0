"""What follows from a topology: interfaces, wires, and the static routes of the red side.

A *port* is an interface of a node at the end of a link; a *wire* is what the ports on it share, one
prefix and one another's multicast: a cable between two nodes, or a switch with all its cables. The
red side needs no routing protocol: a red LAN hangs below its IPsec device, so everything outside
lies upstream and each prefix inside lies below one neighbour.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network
from typing import Final

from testbed.spec import Address, Link, Node, NodeKind, Side, Topology

BLACK: Final = "black0"
RED: Final = "red0"

Prefix = IPv4Network | IPv6Network


def black_interface(leg: int) -> str:
    """Return a device's interface on the black side, or that of a gateway's leg."""
    return f"black{leg}"


EVERYTHING: Final[dict[int, Prefix]] = {4: IPv4Network("0.0.0.0/0"), 6: IPv6Network("::/0")}


@dataclass(frozen=True, slots=True)
class Port:
    """An interface of a node, not of a switch, at the end of a link.

    Attributes:
        node: whose it is.
        peer: the node at the other end of the link.
        interface: its name in the node's namespace.
        addresses: with the wire's prefixes; one of IPv6, on the red side at most one of IPv4.
        link: its link's place in ``topology.links``.
    """

    node: str
    peer: str
    interface: str
    addresses: tuple[Address, ...]
    link: int


@dataclass(frozen=True, slots=True)
class Wire:
    """The ports that reach one another without a router.

    Attributes:
        name: of the switch, or of the only link.
        side: black or red.
        ports: in the order of the links.
    """

    name: str
    side: Side
    ports: tuple[Port, ...]


@dataclass(frozen=True, slots=True)
class Route:
    """A static route.

    Attributes:
        destination: prefix; `EVERYTHING` is the default route.
        via: the next hop's address and the prefix it is in.
        interface: on which the next hop is.
    """

    destination: Prefix
    via: Address
    interface: str


@dataclass(frozen=True, slots=True)
class PrefixUse:
    """A prefix and where it is used.

    Attributes:
        prefix: the prefix.
        where: as a user would call it.
        node: the first one there that has an address of the prefix.
        port: its port; None on a red LAN that nobody else is on.
    """

    prefix: Prefix
    where: str
    node: str
    port: Port | None


class Wiring:
    """The ports, wires and static routes of a topology.

    Attributes:
        topology: what it follows from.
        nodes: by name.
        ports: of each node that is no switch, in the order of the links.
        wires: in the order in which the links first touch them.
    """

    def __init__(self, topology: Topology) -> None:
        self.topology = topology
        self.nodes = {node.name: node for node in topology.nodes}
        self.ports = self._make_ports()
        self.wires = self._make_wires()
        self._wire_of = {port: wire for wire in self.wires for port in wire.ports}
        self._members = {node.name: node for node in topology.members}
        self._partition_of = self._find_partitions()
        self._upstream: dict[str, tuple[Port, Port]] = {}
        self._routes: dict[str, dict[Prefix, Route]] = {}
        for device in topology.devices:
            self._route_below(device)
            self._route_black(device)
        for leg in topology.legs:
            self._route_partition(leg)

    def wire(self, port: Port) -> Wire:
        """Return the wire that a port is on."""
        return self._wire_of[port]

    def neighbours(self, port: Port) -> tuple[Port, ...]:
        """Return the other ports on the same wire."""
        return tuple(other for other in self.wire(port).ports if other is not port)

    def kind(self, port: Port) -> NodeKind:
        """Return the kind of the node that a port belongs to."""
        return self.nodes[port.node].kind

    def black_port(self, device: str) -> Port:
        """Return the port of a device, or of a gateway's leg, on the black side."""
        member = self._members[device]
        name = black_interface(member.leg)
        return next(port for port in self.ports[member.host or device] if port.interface == name)

    def partition(self, member: str) -> str:
        """Return the partition of a device or leg: named after its first wire."""
        return self._partition_of[self.wire(self.black_port(member)).name]

    @property
    def partitions(self) -> dict[str, tuple[str, ...]]:
        """Return the devices and legs of each partition, in order."""
        found: dict[str, tuple[str, ...]] = {}
        for name in self._members:
            partition = self.partition(name)
            found[partition] = (*found.get(partition, ()), name)
        return found

    def upstream(self, node: str) -> Port | None:
        """Return the port of a LAN router or client towards its device, None for other nodes."""
        return self._upstream[node][0] if node in self._upstream else None

    def gateway(self, node: str) -> Port | None:
        """Return the port that is the next hop upstream of a LAN router or client, else None."""
        return self._upstream[node][1] if node in self._upstream else None

    def routes(self, node: str) -> tuple[Route, ...]:
        """Return the static routes of a node."""
        return tuple(self._routes.get(node, {}).values())

    def red_prefixes(self, device: str) -> tuple[Prefix, ...]:
        """Return the prefixes of a device's red LANs: its own, then those behind LAN routers."""
        own = (address.network for address in self.nodes[device].red_addresses)
        below = (route.destination for route in self.routes(device) if route.interface == RED)
        return tuple(dict.fromkeys((*own, *below)))

    def switch_port(self, link: Link) -> str | None:
        """Return the name of the switch's end of a link, None if it has no switch."""
        node, switch = link.ends
        return f"{switch}-{node}" if self.nodes[switch].kind is NodeKind.SWITCH else None

    # --- deriving ------------------------------------------------------------------------------

    def _make_ports(self) -> dict[str, tuple[Port, ...]]:
        found: dict[str, list[Port]] = {
            node.name: [] for node in self.topology.nodes if node.kind is not NodeKind.SWITCH
        }
        for number, link in enumerate(self.topology.links):
            for name, peer in (link.ends, link.ends[::-1]):
                if name in found:
                    found[name].append(self._port(self.nodes[name], peer, number, found[name]))
        return {name: tuple(ports) for name, ports in found.items()}

    def _port(self, node: Node, peer: str, number: int, earlier: list[Port]) -> Port:
        interface, addresses = f"eth{len(earlier)}", node.towards.get(peer, ())
        if node.kind is NodeKind.CLIENT:
            addresses = node.red_addresses
        elif node.kind is NodeKind.GATEWAY:
            interface = black_interface(len(earlier))
        elif node.kind is NodeKind.DEVICE:
            if Side.BLACK in self.nodes[peer].sides:
                interface, addresses = BLACK, (node.black,) if node.black else ()
            else:
                interface, addresses = RED, node.red_addresses
        return Port(node.name, peer, interface, addresses, number)

    def _make_wires(self) -> tuple[Wire, ...]:
        found: dict[str, list[Port]] = {}
        sides: dict[str, Side] = {}
        of_link: dict[int, list[Port]] = {}
        for ports in self.ports.values():
            for port in ports:
                of_link.setdefault(port.link, []).append(port)
        for number, link in enumerate(self.topology.links):
            name = link.name if self.switch_port(link) is None else link.ends[1]
            near, far = (self.nodes[end] for end in link.ends)
            (sides[name],) = near.sides & far.sides
            found.setdefault(name, []).extend(of_link[number])
        return tuple(Wire(name, sides[name], tuple(ports)) for name, ports in found.items())

    def _route_below(self, device: Node) -> None:
        """Route a device's red LANs: everything upstream, each prefix below towards its wire."""
        roots = [port for port in self.ports[device.name] if port.interface == RED]
        todo = list(roots)
        parent: dict[str, tuple[Port, Port]] = {}  # node -> its upstream port, the port above it
        seen = {device.name}
        while todo:
            above = todo.pop(0)
            for port in self.neighbours(above):
                if port.node in seen or self.kind(port) is NodeKind.DEVICE:
                    continue
                seen.add(port.node)
                parent[port.node] = (port, above)
                self._upstream.setdefault(port.node, parent[port.node])
                for via in above.addresses:
                    self._add(port.node, Route(EVERYTHING[via.version], via, port.interface))
                if self.kind(port) is NodeKind.LAN_ROUTER:
                    below = [other for other in self.ports[port.node] if other is not port]
                    todo += below
                    for prefix in (at.network for other in below for at in other.addresses):
                        self._route_to(prefix, port.node, parent)

    def _route_to(
        self,
        prefix: Prefix,
        owner: str,
        parent: dict[str, tuple[Port, Port]],
    ) -> None:
        """Give every node above the owner of a prefix its route to it."""
        node = owner
        while node in parent:
            port, above = parent[node]
            for via in port.addresses:
                if via.version == prefix.version:
                    self._add(above.node, Route(prefix, via, above.interface))
            node = above.node

    def _route_black(self, device: Node) -> None:
        """Send what a device says on the black side to the first router there."""
        port = self.black_port(device.name)
        for other in self.neighbours(port):
            if self.kind(other) is NodeKind.ROUTER:
                for via in other.addresses:
                    self._add(device.name, Route(EVERYTHING[via.version], via, port.interface))
                return

    def _find_partitions(self) -> dict[str, str]:
        """Return the partition of each black wire: what black routers join is one."""
        found: dict[str, str] = {}
        for first in self.wires:
            if first.side is not Side.BLACK or first.name in found:
                continue
            todo = [first]
            while todo:
                wire = todo.pop()
                found[wire.name] = first.name
                todo += [
                    self.wire(other)
                    for port in wire.ports
                    if self.kind(port) is NodeKind.ROUTER
                    for other in self.ports[port.node]
                    if self.wire(other).name not in found
                ]
        return found

    def _route_partition(self, leg: Node) -> None:
        """Send what a leg says to other wires of its partition to the first router on its own.

        There is no default route: a gateway has a leg in each of several black networks.
        """
        assert leg.host is not None
        port = self.black_port(leg.name)
        own = self.wire(port)
        via = next(
            (
                at
                for other in own.ports
                if self.kind(other) is NodeKind.ROUTER
                for at in other.addresses
            ),
            None,
        )
        for wire in self.wires:
            if via is None or wire is own:
                continue
            if self._partition_of.get(wire.name) != self._partition_of[own.name]:
                continue
            for prefix in dict.fromkeys(at.network for end in wire.ports for at in end.addresses):
                self._add(leg.host, Route(prefix, via, port.interface))

    def _add(self, node: str, route: Route) -> None:
        # The first one wins: a LAN with two devices leaves by the one named first.
        self._routes.setdefault(node, {}).setdefault(route.destination, route)

    def prefixes(self) -> Iterator[PrefixUse]:
        """Yield every prefix once per place that uses it: a wire, or a device's stub LAN."""
        for wire in self.wires:
            seen: set[Prefix] = set()
            for port in wire.ports:
                for prefix in {at.network for at in port.addresses} - seen:
                    seen.add(prefix)
                    yield PrefixUse(prefix, f"{wire.side} wire {wire.name}", port.node, port)
        for device in self.topology.devices:
            if not any(port.interface == RED for port in self.ports[device.name]):
                for address in device.red_addresses:
                    where = f"the red LAN of {device.name}"
                    yield PrefixUse(address.network, where, device.name, None)

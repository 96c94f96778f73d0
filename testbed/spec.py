"""Topologies as data: the nodes, the links between them, and the group that the devices protect.

An IPsec device stands between the black side (towards the other nations) and its red LAN. Routers
and black switches are black, LAN routers and clients are red, a switch says which it is. A link has
the side of its ends, and only a device has ends on both.

`testbed.specreader` makes these from a file, the families in ``topologies/families.py`` without
one; `testbed.speccheck` says what may be joined to what, `testbed.wiring` what follows from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from ipaddress import IPv4Interface, IPv6Address, IPv6Interface
from typing import Any, Final

from testbed.errors import TestbedError

INTERFACE_NAME_MAX: Final = 15
"""Octets in an interface's name (IFNAMSIZ less the terminating zero, linux/if.h)."""

NODE_NAME_MAX: Final = 6
"""So that ``<switch>-<node>`` fits `INTERFACE_NAME_MAX`."""

BANDWIDTH_MBIT_MAX: Final = 1000
"""Faster than any link that an emulation can honestly keep up with."""

DELAY_MS_MAX: Final = 10_000

MTU_MIN: Final = 1280
"""The smallest that IPv6 allows (RFC 8200 section 5)."""

MTU_MAX: Final = 65535

TUNNEL_OVERHEAD: Final = 120
"""Octets that a red packet grows by at most: outer IPv6 header (40), and with any suite ESP header,
IV, padding and ICV. AES-GCM needs 72 to 75."""

BLACK_MTU_MIN: Final = MTU_MIN + TUNNEL_OVERHEAD
"""Of a black link: else red packets of the size that every IPv6 link carries would vanish."""

NODES_MAX: Final = 300
"""Refused beyond: a node costs a shell, a namespace and about 25 ms on a quiet machine."""

BLACK_GROUP: Final = IPv6Address("ff0e::1")
"""Default destination of the ESP packets."""

Address = IPv6Interface | IPv4Interface
"""An address with its prefix."""


class TopologyError(TestbedError):
    """There is no such topology, or it cannot be made as asked."""


class NodeKind(StrEnum):
    """What a node is."""

    DEVICE = "device"
    SWITCH = "switch"
    ROUTER = "router"
    LAN_ROUTER = "lan_router"
    CLIENT = "client"
    GATEWAY = "gateway"
    """A device of two or more partitions at once (docs/gateways.md)."""


class RendezvousPoint(StrEnum):
    """What a router is to the rendezvous point of the multicast groups (RFC 7761)."""

    PRIMARY = "primary"
    """It is the rendezvous point; its loopback is the rendezvous point's address."""
    BACKUP = "backup"
    """It has the same address too, so much farther away that it serves only when the other dies."""


class Side(StrEnum):
    """Which side of the IPsec devices something is on."""

    BLACK = "black"
    RED = "red"


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a topology.

    Attributes:
        name: short, unique; also names log directories.
        kind: what it is.
        nation: whose device it is (its certificate authority); devices and gateways.
        black: address and prefix on the black side; devices only.
        red: address and prefix in the red LAN; devices and clients.
        multicast_snooping: switches only. Off by default: a bridge with snooping and without a
            querier floods anyway, and without it a lost membership report cannot matter.
        red4: the same as ``red`` in IPv4, if the LAN has it; devices and clients.
        side: of a switch.
        loopback: address on ``lo``; routers only.
        rendezvous_point: whether this router is the rendezvous point of the multicast groups
            (exactly one router is) or a backup of it; None: neither.
        towards: addresses of a router, LAN router or gateway on the link to each of its neighbours.
        host: of a gateway's leg (`Topology.members`), the gateway; None for nodes of the file.
        leg: which of the gateway's legs, from 0, in the order of the links.
    """

    name: str
    kind: NodeKind
    nation: str | None = None
    black: IPv6Interface | None = None
    red: IPv6Interface | None = None
    multicast_snooping: bool = False
    red4: IPv4Interface | None = None
    side: Side = Side.BLACK
    loopback: IPv6Interface | None = None
    rendezvous_point: RendezvousPoint | None = None
    towards: Mapping[str, tuple[Address, ...]] = field(default_factory=dict)
    host: str | None = None
    leg: int = 0

    @property
    def sides(self) -> frozenset[Side]:
        """Return the sides on which it may have links."""
        match self.kind:
            case NodeKind.DEVICE:
                return frozenset(Side)
            case NodeKind.SWITCH:
                return frozenset({self.side})
            case NodeKind.ROUTER | NodeKind.GATEWAY:
                return frozenset({Side.BLACK})
            case _:
                return frozenset({Side.RED})

    @property
    def red_addresses(self) -> tuple[Address, ...]:
        """Return the addresses of a device or client in its red LAN."""
        return tuple(address for address in (self.red, self.red4) if address is not None)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a manifest."""
        return {
            "name": self.name,
            "kind": self.kind.value,
            "nation": self.nation,
            "black": _text(self.black),
            "red": _text(self.red),
            "red4": _text(self.red4),
            "side": self.side.value if self.kind is NodeKind.SWITCH else None,
            "multicast_snooping": self.multicast_snooping,
            "loopback": _text(self.loopback),
            "rendezvous_point": self.rendezvous_point.value if self.rendezvous_point else None,
            "towards": {
                neighbour: [str(address) for address in addresses]
                for neighbour, addresses in self.towards.items()
            },
        }


@dataclass(frozen=True, slots=True)
class Link:
    """A cable between two nodes.

    Attributes:
        ends: the two nodes' names; a switch is the second.
        bandwidth_mbit: limit of each direction, None for none.
        delay_ms: one way, added in each direction.
        jitter_ms: by how much a packet's delay may differ from it, drawn uniformly; needs a delay.
        loss_percent: share of packets lost at random, in each direction.
        mtu: of the interfaces at both ends, None for Ethernet's 1500 octets.
    """

    ends: tuple[str, str]
    bandwidth_mbit: float | None = None
    delay_ms: float = 0.0
    jitter_ms: float = 0.0
    loss_percent: float = 0.0
    mtu: int | None = None

    @property
    def name(self) -> str:
        """Return its name for people and programs, such as ``d1-s1``."""
        return "-".join(self.ends)

    @property
    def impaired(self) -> bool:
        """Return whether it delays or loses packets, which takes the kernel's netem."""
        return self.delay_ms > 0 or self.loss_percent > 0


@dataclass(frozen=True, slots=True)
class SecureGroup:
    """The multicast group that the devices protect, as far as the network must know of it.

    Attributes:
        black_group: destination of the ESP packets.
        if_id: ties xfrm interface, SAs and policies together.
        mtu: of the xfrm interface, if the black links carry it (`Topology.fitted_group`); leaves
            room for ESP and the outer header in 1500 octets.
    """

    black_group: IPv6Address = BLACK_GROUP
    if_id: int = 66
    mtu: int = 1380


@dataclass(frozen=True, slots=True)
class Topology:
    """A network that can be built; `testbed.specreader.load_topology` or a family makes one.

    Attributes:
        name: of the folder or family.
        title: one line for people.
        nodes: in the order of the file.
        links: in the order of the file.
        group: the secure group.
    """

    name: str
    title: str
    nodes: tuple[Node, ...]
    links: tuple[Link, ...]
    group: SecureGroup = field(default_factory=SecureGroup)

    def of_kind(self, kind: NodeKind) -> tuple[Node, ...]:
        """Return the nodes of a kind in order."""
        return tuple(node for node in self.nodes if node.kind is kind)

    @property
    def devices(self) -> tuple[Node, ...]:
        """Return the IPsec devices in order."""
        return self.of_kind(NodeKind.DEVICE)

    @property
    def gateways(self) -> tuple[Node, ...]:
        """Return the IDP security gateways in order."""
        return self.of_kind(NodeKind.GATEWAY)

    @property
    def legs(self) -> tuple[Node, ...]:
        """Return the gateways' legs, each as the device that it is in its partition.

        A leg has the name of its link, such as ``g1-a``.
        """
        return tuple(leg for gateway in self.gateways for leg in gateway_legs(gateway, self.links))

    @property
    def members(self) -> tuple[Node, ...]:
        """Return all that run IDP and MIKE: the devices, then the legs of the gateways."""
        return (*self.devices, *self.legs)

    @property
    def switches(self) -> tuple[Node, ...]:
        """Return the switches in order."""
        return self.of_kind(NodeKind.SWITCH)

    @property
    def routers(self) -> tuple[Node, ...]:
        """Return the black border routers in order."""
        return self.of_kind(NodeKind.ROUTER)

    @property
    def clients(self) -> tuple[Node, ...]:
        """Return the red clients in order."""
        return self.of_kind(NodeKind.CLIENT)

    @property
    def fitted_group(self) -> SecureGroup:
        """Return the secure group with an MTU that fits through all black links.

        Multicast goes over all of them. A device would learn of too small a link from ICMPv6 errors
        too, but only when its first large packets have been lost there.
        """
        smallest = min(
            (link.mtu for link in self.links if link.mtu and self.side(link) is Side.BLACK),
            default=MTU_MAX,
        )
        return replace(self.group, mtu=min(self.group.mtu, smallest - TUNNEL_OVERHEAD))

    @property
    def rendezvous_address(self) -> IPv6Interface | None:
        """Return the loopback of the rendezvous point, None in a network without routers."""
        for router in self.routers:
            if router.rendezvous_point is RendezvousPoint.PRIMARY:
                return router.loopback
        return None

    def loopbacks(self, node: Node) -> tuple[IPv6Interface, ...]:
        """Return what a node has on ``lo``: a backup also has the rendezvous point's address."""
        shared = (
            self.rendezvous_address if node.rendezvous_point is RendezvousPoint.BACKUP else None
        )
        return tuple(address for address in (node.loopback, shared) if address is not None)

    def host(self, name: str) -> str:
        """Return the node in whose namespaces a node, or a gateway's leg, is."""
        return next((leg.host for leg in self.legs if leg.name == name and leg.host), name)

    def node(self, name: str) -> Node:
        """Return the node of that name.

        Raises:
            TopologyError: there is none.
        """
        for node in self.nodes:
            if node.name == name:
                return node
        known = ", ".join(node.name for node in self.nodes)
        raise TopologyError(f"topology {self.name} has no node {name!r}; it has: {known}")

    def side(self, link: Link) -> Side:
        """Return the side of a link: the one that both its ends may be on."""
        one, other = (self.node(end) for end in link.ends)
        (side,) = one.sides & other.sides
        return side

    def red_part(self, devices: Iterable[str]) -> set[str]:
        """Return the red nodes that are joined to these devices without crossing another one."""
        sides = {node.name: node.sides for node in self.nodes}
        cables = [
            link.ends
            for link in self.links
            if Side.BLACK not in sides[link.ends[0]] & sides[link.ends[1]]
        ]
        stops = {node.name for node in self.devices}
        found: set[str] = set()
        new = set(devices)
        while new:
            beside = {far for ends in cables for near, far in (ends, ends[::-1]) if near in new}
            new = beside - stops - found
            found |= new
        return found

    def limited_to(self, devices: int) -> Topology:
        """Return the topology with only its first devices: without the red LANs of the others.

        Routers and black switches stay.

        Raises:
            TopologyError: it has fewer.
        """
        names = [node.name for node in self.devices]
        if not 1 <= devices <= len(names):
            raise TopologyError(
                f"topology {self.name} has {len(names)} devices, {devices} are asked for; "
                f"'star({devices})' makes a network of any size"
            )
        if devices == len(names):
            return self
        stay, go = names[:devices], names[devices:]
        gone = set(go) | (self.red_part(go) - self.red_part(stay))
        return replace(
            self,
            nodes=tuple(
                replace(
                    node,
                    towards={peer: at for peer, at in node.towards.items() if peer not in gone},
                )
                for node in self.nodes
                if node.name not in gone
            ),
            links=tuple(link for link in self.links if not gone.intersection(link.ends)),
        )

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a manifest."""
        return {
            "name": self.name,
            "title": self.title,
            "group": {
                "black_group": str(self.group.black_group),
                "if_id": self.group.if_id,
                "mtu": self.fitted_group.mtu,
            },
            "nodes": [node.as_json() for node in self.nodes],
            "links": [
                {
                    "ends": list(link.ends),
                    "side": self.side(link).value,
                    "bandwidth_mbit": link.bandwidth_mbit,
                    "delay_ms": link.delay_ms,
                    "jitter_ms": link.jitter_ms,
                    "loss_percent": link.loss_percent,
                    "mtu": link.mtu,
                }
                for link in self.links
            ],
        }


def gateway_legs(gateway: Node, links: Iterable[Link]) -> Iterator[Node]:
    """Yield a gateway's legs in the order of its links."""
    mine = (link for link in links if gateway.name in link.ends)
    for index, link in enumerate(mine):
        (peer,) = (end for end in link.ends if end != gateway.name)
        black = [at for at in gateway.towards.get(peer, ()) if isinstance(at, IPv6Interface)]
        yield Node(
            f"{gateway.name}-{peer}",
            NodeKind.DEVICE,
            nation=gateway.nation,
            black=black[0] if black else None,
            host=gateway.name,
            leg=index,
        )


def _text(address: Address | None) -> str | None:
    return None if address is None else str(address)

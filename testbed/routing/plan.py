"""What each black border router must be told, as plain data taken from the topology.

A routing daemon needs more than addresses: whether other routers are to be expected on an interface
(else it stays passive there), whether several of them share the wire (OSPF's network type), and
which router is the rendezvous point of the multicast groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Interface

from testbed.spec import NodeKind, RendezvousPoint, Topology
from testbed.wiring import Port, Wiring


@dataclass(frozen=True, slots=True)
class RouterInterface:
    """An interface of a black border router.

    Attributes:
        name: in the router's namespace, ``eth0`` upwards.
        addresses: global addresses with their prefix.
        broadcast: more than two routers share the wire: OSPF's network type is broadcast (with a
            designated router), else point-to-point (RFC 5340, RFC 2328 section 1.2).
        routers: neighbours to expect on it; 0 is an edge LAN, passive in OSPF.
        devices: IPsec devices on the same wire; above 0 the router is an MLD querier there.
    """

    name: str
    addresses: tuple[IPv6Interface, ...]
    broadcast: bool
    routers: int
    devices: int


@dataclass(frozen=True, slots=True)
class RouterPlan:
    """A black border router.

    Attributes:
        name: the node's name.
        router_id: unique number of the router in OSPF, written as an IPv4 address.
        loopback: address on its ``lo``, if the topology gives it one.
        interfaces: in the order of ``eth0``, ``eth1``.
        rp: address of the rendezvous point, which is the loopback of one of the routers.
        backup: it is a backup of the rendezvous point: it has that address too, and announces it as
            so far away that all prefer the rendezvous point as long as that one lives.
    """

    name: str
    router_id: IPv4Address
    loopback: IPv6Interface | None
    interfaces: tuple[RouterInterface, ...]
    rp: IPv6Address
    backup: bool = False


def router_plans(topology: Topology) -> tuple[RouterPlan, ...]:
    """Return the plan of every black border router, in the order of the topology.

    The topology is one that keeps the rules (`testbed.speccheck`): one of its routers is the
    rendezvous point and has a loopback address.
    """
    wiring = Wiring(topology)
    point = topology.rendezvous_address
    if point is None:
        return ()
    return tuple(
        RouterPlan(
            router.name,
            IPv4Address(number),
            router.loopback,
            tuple(_interface(wiring, port) for port in wiring.ports[router.name]),
            point.ip,
            backup=router.rendezvous_point is RendezvousPoint.BACKUP,
        )
        for number, router in enumerate(topology.routers, 1)
    )


def _interface(wiring: Wiring, port: Port) -> RouterInterface:
    others = [wiring.kind(other) for other in wiring.neighbours(port)]
    routers = others.count(NodeKind.ROUTER)
    return RouterInterface(
        port.interface,
        tuple(address for address in port.addresses if isinstance(address, IPv6Interface)),
        routers > 1,
        routers,
        others.count(NodeKind.DEVICE) + others.count(NodeKind.GATEWAY),
    )

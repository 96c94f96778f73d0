"""The red places of a network that is up: clients and devices that send and listen, their LANs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from typing import TYPE_CHECKING, Any, Final

from experiments.errors import ExperimentError
from experiments.outcome import Time
from experiments.streams import MARK, Streams
from testbed.lanwire import LanWire
from testbed.network import XFRM
from testbed.packets import RedEndpoint
from testbed.redstreams import CLIENT_INTERFACE
from testbed.spec import Node, NodeKind, Topology
from testbed.surroundings import lans
from testbed.wait import wait_until

if TYPE_CHECKING:
    from testbed.fleet import Fleet

GROUPS: Final[Mapping[int, IPv6Address | IPv4Address]] = {
    6: IPv6Address("ff0e::7e58"),
    4: IPv4Address("239.126.87.2"),
}
"""Red multicast group of the streams by address family; not that of the packet check."""

FAMILIES: Final = (6, 4)
LISTENER_DEADLINE_S: Final = 30.0


@dataclass(frozen=True, slots=True)
class Place:
    """A client, or a device that sends its own multicast into the tunnel.

    Attributes:
        name: of the node.
        lan: the device whose red LAN it belongs to; its own name for a device.
        addresses: its red address by address family.
    """

    name: str
    lan: str
    addresses: Mapping[int, IPv6Address | IPv4Address] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """Return ``client`` or ``device``."""
        return "device" if self.name == self.lan else "client"


def places_of(topology: Topology) -> dict[str, Place]:
    """Return the red places by name: the clients of each LAN in order, then the devices.

    Raises:
        ExperimentError: a device has no red LAN with clients, so nothing could be delivered there.
    """
    found: dict[str, Place] = {}
    for device, clients in lans(topology).items():
        if not clients:
            raise ExperimentError(
                f"{device} of {topology.name} has no red LAN with clients; 'coalition' is a "
                "topology that has, for every device"
            )
        for client in clients:
            found[client.name] = Place(client.name, device, _addresses(client))
    for node in topology.devices:
        found[node.name] = Place(node.name, node.name, _addresses(node))
    return found


def _addresses(node: Node) -> dict[int, IPv6Address | IPv4Address]:
    return {address.version: address.ip for address in node.red_addresses}


class RedSide:
    """Open sockets at every red place, all of them listening.

    Args:
        fleet: entered, with kernel SAs.
        clock: the orchestrator's.

    Raises:
        ExperimentError: the topology has no red LANs.
        TestbedError: a socket cannot be had.

    Attributes:
        places: by name.
        families: address families that every place has.
    """

    def __init__(self, fleet: Fleet, clock: Time | None = None) -> None:
        self.places = places_of(fleet.topology)
        self.families = tuple(
            family
            for family in FAMILIES
            if all(family in place.addresses for place in self.places.values())
        )
        self._fleet = fleet
        self._silent: set[str] = set()
        self._stack = ExitStack()
        self._ends: dict[int, dict[str, Any]] = {family: {} for family in self.families}
        self._wires: dict[str, LanWire] = {}
        try:
            for place in self.places.values():
                self._open(place)
        except BaseException:
            self.close()
            raise
        self.streams = {
            family: Streams(
                ends,
                lambda sender, family=family: self.expected(sender),  # type: ignore[misc]
                clock,
            )
            for family, ends in self._ends.items()
        }

    def _open(self, place: Place) -> None:
        namespace = self._fleet.network.namespace(place.name)
        interface = CLIENT_INTERFACE if place.kind == "client" else XFRM
        for family in self.families:
            end = RedEndpoint(namespace, place.addresses[family], interface, group=GROUPS[family])
            self._stack.callback(end.close)
            self._ends[family][place.name] = end
        if place.kind == "client" and place.lan not in self._wires:
            self._wires[place.lan] = LanWire(namespace, interface)
            self._stack.callback(self._wires[place.lan].close)

    def close(self) -> None:
        """Close all sockets; idempotent."""
        self._stack.close()

    def clients(self, lan: str) -> tuple[str, ...]:
        """Return the clients of a LAN in order."""
        return tuple(p.name for p in self.places.values() if p.lan == lan and p.kind == "client")

    def expected(self, sender: str) -> frozenset[str]:
        """Return who must hear a sender: everybody concerned who listens."""
        return self.concerned(sender) - self._silent

    def concerned(self, sender: str) -> frozenset[str]:
        """Return whose hearing or not hearing a sender says something.

        Not that of a device and its own LAN: what the device forwards into the tunnel the kernel
        also hands to its own listeners on the tunnel interface, without any IPsec in between.
        """
        source = self.places[sender]
        return frozenset(
            place.name
            for place in self.places.values()
            if place.name != sender
            and (place.lan != source.lan or place.kind == source.kind == "client")
        )

    def silence(self, places: Iterable[str]) -> None:
        """Expect nothing at these places from now on; at all others again."""
        self._silent = set(places)

    # --- listeners -------------------------------------------------------------------------------

    def leave(self, lan: str) -> None:
        """Have all clients of a LAN leave the groups; returns when its proxies know.

        Raises:
            DeadlineError: a proxy still forwards to the LAN.
        """
        self._change(lan, listening=False)

    def join(self, lan: str) -> None:
        """Have all clients of a LAN join the groups again; returns when its proxies know.

        Raises:
            DeadlineError: a proxy does not know of the listeners.
        """
        self._change(lan, listening=True)

    def await_listeners(self, lans: Iterable[str]) -> None:
        """Wait until the proxies of these LANs know that there are listeners."""
        for lan in lans:
            self._await(lan, listening=True)

    def _change(self, lan: str, *, listening: bool) -> None:
        for family in self.families:
            for client in self.clients(lan):
                end = self._ends[family][client]
                (end.join if listening else end.leave)()
        self._await(lan, listening=listening)

    def _await(self, lan: str, *, listening: bool) -> None:
        wanted = {str(GROUPS[family]) for family in self.families}
        nodes = self._proxies(lan)

        def is_wrong(seen: set[str]) -> bool:
            return not wanted <= seen if listening else bool(wanted & seen)

        def wrong() -> list[str]:
            return [node for node in nodes if is_wrong(self._groups(node))]

        wait_until(
            lambda: not wrong(),
            LISTENER_DEADLINE_S,
            lambda: (
                f"the multicast proxy of {', '.join(wrong())} "
                f"{'knows no listeners' if listening else 'still knows listeners'} in the LAN of "
                f"{lan}"
            ),
            pause_s=0.1,
        )

    def _proxies(self, lan: str) -> list[str]:
        """Return the nodes between tunnel and clients that forward multicast."""
        topology = self._fleet.topology
        red = topology.red_part([lan])
        routers = [n.name for n in topology.of_kind(NodeKind.LAN_ROUTER) if n.name in red]
        return [lan, *routers]

    def _groups(self, node: str) -> set[str]:
        status = self._fleet.surroundings.proxy(node).status()
        return {g["group"] for port in status["downstream"] for g in port["groups"]}

    # --- wires -----------------------------------------------------------------------------------

    def frames(self, lan: str) -> int:
        """Return how many frames of any stream passed a LAN's wire since the last call."""
        return sum(MARK in frame for frame in self._wires[lan].frames())

    def counters(self) -> dict[str, dict[str, int]]:
        """Return the counters of every multicast proxy, by node."""
        nodes = dict.fromkeys(
            node for lan in lans(self._fleet.topology) for node in self._proxies(lan)
        )
        return {
            node: dict(self._fleet.surroundings.proxy(node).status().get("counters") or {})
            for node in nodes
        }

"""What is done to the cables of a built network on purpose: parted, moved, narrowed, made bad."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from testbed import namespaces, network_batch, network_queues
from testbed.network_batch import NetworkError
from testbed.spec import Link

if TYPE_CHECKING:
    from testbed.network import Network

GROUP: Final = 77
"""The kernel's group of all bridges and their ports: removed together, they cost one grace period
of the kernel instead of one each."""

_PARTED: Final = "x"
_SEGMENT: Final = "y"
"""What a switch's second halves are called."""

_ETHERNET_MTU: Final = 1500


class Cables:
    """The cables between devices and switches; links are named as for `Network.port`."""

    def __init__(self, network: Network) -> None:
        self._network = network
        self._parted: dict[str, tuple[str, str]] = {}
        self._moved: dict[str, str] = {}

    def part(self, links: Sequence[str]) -> None:
        """Put links of one switch on a switch of their own: two halves that cannot hear each other.

        Raises:
            NetworkError: they end at no switch, or at several, or the kernel does not take it.
        """
        found = [self._network.find_link(name) for name in links]
        ports = [self._port(link) for link in found]
        switches = {link.ends[1] for link in found}
        if len(switches) != 1:
            raise NetworkError(f"{', '.join(links)}: not links of one switch")
        switch = switches.pop()
        other = f"{switch}{_PARTED}"
        lines = [_bridge(other), *(f"link set {port} master {other}" for port in ports)]
        self._here([*lines, f"link set dev {other} up"], "parting a switch")
        self._parted = {port: (self._moved.get(port, switch), other) for port in ports}

    def join_again(self) -> None:
        """Put what was parted on its switch again; nothing happens if nothing is."""
        parted, self._parted = self._parted, {}
        lines = [f"link set {port} master {switch}" for port, (switch, _) in parted.items()]
        lines += [f"link del dev {other}" for other in sorted({o for _, o in parted.values()})]
        self._here(lines, "joining a switch")

    def move(self, link: str) -> str:
        """Move a cable to the switch's other segment, or back, and leave it out; return where to.

        The segment is a second switch with a cable to the first, made when it is first needed.
        `Network.link_up` plugs the cable in.

        Raises:
            NetworkError: the link ends at no switch, or the kernel does not take it.
        """
        found = self._network.find_link(link)
        port, switch = self._port(found), found.ends[1]
        other = f"{switch}{_SEGMENT}"
        lines = [f"link set {port} down"]
        if other not in namespaces.interface_names():
            near, far = f"{other}a", f"{other}b"
            lines += [
                _bridge(other),
                f"link add name {near} group {GROUP} type veth peer name {far}",
                f"link set {near} master {switch} up",
                f"link set {far} group {GROUP} master {other} up",
                f"link set dev {other} up",
            ]
        to = switch if port in self._moved else other
        self._here([*lines, f"link set {port} master {to}"], "moving a cable")
        if to == switch:
            del self._moved[port]
        else:
            self._moved[port] = other
        return to

    def disturb(
        self, link: str, what: str = "", *, towards: bool = True, away: bool = True
    ) -> None:
        """Have a device's cable lose, delay or double packets, in netem's words; "": no more.

        Args:
            link: which; it has no delay and no loss by the topology.
            what: such as ``loss 30%`` or ``duplicate 30%``.
            towards: packets towards the device.
            away: packets from it.

        Raises:
            NetworkError: the link is bad already, or the kernel does not do it.
        """
        found = self._network.find_link(link)
        if found.impaired:
            raise NetworkError(f"{found.name}: it is bad already, by the topology")
        ends: list[tuple[str | None, str]] = [(None, self._port(found))] if towards else []
        ends += self._network.ends(found) if away else []
        for node, interface in ends:
            with self._network.entered(node):
                if what:
                    network_queues.disturb(interface, found, what, found.name)
                else:
                    network_queues.calm(interface, found, found.name)

    def set_mtu(self, link: str, mtu: int | None) -> None:
        """Change the MTU at both ends of a link; None: as the topology says."""
        found = self._network.find_link(link)
        value = mtu or found.mtu or _ETHERNET_MTU
        for node, interface in [(None, self._port(found)), *self._network.ends(found)]:
            with self._network.entered(node):
                line = f"link set dev {interface} mtu {value}"
                network_batch.batch("ip", [line], found.name)

    def _port(self, link: Link) -> str:
        """Return the switch's end of a link."""
        port = self._network.wiring.switch_port(link)
        if port is None:
            raise NetworkError(f"{link.name}: it does not end at a switch")
        return port

    def _here(self, lines: list[str], what: str) -> None:
        with self._network.entered(None):
            network_batch.batch("ip", lines, what)


def _bridge(name: str) -> str:
    return f"link add name {name} group {GROUP} type bridge stp_state 0 mcast_snooping 0"

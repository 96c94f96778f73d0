"""Small routed networks of a test's own: routers and hosts in namespaces, wires between them.

Only for use inside a run (`testbed.session.call`), whose end removes all of it.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Interface
from pathlib import Path

from testbed.namespaces import NetNamespace, set_interface_up, write_sysctl
from testbed.processes import ProcessTable
from testbed.routing.base import RoutingOptions
from testbed.routing.choose import make_routing
from testbed.routing.frr import FrrRouting
from testbed.routing.plan import RouterInterface, RouterPlan

GROUP, PORT = "ff0e::77", 5000


@dataclass(frozen=True)
class Wire:
    """A cable between two nodes, or a switch among more; routers' names start with r."""

    number: int
    nodes: tuple[str, ...]

    def address(self, node: str) -> IPv6Interface:
        """Return a node's address: the node's own number in the wire's prefix."""
        kind = 0x100 if node.startswith("h") else 0
        return IPv6Interface(f"2001:db8:{self.number:x}::{kind + int(node[1:]):x}/64")

    @property
    def routers(self) -> tuple[str, ...]:
        """Return the routers on it."""
        return tuple(node for node in self.nodes if node.startswith("r"))


def wires(*descriptions: str) -> list[Wire]:
    """Return the wires of descriptions such as ``r1 r2``, numbered from 1."""
    return [Wire(number, tuple(text.split())) for number, text in enumerate(descriptions, 1)]


def interface_names(layout: Sequence[Wire]) -> dict[tuple[str, int], str]:
    """Return every node's interface per wire: ``eth0``, ``eth1``, ... in the order of the wires."""
    counters: dict[str, itertools.count[int]] = {}
    return {
        (node, wire.number): f"eth{next(counters.setdefault(node, itertools.count()))}"
        for wire in layout
        for node in wire.nodes
    }


def router_plans(
    layout: Sequence[Wire], rp: str, backup: str | None = None
) -> tuple[RouterPlan, ...]:
    """Return what the routers must be told; ``rp`` is the rendezvous point."""
    names = interface_names(layout)
    return tuple(
        RouterPlan(
            name=router,
            router_id=IPv4Address(int(router[1:])),
            loopback=loopback(router),
            interfaces=tuple(
                RouterInterface(
                    name=names[router, wire.number],
                    addresses=(wire.address(router),),
                    broadcast=len(wire.routers) > 2,
                    routers=len(wire.routers) - 1,
                    devices=len(wire.nodes) - len(wire.routers),
                )
                for wire in layout
                if router in wire.nodes
            ),
            rp=loopback(rp).ip,
            backup=router == backup,
        )
        for router in sorted({router for wire in layout for router in wire.routers})
    )


def loopback(router: str) -> IPv6Interface:
    """Return a router's loopback address."""
    return IPv6Interface(f"2001:db8:ff::{int(router[1:]):x}/128")


class RoutedNetwork:
    """Nodes in namespaces, with interfaces in the order of the wires.

    Args:
        layout: the wires.
        rp: the router that is the rendezvous point.
        backup: the router that takes its place.
    """

    def __init__(self, layout: Sequence[Wire], rp: str, backup: str | None = None) -> None:
        self.layout = layout
        self.plans = router_plans(layout, rp, backup)
        self._interfaces = interface_names(layout)
        names = sorted({node for wire in layout for node in wire.nodes})
        self.namespaces: dict[str, NetNamespace] = {}
        self._holders: dict[str, subprocess.Popen[str]] = {}
        for name in names:
            holder = subprocess.Popen(
                ["unshare", "--net", "--mount", "sh", "-c", "echo; exec sleep infinity"],
                stdout=subprocess.PIPE,
                text=True,
            )
            assert holder.stdout is not None
            holder.stdout.readline()  # it is in its namespaces now
            self._holders[name] = holder
            self.namespaces[name] = NetNamespace.of(name, holder.pid)
            with self.namespaces[name].entered():
                for scope in ("all", "default"):
                    write_sysctl(f"net/ipv6/conf/{scope}/accept_dad", 0)
                    write_sysctl(f"net/ipv6/conf/{scope}/forwarding", int(name.startswith("r")))
        self._wire_up()

    def _wire_up(self) -> None:
        outside: list[str] = []
        inside: dict[str, list[str]] = {name: ["link set lo up"] for name in self._holders}
        for wire in self.layout:
            ends = []
            for node in wire.nodes:
                interface = self._interfaces[node, wire.number]
                ends.append(f"{interface} netns {self._holders[node].pid}")
                inside[node] += [
                    f"link set {interface} up",
                    f"addr add {wire.address(node)} dev {interface} nodad",
                ]
                if node.startswith("h"):
                    gateway = wire.address(wire.routers[0]).ip
                    inside[node].append(f"route add default via {gateway}")
            if len(ends) == 2:
                outside.append(f"link add {ends[0]} type veth peer name {ends[1]}")
                continue
            outside.append(f"link add w{wire.number} type bridge mcast_snooping 0")
            outside.append(f"link set w{wire.number} up")
            for port, end in enumerate(ends):
                name = f"w{wire.number}-{port}"
                outside.append(f"link add {name} type veth peer name {end}")
                outside.append(f"link set {name} master w{wire.number} up")
        for plan in self.plans:
            inside[plan.name].append(f"addr add {plan.loopback} dev lo")
            if plan.backup:
                inside[plan.name].append(f"addr add {plan.rp}/128 dev lo")
        _ip(outside)
        for name, lines in inside.items():
            with self.namespaces[name].entered():
                _ip(lines)

    def pid(self, node: str) -> int:
        """Return the process that holds a node's namespaces."""
        return self._holders[node].pid

    def interface(self, node: str, wire: int) -> str:
        """Return the name of a node's interface on a wire."""
        return self._interfaces[node, wire]

    def cut(self, node: str, wire: int) -> None:
        """Take a node's end of a wire down."""
        with self.namespaces[node].entered():
            set_interface_up(self._interfaces[node, wire], up=False)

    def plug(self, node: str, wire: int) -> None:
        """Bring it up again."""
        with self.namespaces[node].entered():
            set_interface_up(self._interfaces[node, wire], up=True)

    @contextlib.contextmanager
    def listener(self, node: str, group: str = GROUP) -> Iterator[socket.socket]:
        """A socket that has joined a group on a host's first interface."""
        with self.namespaces[node].entered():
            receiver = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
            receiver.bind(("::", PORT))
            membership = struct.pack("@I", socket.if_nametoindex("eth0"))
            option = socket.inet_pton(socket.AF_INET6, group) + membership
            receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, option)
        receiver.setblocking(False)
        with receiver:
            yield receiver

    def send(self, node: str, payload: bytes, group: str = GROUP) -> None:
        """Send one datagram from a host's first interface, with enough hops."""
        with (
            self.namespaces[node].entered(),
            socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sender,
        ):
            index = socket.if_nametoindex("eth0")
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 16)
            sender.sendto(payload, (group, PORT))

    def stream(
        self, node: str, receivers: Sequence[socket.socket], packets: int, interval_ms: float = 10
    ) -> list[list[int]]:
        """Send numbered datagrams at an interval; return what each receiver got, in order."""
        got: list[list[int]] = [[] for _ in receivers]
        start = time.monotonic()
        for number in range(packets):
            self.send(node, struct.pack("!I", number))
            until = start + (number + 1) * interval_ms / 1e3
            while (left := until - time.monotonic()) > 0:
                time.sleep(min(left, 0.002))  # poll
            for heard, receiver in zip(got, receivers, strict=True):
                heard.extend(read_all(receiver))
        return got

    def close(self) -> None:
        """Let the nodes go."""
        for name, holder in self._holders.items():
            self.namespaces[name].close()
            holder.kill()
            holder.wait()
            if holder.stdout is not None:
                holder.stdout.close()


@contextlib.contextmanager
def routed(
    layout: Sequence[Wire],
    rp: str,
    folder: Path,
    deadline_s: float = 60,
    *,
    backup: str | None = None,
) -> Iterator[tuple[RoutedNetwork, FrrRouting, ProcessTable]]:
    """A network whose routers run FRR, started and not awaited."""
    network = RoutedNetwork(layout, rp, backup)
    processes = ProcessTable("20200101T000000Z-beef")
    options = RoutingOptions(kind="frr", deadline_s=deadline_s)
    routing = make_routing(
        network.plans, network.namespaces, network.pid, processes, folder, options=options
    )
    assert isinstance(routing, FrrRouting)
    try:
        routing.start()
        yield network, routing, processes
    finally:
        routing.stop()
        network.close()


def read_all(receiver: socket.socket) -> list[int]:
    """Return the numbers of all datagrams that have arrived."""
    numbers = []
    while True:
        try:
            numbers.append(struct.unpack("!I", receiver.recv(100))[0])
        except BlockingIOError:
            return numbers


def _ip(lines: Sequence[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        batch = Path(folder, "batch")
        batch.write_text("\n".join(lines) + "\n")
        done = subprocess.run(
            ["ip", "-batch", str(batch)], capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr

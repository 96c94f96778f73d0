"""A topology becomes a Mininet network: nodes, cables, bridges, addresses, queues, and the proof.

One node costs Mininet's shell plus one process, ``ip -batch``, and one more, ``tc -batch``, if its
links are limited; their last lines read back what was made: an address, queue or link that is not
as asked for ends the build with a `NetworkError` (Mininet itself only logs). Cables between two
nodes lie in their namespaces; bridges and the cables' ends at them lie in the run's own network
namespace (`testbed.isolation`): their names cannot clash with another run's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from testbed import namespaces, network_batch, network_nodes, network_queues
from testbed.cables import GROUP, Cables
from testbed.isolation import is_isolated
from testbed.memory import refuse_without_memory
from testbed.namespaces import NetNamespace
from testbed.network_batch import NetworkError
from testbed.network_nodes import RED_STUB, XFRM
from testbed.spec import INTERFACE_NAME_MAX, Link, Node, NodeKind, Side, Topology
from testbed.wiring import BLACK, RED, Port, Wiring

if TYPE_CHECKING:
    from mininet.net import Mininet

__all__ = ["BLACK", "RED", "RED_STUB", "XFRM", "LinkEnd", "Network", "NetworkError"]

_SWITCHES: Final = "the switches"
_CUT_FIRST: Final = (
    NodeKind.ROUTER,
    NodeKind.LAN_ROUTER,
    NodeKind.CLIENT,
    NodeKind.GATEWAY,
    NodeKind.DEVICE,
)
"""A cable is cut at the end where least depends on the interface; static routes are set again."""


@dataclass(frozen=True, slots=True)
class LinkEnd:
    """Where a link can be watched and cut.

    Attributes:
        link: its name.
        node: the node in whose namespace the interface is; None: the run's own (a switch's port).
        interface: sees both directions.
    """

    link: str
    node: str | None
    interface: str


class Network:
    """A built topology.

    Attributes:
        topology: what was asked for.
        wiring: what follows from it.
        cables: what can be done to its cables.
        timings_ms: how long each part of the build took, and per node and link.
        has_xfrm: whether the devices have their ``xfrm0``.
        xfrm_reason: why not, else empty.
    """

    def __init__(
        self,
        topology: Topology,
        *,
        with_xfrm: bool = True,
        fence: Callable[[NetNamespace, Node], None] | None = None,
    ) -> None:
        """Prepare; `build` does the work.

        Args:
            topology: what to build.
            with_xfrm: whether devices get an xfrm interface.
            fence: called for every device before there is any interface but ``lo``, which is down.
        """
        self.topology = topology
        self.wiring = Wiring(topology)
        self.timings_ms: dict[str, float] = {}
        self.has_xfrm = False
        self.xfrm_reason = "" if with_xfrm else "not wanted: the SA backend needs no kernel"
        self._with_xfrm = with_xfrm
        self._fence = fence
        self._mininet: Mininet | None = None
        self._namespaces: dict[str, NetNamespace] = {}
        self._made: set[str] = set()
        self._links = {link.name: link for link in topology.links}
        self.cables = Cables(self)
        self._by_link: dict[str, list[Port]] = {name: [] for name in self._links}
        for ports in self.wiring.ports.values():
            for port in ports:
                self._by_link[topology.links[port.link].name].append(port)

    # --- life ----------------------------------------------------------------------------------

    def build(self) -> None:
        """Build and verify everything.

        Raises:
            NetworkError: what could not be made or is not as asked for.
        """
        if not is_isolated():
            raise NetworkError("a network is only built in a run's own namespaces")
        self._refuse_clashes()
        refuse_without_memory(self.topology, daemons=False)
        network_queues.refuse_without_netem(self.topology.links)
        start = time.monotonic()
        try:
            self._create_nodes()
            self._create_links()
            created = time.monotonic()
            self._configure_switches()
            self._configure_nodes()
            configured = time.monotonic()
            self._verify_switches()
        except BaseException:
            self.stop()
            raise
        end = time.monotonic()
        parts = len(self.topology.nodes) + len(self.topology.links)
        self.timings_ms |= {
            "create": round((created - start) * 1e3, 1),
            "configure": round((configured - created) * 1e3, 1),
            "verify_switches": round((end - configured) * 1e3, 1),
            "total": round((end - start) * 1e3, 1),
            "per_node_and_link": round((end - start) * 1e3 / parts, 1),
        }

    def stop(self) -> None:
        """Remove everything; idempotent."""
        start = time.monotonic()
        for namespace in self._namespaces.values():
            namespace.close()
        self._namespaces.clear()
        if self._made & namespaces.interface_names():
            network_batch.batch("ip", [f"link del group {GROUP}"], _SWITCHES)
        self._made.clear()
        if self._mininet is not None:
            for host in self._mininet.hosts:  # all at once: Mininet waits for one after the other
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(host.pid, signal.SIGKILL)
            self._mininet.stop()
            self._mininet = None
            self.timings_ms["stop"] = round((time.monotonic() - start) * 1e3, 1)

    # --- use -----------------------------------------------------------------------------------

    def pid(self, node: str) -> int:
        """Return a process that is in a node's namespaces; a switch is in the run's own.

        A gateway's leg is in the gateway's.
        """
        if self._mininet is None:
            raise NetworkError("the network is not built")
        host = self.topology.host(node)
        if self.topology.node(host).kind is NodeKind.SWITCH:
            return os.getpid()
        return int(self._mininet.nameToNode[host].pid)

    def namespace(self, node: str) -> NetNamespace:
        """Return a node's network namespace; that of a switch is the run's own."""
        host = self.topology.host(node)
        if host not in self._namespaces:
            raise NetworkError(f"there is no node {node!r} in this network")
        return self._namespaces[host]

    def port(self, link: str) -> LinkEnd:
        """Return the end of a link where it is watched and cut.

        Args:
            link: its name, ends in either order; or a device, for its black cable; or another node
                with only one link.
        """
        found = self.find_link(link)
        switch_port = self.wiring.switch_port(found)
        if switch_port is not None:
            return LinkEnd(found.name, None, switch_port)
        ports = self._by_link[found.name]
        port = min(ports, key=lambda port: _CUT_FIRST.index(self.wiring.kind(port)))
        return LinkEnd(found.name, port.node, port.interface)

    @property
    def black_links(self) -> tuple[LinkEnd, ...]:
        """Return where each black link can be watched."""
        return tuple(
            self.port(link.name)
            for link in self.topology.links
            if self.topology.side(link) is Side.BLACK
        )

    def link_down(self, link: str) -> int:
        """Cut a link, both directions; return when (UTC ns). Links are named as for `port`."""
        end = self.port(link)
        with self.entered(end.node):
            namespaces.set_interface_up(end.interface, up=False)
            return time.time_ns()

    def link_up(self, link: str) -> int:
        """Plug a link in again; return when (UTC ns)."""
        end = self.port(link)
        with self.entered(end.node):
            namespaces.set_interface_up(end.interface, up=True)
            when = time.time_ns()
            if end.node is not None:  # the kernel forgot those by this interface
                lines = network_nodes.route_lines(self.wiring, end.node, "replace")
                network_batch.batch("ip", lines, end.node)
        return when

    def set_link(
        self,
        link: str,
        *,
        delay_ms: float | None = None,
        jitter_ms: float | None = None,
        loss_percent: float | None = None,
    ) -> None:
        """Change what a link does to packets, in both directions; None leaves a value as it is.

        Raises:
            NetworkError: no such link, or the kernel has no netem or did not take the values.
        """
        old = self.find_link(link)
        new = replace(
            old,
            delay_ms=old.delay_ms if delay_ms is None else delay_ms,
            jitter_ms=old.jitter_ms if jitter_ms is None else jitter_ms,
            loss_percent=old.loss_percent if loss_percent is None else loss_percent,
        )
        network_queues.refuse_bad_values(new)
        with self.entered(None):
            network_queues.refuse_without_netem((new,))
            if (port := self.wiring.switch_port(new)) is not None:
                network_queues.change(port, new, new.name)
        for end in self._by_link[new.name]:
            with self.entered(end.node):
                network_queues.change(end.interface, new, new.name)
        self._links[new.name] = new

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says about the network."""
        return {
            "topology": self.topology.as_json(),
            "timings_ms": dict(self.timings_ms),
            "xfrm_interface": self.has_xfrm,
            "xfrm_interface_missing_because": self.xfrm_reason,
        }

    def find_link(self, name: str) -> Link:
        """Return a link as it is now; named as for `port`."""
        swapped = "-".join(reversed(name.split("-")))
        for known in (name, swapped):
            if known in self._links:
                return self._links[known]
        ports = self.wiring.ports.get(name, ())
        if ports and self.wiring.kind(ports[0]) is NodeKind.DEVICE:
            ports = (self.wiring.black_port(name),)
        if len(ports) != 1:
            raise NetworkError(
                f"there is no link {name!r} in this network; it has: {', '.join(self._links)}"
            )
        return self._links[self.topology.links[ports[0].link].name]

    def ends(self, link: Link) -> list[tuple[str | None, str]]:
        """Return node and interface of a link's ends that are not at a switch."""
        return [(port.node, port.interface) for port in self._by_link[link.name]]

    def entered(self, node: str | None) -> AbstractContextManager[None]:
        """Be in a node's network namespace; None: in the run's own."""
        return contextlib.nullcontext() if node is None else self.namespace(node).entered()

    # --- building ------------------------------------------------------------------------------

    def _in_run(self) -> list[str]:
        """Return the names of what lies in the run's own namespace: bridges and their ports."""
        return [*(node.name for node in self.topology.switches), *self._switch_ports()]

    def _refuse_clashes(self) -> None:
        planned = self._in_run()
        for name in planned:
            if len(name) > INTERFACE_NAME_MAX:
                raise NetworkError(f"interface name {name} has over {INTERFACE_NAME_MAX} letters")
        clash = sorted(namespaces.interface_names().intersection(planned))
        if clash:
            raise NetworkError(
                f"interface {clash[0]} exists already and is not this run's; it is left alone: "
                "rename the node in the topology, or remove the interface"
            )

    def _create_nodes(self) -> None:
        from testbed.mininet_nodes import new_mininet

        # No address of the run's own namespace may talk on the wires.
        namespaces.write_sysctl("net/ipv6/conf/default/disable_ipv6", 1)
        net = self._mininet = new_mininet()
        for switch in self.topology.switches:
            net.addSwitch(switch.name)
            self._namespaces[switch.name] = NetNamespace.current()
        for node in self.topology.nodes:
            if node.kind is NodeKind.SWITCH:
                continue
            host = net.addHost(node.name, ip=None)
            namespace = NetNamespace.of(node.name, host.pid)
            self._namespaces[node.name] = namespace
            with namespace.entered():
                network_nodes.set_sysctls(self.wiring, node)
            if self._fence is not None and node.kind in (NodeKind.DEVICE, NodeKind.GATEWAY):
                self._fence(namespace, node)

    def _create_links(self) -> None:
        assert self._mininet is not None
        lines = []
        for number, link in enumerate(self.topology.links, 1):
            ports = {port.node: port.interface for port in self._by_link[link.name]}
            names = [ports.get(end) or self.wiring.switch_port(link) or "" for end in link.ends]
            macs = [_mac(side, number) for side in range(2)]
            self._mininet.addLink(
                *link.ends,
                intfName1=names[0],
                intfName2=names[1],
                addr1=macs[0],
                addr2=macs[1],
            )
            ends = [
                f"{name} address {mac} group {0 if end in ports else GROUP} netns {self.pid(end)}"
                for name, mac, end in zip(names, macs, link.ends, strict=True)
            ]
            lines.append(f"link add name {ends[0]} type veth peer name {ends[1]}")
        self._made = set(self._in_run())
        network_batch.batch("ip", lines, "the links")

    def _configure_switches(self) -> None:
        lines = []
        for switch in self.topology.switches:
            snooping = int(switch.multicast_snooping)
            lines.append(
                f"link add name {switch.name} group {GROUP} type bridge stp_state 0 "
                f"mcast_snooping {snooping}"
            )
        ports = self._switch_ports()
        for port, link in ports.items():
            mtu = f" mtu {link.mtu}" if link.mtu else ""
            lines.append(f"link set {port} master {link.ends[1]}{mtu} up")
        lines += [f"link set dev {switch.name} up" for switch in self.topology.switches]
        network_batch.batch("ip", lines, _SWITCHES)
        network_queues.configure(ports, _SWITCHES)

    def _switch_ports(self) -> Mapping[str, Link]:
        found = {self.wiring.switch_port(link): link for link in self.topology.links}
        return {port: link for port, link in found.items() if port is not None}

    def _configure_nodes(self) -> None:
        if self._with_xfrm:
            self._probe_xfrm()
        for node in self.topology.nodes:
            if node.kind is NodeKind.SWITCH:
                continue
            links = {
                port.interface: self.topology.links[port.link]
                for port in self.wiring.ports[node.name]
            }
            with self.namespace(node.name).entered():
                network_nodes.configure(self.wiring, node, with_xfrm=self.has_xfrm)
                network_queues.configure(links, node.name)

    def _probe_xfrm(self) -> None:
        """Find out once whether this kernel has xfrm interfaces."""
        if not self.topology.devices:
            return
        group = self.topology.group
        with self.namespace(self.topology.devices[0].name).entered():
            done = network_batch.attempt(
                "ip", [f"link add {XFRM} type xfrm dev {BLACK} if_id {group.if_id}"]
            )
            if done.returncode == 0:
                network_batch.batch("ip", [f"link del {XFRM}"], "the probe")
                self.has_xfrm = True
            else:
                said = done.stderr.strip().splitlines()
                self.xfrm_reason = f"the kernel has no xfrm interfaces ({said[0] if said else '?'})"

    def _verify_switches(self) -> None:
        ports = self._switch_ports()
        if not ports:
            return
        (links,) = network_batch.json_values(network_batch.batch("ip", ["link show"], _SWITCHES))
        by_name = {link["ifname"]: link for link in links}
        for port, link in ports.items():
            entry = by_name.get(port, {})
            if entry.get("master") != link.ends[1] or "LOWER_UP" not in entry.get("flags", []):
                raise NetworkError(f"cable {port} is not plugged into {link.ends[1]}")
            if link.mtu is not None and entry.get("mtu") != link.mtu:
                raise NetworkError(f"{port} has MTU {entry.get('mtu')}, asked for {link.mtu}")


def _mac(side: int, number: int) -> str:
    """Return a locally administered address that is the same in every run."""
    return f"02:00:00:{side:02x}:{number >> 8:02x}:{number & 255:02x}"

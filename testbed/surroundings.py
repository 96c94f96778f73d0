"""What a network has beside its IPsec devices: black routers, red multicast proxies, clients.

The routers start to converge as soon as the network stands, while the devices' daemons are loaded;
`Surroundings.wait_ready` then waits for what is left. Proxies forward red multicast between the
tunnel and the red LANs (docs/mproxy.md): one in every device that has a red LAN, one in every LAN
router.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any, Final

from protocol.daemon.nursery import Nursery
from testbed.errors import TestbedError
from testbed.guard import BlackChannels
from testbed.network import XFRM, Network
from testbed.packets import RedEndpoint
from testbed.processes import ProcessTable
from testbed.proxies import Proxy, gateways_of, proxies_of
from testbed.redstreams import CLIENT_INTERFACE, RedStreams
from testbed.routing.base import Routing, RoutingOptions, RoutingReport
from testbed.routing.choose import make_routing
from testbed.routing.plan import router_plans
from testbed.spec import Node, Topology
from testbed.wait import wait_until

_PROXIES_DEADLINE_S: Final = 120.0


class Surroundings:
    """The routers, proxies and clients of a built network.

    Args:
        topology: of the network.
        network: built.
        directory: of the run, for configurations and logs; each part gets one of its own in it.
        routing: how the black routers route.

    Attributes:
        routing: the black routers, None in a network without.
        report: when the routers were seen ready, None before or without.
    """

    def __init__(
        self,
        topology: Topology,
        network: Network,
        directory: Path,
        routing: RoutingOptions | None = None,
    ) -> None:
        self.routing: Routing | None = None
        self.report: RoutingReport | None = None
        self._topology = topology
        self._network = network
        self._directory = directory
        self._options = routing
        self._proxies: dict[str, Proxy] = {}
        self._gateways: dict[str, Proxy] = {}
        self._stack = ExitStack()

    def start_routers(self, processes: ProcessTable) -> None:
        """Start the routers' daemons; they converge while other things are done."""
        routers = self._topology.routers
        if not routers:
            return
        self.routing = make_routing(
            router_plans(self._topology),
            {node.name: self._network.namespace(node.name) for node in routers},
            self._network.pid,
            processes,
            self._directory / "routing",
            options=self._options,
        )
        self._stack.callback(self.routing.stop)
        self.routing.start()

    def start_proxies(
        self,
        processes: ProcessTable,
        nursery: Nursery | None,
        *,
        tunnel: str = XFRM,
        channels: BlackChannels | None = None,
    ) -> None:
        """Start the proxies' daemons.

        Args:
            processes: of the run.
            nursery: forks them if there is one.
            tunnel: the devices' interface by which red packets leave them; empty: there is none,
                and there are no proxies.
            channels: the daemons' groups on the black network; None: the usual ones.
        """
        for proxy in proxies_of(
            self._topology, self._directory / "mproxy", tunnel=tunnel, channels=channels
        ):
            proxy.launch(self._network, processes, nursery)
            self._proxies[proxy.node] = proxy
        for gateway in gateways_of(self._topology, self._directory):
            gateway.launch(self._network, processes, nursery)
            self._gateways[gateway.node] = gateway

    def wait_ready(self) -> None:
        """Wait until the routers route and the proxies answer.

        Raises:
            TestbedError: who lacks what.
        """
        if self.routing is not None:
            self.report = self.routing.wait_ready()
        self.wait_proxies()

    def revive(self, node: str, processes: ProcessTable, nursery: Nursery | None) -> None:
        """Start a node's proxy or gatewayd again if it was killed; `wait_proxies` waits for it."""
        for daemon in (self._proxies.get(node), self._gateways.get(node)):
            if daemon is not None and daemon.process not in processes:
                daemon.launch(self._network, processes, nursery)

    def wait_proxies(self) -> None:
        """Wait until all proxies and gateways answer.

        Raises:
            TestbedError: one does not.
        """
        daemons = (*self._proxies.values(), *self._gateways.values())
        wait_until(
            lambda: all(daemon.is_up() for daemon in daemons),
            _PROXIES_DEADLINE_S,
            lambda: (
                "no answer from "
                + ", ".join(daemon.process for daemon in daemons if not daemon.is_up())
            ),
        )

    def wait_group(self, group: IPv6Address) -> None:
        """Wait until MLD and PIM know a group wherever there are devices.

        Raises:
            TestbedError: which router lacks what.
        """
        if self.routing is not None:
            self.report = self.routing.wait_ready([group])

    def proxy(self, node: str) -> Proxy:
        """Return the multicast proxy of a device or LAN router."""
        return self._proxies[node]

    def gateway(self, node: str) -> Proxy:
        """Return the gatewayd of a gateway."""
        return self._gateways[node]

    def endpoint(
        self,
        client: Node,
        version: int = 6,
        *,
        group: IPv4Address | IPv6Address | None = None,
        listening: bool = True,
    ) -> RedEndpoint:
        """Open the sockets of a client's packet check; the caller closes them."""
        own = client.red if version == 6 else client.red4
        assert own is not None, f"{client.name} has no IPv{version}"
        namespace = self._network.namespace(client.name)
        return RedEndpoint(namespace, own.ip, CLIENT_INTERFACE, group=group, listening=listening)

    def streams(self, processes: ProcessTable) -> RedStreams:
        """Return what starts streams of red multicast between clients; the caller closes it."""
        return RedStreams(self._network, processes, self._directory / "streams")

    def status(self) -> dict[str, Any]:
        """Return how routers and proxies are doing.

        Keys: ``routers`` (name -> a few words), ``proxies`` (node -> ``groups`` that are listened
        to, ``flows`` forwarded, or ``error``), ``gateways`` (node -> for whom it speaks in which
        partition, or ``error``).
        """
        return {
            "routers": {} if self.routing is None else self.routing.summary(),
            "proxies": {node: _brief(proxy) for node, proxy in self._proxies.items()},
            "gateways": {node: _spoken(gateway) for node, gateway in self._gateways.items()},
        }

    def facts(self) -> dict[str, Any]:
        """Return what a manifest says about them."""
        return {
            "routing": None if self.routing is None else dict(self.routing.facts()),
            "convergence": None if self.report is None else self.report.as_json(),
            "proxies": sorted(self._proxies),
            "gateways": sorted(self._gateways),
        }

    def keep(self, target: Path) -> None:
        """Copy configurations and logs."""
        for name in ("routing", "mproxy", *self._gateways):
            source = self._directory / name
            if source.is_dir():
                shutil.copytree(source, target / name, dirs_exist_ok=True, ignore=_sockets)

    def stop(self) -> None:
        """Stop the routers; the proxies are the run's processes and end with them."""
        self._stack.close()


def _brief(proxy: Proxy) -> dict[str, Any]:
    try:
        status = proxy.status()
    except TestbedError as error:
        return {"error": str(error)}
    groups = {group["group"] for port in status["downstream"] for group in port["groups"]}
    return {"groups": len(groups), "flows": len(status["flows"])}


def _spoken(gateway: Proxy) -> dict[str, Any]:
    try:
        status = gateway.status()
    except TestbedError as error:
        return {"error": str(error)}
    return {leg["partition"]: leg["speaks_for"] for leg in status["legs"]}


def _sockets(folder: str, names: list[str]) -> set[str]:
    """Tell `shutil.copytree` what cannot be copied."""
    return {name for name in names if not _plain(Path(folder, name))}


def _plain(path: Path) -> bool:
    return path.is_dir() or path.is_file()


def lans(topology: Topology) -> Mapping[str, tuple[Node, ...]]:
    """Return the clients of each device's red LANs, by the device's name."""
    return {
        device.name: tuple(
            node for node in topology.clients if node.name in topology.red_part([device.name])
        )
        for device in topology.devices
    }

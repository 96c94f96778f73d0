"""The multicast proxies (mproxyd) of a network: which nodes need one, what each is told."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from protocol.core.errors import LocalError
from protocol.daemon import launch
from protocol.daemon.control import request
from protocol.daemon.nursery import Nursery, NurseryError
from testbed.device import ANSWER_TIMEOUT_S, NurseryChild
from testbed.errors import TestbedError
from testbed.guard import BlackChannels
from testbed.network import XFRM, Network
from testbed.processes import ProcessTable
from testbed.spec import NodeKind, Topology
from testbed.wiring import EVERYTHING, RED, Port, Prefix, Wiring


@dataclass(frozen=True, slots=True)
class Proxy:
    """A daemon that a node has one of: mproxyd, or a gateway's gatewayd.

    Attributes:
        node: whose it is.
        directory: its run directory: control socket, trace, log.
        config: its TOML file's text.
        daemon: which.
    """

    node: str
    directory: Path
    config: str
    daemon: str = launch.PROXY

    def launch(
        self, network: Network, processes: ProcessTable, nursery: Nursery | None = None
    ) -> None:
        """Write the file and start the daemon in the node's namespaces; also again after a kill."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        (self.directory / f"{self.daemon}.sock").unlink(missing_ok=True)
        file = self.directory.with_suffix(".toml")
        file.write_text(self.config, encoding="utf-8")
        name, output = self.process, self.directory / f"{self.daemon}.out"
        pid = network.pid(self.node)
        if nursery is None:
            processes.start(
                name,
                launch.command(self.daemon, file, "--exit-with-parent"),
                output=output,
                node_pid=pid,
                environment=launch.environment(),
            )
            return
        try:
            child = nursery.spawn(self.daemon, file, namespace=pid, output=output)
        except NurseryError as error:
            raise TestbedError(f"cannot start {name}: {error}") from None
        processes.adopt(name, NurseryChild(nursery, child), output=output)

    @property
    def process(self) -> str:
        """Return its name in the run's process table."""
        return f"{self.node}/{self.daemon}"

    def is_up(self) -> bool:
        """Return whether it has opened its control socket."""
        return (self.directory / f"{self.daemon}.sock").exists()

    def status(self) -> dict[str, Any]:
        """Ask it for its status.

        Raises:
            TestbedError: it does not answer.
        """
        socket = self.directory / f"{self.daemon}.sock"
        try:
            return request(socket, {"cmd": "status"}, ANSWER_TIMEOUT_S)
        except LocalError as error:
            raise TestbedError(f"{self.node}/{self.daemon}: {error}") from None


def proxies_of(
    topology: Topology,
    directory: Path,
    *,
    tunnel: str = XFRM,
    channels: BlackChannels | None = None,
) -> list[Proxy]:
    """Return the proxies a network needs: of every device with a red LAN, of every LAN router.

    Args:
        topology: of the network.
        directory: each proxy's files go to a directory below it.
        tunnel: the devices' interface by which red packets leave them; empty: there is none.
        channels: the daemons' groups on the black network, which never pass; None: the usual ones.
    """
    if not tunnel:
        return []
    channels = channels or BlackChannels.of({}, {})
    black_groups = (topology.group.black_group, channels.idp_group, channels.mike_group)
    wiring = Wiring(topology)
    found = []
    for node in topology.nodes:
        if node.kind is NodeKind.DEVICE:
            downstream = [port for port in wiring.ports[node.name] if port.interface == RED]
            settings: dict[str, Any] = {
                "upstream": tunnel,
                "signal_upstream": False,
                "never": [f"{group}/128" for group in black_groups],
            }
        elif node.kind is NodeKind.LAN_ROUTER:
            upstream = wiring.upstream(node.name)
            if upstream is None:
                continue
            downstream = [port for port in wiring.ports[node.name] if port is not upstream]
            settings = {"upstream": upstream.interface}
        else:
            continue
        if downstream:
            home = directory / node.name
            config = _render(node.name, home, settings, _prefixes(wiring, downstream))
            found.append(Proxy(node.name, home, config))
    return found


def gateways_of(topology: Topology, directory: Path) -> list[Proxy]:
    """Return the gatewayd of each gateway.

    Args:
        topology: of the network.
        directory: of the run, where the legs' files are; gatewayd's go below it too.
    """
    wiring = Wiring(topology)
    found = []
    for node in topology.gateways:
        home = directory / node.name
        lines = ["[device]", f"name = {json.dumps(node.name)}"]
        lines += [f"run_directory = {json.dumps(str(home))}", "[gateway]"]
        for leg in topology.legs:
            if leg.host == node.name:
                lines += [
                    "[[gateway.leg]]",
                    f"partition = {json.dumps(wiring.partition(leg.name))}",
                    f"config = {json.dumps(str(directory / f'{leg.name}.toml'))}",
                ]
        found.append(Proxy(node.name, home, "\n".join(lines) + "\n", launch.GATEWAY))
    return found


def _prefixes(wiring: Wiring, ports: Iterable[Port]) -> dict[str, list[Prefix]]:
    """Return which red prefixes lie behind each interface: its own and those routed there."""
    return {
        port.interface: [
            *(address.network for address in port.addresses),
            *(
                route.destination
                for route in wiring.routes(port.node)
                if route.interface == port.interface
                and route.destination not in EVERYTHING.values()
            ),
        ]
        for port in ports
    }


def _render(
    name: str, home: Path, settings: dict[str, Any], downstreams: dict[str, list[Prefix]]
) -> str:
    """Return the TOML file; strings, booleans and lists of strings are JSON's."""
    lines = ["[device]", f"name = {json.dumps(name)}", f"run_directory = {json.dumps(str(home))}"]
    lines.append("[mproxy]")
    lines += [f"{key} = {json.dumps(value)}" for key, value in settings.items()]
    for interface, prefixes in downstreams.items():
        lines += ["[[mproxy.downstream]]", f"interface = {json.dumps(interface)}"]
        lines.append(f"prefixes = {json.dumps([str(prefix) for prefix in prefixes])}")
    return "\n".join(lines) + "\n"

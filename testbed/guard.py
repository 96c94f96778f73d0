"""Puts the fail-closed guard (docs/guard.md) into a device's namespace, and reads its counters.

`Fence` is what `testbed.network.Network` calls for every device before any interface is up.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Any, Final

from protocol.daemon.config import IDP_GROUP, IDP_PORT, MIKE_GROUP, MIKE_PORT
from protocol.guard.ruleset import RED_DROPS, TABLE, UNIQUE_LOCAL, GuardRules, chains, ruleset
from testbed.errors import TestbedError
from testbed.namespaces import NetNamespace
from testbed.network_nodes import xfrm_interface
from testbed.spec import Address, Node, NodeKind, Topology, gateway_legs
from testbed.wiring import RED, black_interface

__all__ = [
    "RED_DROPS",
    "BlackChannels",
    "Fence",
    "GuardError",
    "install",
    "read_drops",
    "red_drops",
    "red_networks",
]

_TIMEOUT_S: Final = 30.0


class GuardError(TestbedError):
    """The guard could not be installed, or is not what was asked for."""


@dataclass(frozen=True, slots=True)
class BlackChannels:
    """Groups and ports of the daemons on the black network, as their TOML files say or default."""

    idp_group: IPv6Address
    idp_port: int
    mike_group: IPv6Address
    mike_port: int

    @classmethod
    def of(cls, idp: Mapping[str, Any], mike: Mapping[str, Any]) -> BlackChannels:
        """Return what sections ``[idp]`` and ``[mike]`` make of the defaults."""
        return cls(
            IPv6Address(idp.get("group", IDP_GROUP)),
            int(idp.get("port", IDP_PORT)),
            IPv6Address(mike.get("group", MIKE_GROUP)),
            int(mike.get("port", MIKE_PORT)),
        )


@dataclass(frozen=True, slots=True)
class Fence:
    """Fences devices of one topology.

    Attributes:
        topology: whose devices.
        idp: values of section ``[idp]`` that differ from the defaults.
        mike: the same of ``[mike]``.
        extra_udp_ports: more UDP ports on the black address: the testbed's clock responder.
        echo: whether the black addresses answer ping.
    """

    topology: Topology
    idp: Mapping[str, Any] = field(default_factory=dict)
    mike: Mapping[str, Any] = field(default_factory=dict)
    extra_udp_ports: tuple[int, ...] = ()
    echo: bool = True

    def rules(self, node: Node) -> GuardRules:
        """Return what the guard of this device, or of this leg of a gateway, must know."""
        assert node.black is not None, f"{node.name} is no device"
        channels = BlackChannels.of(self.idp, self.mike)
        outside = [
            network
            for network in red_networks(self.topology)
            if isinstance(network, IPv6Network) and not network.subnet_of(UNIQUE_LOCAL)
        ]
        return GuardRules(
            black_address=node.black.ip,
            idp_port=channels.idp_port,
            mike_port=channels.mike_port,
            idp_group=channels.idp_group,
            mike_group=channels.mike_group,
            black_group=self.topology.group.black_group,
            red_prefixes=(UNIQUE_LOCAL, *outside),
            extra_udp_ports=self.extra_udp_ports,
            echo=self.echo,
            black=black_interface(node.leg),
            tunnel=xfrm_interface(node.leg),
            red=() if node.host is not None else (RED,),
        )

    def __call__(self, namespace: NetNamespace, node: Node) -> None:
        """Install the guard in a device's or gateway's namespace."""
        legs = gateway_legs(node, self.topology.links)
        members = (node,) if node.kind is NodeKind.DEVICE else tuple(legs)
        install(namespace, *(self.rules(member) for member in members))


def red_networks(topology: Topology) -> tuple[IPv6Network | IPv4Network, ...]:
    """Return the networks of the red side of a topology, in the order of its nodes."""
    addresses: list[Address] = []
    for node in topology.nodes:
        addresses += node.red_addresses
        if node.kind is NodeKind.LAN_ROUTER:
            addresses += [address for those in node.towards.values() for address in those]
    return tuple(dict.fromkeys(address.network for address in addresses))


def install(namespace: NetNamespace, *legs: GuardRules) -> None:
    """Load the guard into a namespace in one transaction and read it back.

    Args:
        namespace: of a device, or of a gateway.
        legs: the device's rules, or those of each leg of the gateway.

    Raises:
        GuardError: the kernel has no nf_tables, or what is there is not what was asked for.
    """
    _nft(namespace, ("-f", "-"), ruleset(*legs))
    _verify(namespace, legs)


def read_drops(namespace: NetNamespace) -> dict[str, int]:
    """Return the packets dropped so far, by reason (the names in docs/guard.md).

    Raises:
        GuardError: there is no guard.
    """
    drops = {
        str(item["counter"]["name"]): int(item["counter"]["packets"])
        for item in _listing(namespace)
        if item.get("counter", {}).get("table") == TABLE
    }
    if not drops:
        raise GuardError(f"{namespace.name} has no guard: its network was built without a fence")
    return drops


def red_drops(namespace: NetNamespace) -> int:
    """Return how many packets the guard has kept from carrying something red onto the wire."""
    drops = read_drops(namespace)
    return sum(drops[name] for name in RED_DROPS)


def _verify(namespace: NetNamespace, legs: Sequence[GuardRules]) -> None:
    listing = _listing(namespace)
    for chain in chains(*legs):
        where = {"family": chain.family, "table": TABLE}
        wanted = {**where, "name": chain.hook, "hook": chain.hook, "policy": chain.policy}
        there = any(wanted.items() <= item["chain"].items() for item in listing if "chain" in item)
        mine = {**where, "chain": chain.hook}
        count = sum(mine.items() <= item["rule"].items() for item in listing if "rule" in item)
        if not there or count != len(chain.rules):
            raise GuardError(
                f"{namespace.name}: the guard's chain {chain.family} {chain.hook} has {count} of "
                f"{len(chain.rules)} rules, or not its policy; does the kernel have all of "
                "nf_tables? use --env vm"
            )


def _listing(namespace: NetNamespace) -> list[dict[str, Any]]:
    answer = json.loads(_nft(namespace, ("-j", "list", "ruleset")))
    return [item for item in answer["nftables"] if isinstance(item, dict)]


def _nft(namespace: NetNamespace, arguments: tuple[str, ...], text: str = "") -> str:
    try:
        with namespace.entered():
            done = subprocess.run(
                ["nft", *arguments],
                input=text,
                capture_output=True,
                text=True,
                check=False,
                timeout=_TIMEOUT_S,
            )
    except FileNotFoundError:
        raise GuardError("nft is not installed (package nftables); run 'make setup'") from None
    except subprocess.TimeoutExpired:
        raise GuardError(f"{namespace.name}: nft did not end within {_TIMEOUT_S:g} s") from None
    if done.returncode != 0:
        said = next((line for line in done.stderr.splitlines() if line.strip()), "unknown reason")
        raise GuardError(
            f"{namespace.name}: the guard cannot be installed or read ({said.strip()}); "
            "it needs root and a kernel with nf_tables: use --env vm"
        )
    return done.stdout

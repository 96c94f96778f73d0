"""A tunnel without IPsec, to compare with: red packets cross the black network in clear text.

In place of the xfrm interface each device gets a GRE tunnel (RFC 2784, RFC 7676) from its black
address to the group of the ESP packets: the same packets take the same way, behind one more header
instead of ESP. Nothing protects them. Only a measurement asks for it.
"""

from __future__ import annotations

from typing import Final

from testbed.network import BLACK, Network
from testbed.network_batch import batch

CLEAR: Final = "clear0"
"""The tunnel's interface in a device."""


def open_tunnels(network: Network) -> None:
    """Give every device of a built network its clear-text tunnel.

    Raises:
        NetworkError: the kernel has no GRE over IPv6, or refused.
    """
    group = network.topology.group
    for node in network.topology.devices:
        assert node.black is not None
        lines = [
            f"link add {CLEAR} type ip6gre local {node.black.ip} remote {group.black_group} "
            f"dev {BLACK} encaplimit none hoplimit 64",
            f"link set {CLEAR} addrgenmode none mtu {group.mtu} multicast on up",
        ]
        with network.namespace(node.name).entered():
            batch("ip", lines, node.name)

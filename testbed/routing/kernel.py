"""What the kernel of a namespace says about its routes, read without starting a process."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv6Network
from pathlib import Path
from typing import Final

from testbed.errors import TestbedError
from testbed.namespaces import NetNamespace, set_interface_up, write_sysctl

MIFS_MAX: Final = 32  # MAXMIFS of linux/mroute6.h

_RTF_REJECT: Final = 0x0200  # linux/route.h

_ROUTES: Final = Path("/proc/thread-self/net/ipv6_route")
_MIFS: Final = Path("/proc/thread-self/net/ip6_mr_vif")


class RoutingError(TestbedError):
    """The routers cannot be set up as planned."""


def routed(namespace: NetNamespace) -> set[tuple[str, str]]:
    """Return the destinations of the namespace's unicast routes, as `as_listed` writes them."""
    with namespace.entered():
        text = _ROUTES.read_text(encoding="ascii")
    present = set()
    for line in text.splitlines():
        destination, length, *_, flags, _interface = line.split()
        if not int(flags, 16) & _RTF_REJECT:
            present.add((destination, length))
    return present


def as_listed(network: IPv6Network) -> tuple[str, str]:
    """Return a prefix the way the kernel lists it: address and length in hexadecimal."""
    return f"{int(network.network_address):032x}", f"{network.prefixlen:02x}"


def multicast_interfaces(namespace: NetNamespace) -> set[str]:
    """Return the interfaces on which the kernel routes multicast; empty without ``ip6_mr_vif``."""
    with namespace.entered():
        try:
            lines = _MIFS.read_text(encoding="ascii").splitlines()
        except FileNotFoundError:
            return set()
    return {line.split()[1] for line in lines[1:]}


def keep_addresses(namespace: NetNamespace) -> None:
    """Have interfaces keep their global addresses while they are down, as routers do."""
    with namespace.entered():
        write_sysctl("net/ipv6/conf/all/keep_addr_on_down", 1)


def take_down(namespace: NetNamespace, interfaces: Iterable[str]) -> None:
    """Take interfaces down, as when the power goes."""
    with namespace.entered():
        for name in interfaces:
            set_interface_up(name, up=False)

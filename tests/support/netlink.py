"""Routes, addresses and carriers of a network namespace, read by pyroute2.

The daemons encode routes themselves, because they are on a measured path, and the testbed sets its
links by ``ip``: what either has made is read back here by code that is neither's
(docs/decisions/0005-links-by-ip-batch.md). All functions look into the calling thread's namespace.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface

from pyroute2 import IPRoute

MAIN_TABLE = 254
STATIC, OSPF = 4, 188
"""Marks of routes: RTPROT_STATIC and RTPROT_OSPF (linux/rtnetlink.h)."""


def routes(
    *, protocol: int | None = None, table: int = MAIN_TABLE
) -> dict[IPv4Network | IPv6Network, str]:
    """Return the unicast routes, each with its interface.

    Args:
        protocol: only those that carry this mark (``rtm_protocol``).
        table: of the routes.
    """
    found = {}
    with IPRoute() as netlink:
        names = {link["index"]: link.get("ifname") for link in netlink.get_links()}
        for family in (socket.AF_INET, socket.AF_INET6):
            whole = "0.0.0.0" if family == socket.AF_INET else "::"
            for route in netlink.get_routes(family=family, table=table):
                if protocol in (None, route["proto"]):
                    to = f"{route.get('dst') or whole}/{route['dst_len']}"
                    found[ip_interface(to).network] = names[route.get("oif")]
    return found


def addresses(interface: str, *, link_local: bool = True) -> set[IPv4Interface | IPv6Interface]:
    """Return the addresses of an interface that are usable now, link-local ones if wanted."""
    with IPRoute() as netlink:
        (index,) = netlink.link_lookup(ifname=interface)
        found = {
            ip_interface(f"{entry.get('address')}/{entry['prefixlen']}")
            for entry in netlink.get_addr(index=index)
            if not entry.get("flags", entry["flags"]) & _UNUSABLE
        }
    return {one for one in found if link_local or not one.ip.is_link_local}


_UNUSABLE = 0x40 | 0x08
"""IFA_F_TENTATIVE, IFA_F_DADFAILED (linux/if_addr.h)."""


def has_carrier(interface: str) -> bool:
    """Return whether an interface is up and its cable plugged in."""
    with IPRoute() as netlink:
        (link,) = netlink.get_links(ifname=interface)
        return link.get("carrier") == 1

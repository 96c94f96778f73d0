"""Membership of the black interface in multicast groups: as a whole, or source by source.

A group of the range ff3x::/32 is source-specific (RFC 4607): it is joined for each device whose
certificate we hold. Routers then build every device's tree before it says its first word. Of other
groups they learn the sources from the packets: a new source's first ones go through the rendezvous
point, and Linux with FRR loses the very first there (docs/EXPERIMENTS.md).
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address

from protocol.core.errors import LocalError

Sources = Callable[[], Iterable[IPv6Address]]
"""Black addresses of the other devices that are known, asked at every joining."""

# Linux values that the socket module of Python 3.11 does not name.
MCAST_JOIN_GROUP = 42
MCAST_BLOCK_SOURCE = 43
MCAST_LEAVE_GROUP = 45
MCAST_JOIN_SOURCE_GROUP = 46
MCAST_LEAVE_SOURCE_GROUP = 47


def is_source_specific(group: IPv6Address) -> bool:
    """Return whether a group is in ff3x::/32 (RFC 4607): joined per source, without the RP."""
    number = int(group)
    return number >> 116 == 0xFF3 and number >> 96 & 0xFFFF == 0


def join(
    sock: socket.socket,
    index: int,
    group: IPv6Address,
    sources: Iterable[IPv6Address],
    *,
    without: IPv6Address | None = None,
) -> None:
    """Make a socket a member of a group on an interface.

    Args:
        sock: of IPv6.
        index: of the interface.
        group: if it is source-specific, only these sources are joined.
        sources: black addresses of the other devices.
        without: a source that is blocked in any case.

    Raises:
        LocalError: the kernel refuses; one line with cause and cure.
    """
    where = struct.pack("@I4x", index) + sockaddr(group)
    try:
        if is_source_specific(group):
            for source in sources:
                if source != without:
                    _set(sock, MCAST_JOIN_SOURCE_GROUP, where + sockaddr(source))
            return
        _set(sock, MCAST_JOIN_GROUP, where)
        if without is not None:
            _set(sock, MCAST_BLOCK_SOURCE, where + sockaddr(without))
    except OSError as error:
        cure = ""
        if error.errno == errno.ENOBUFS:
            cure = " (more sources than the sysctl net.ipv6.mld_max_msf allows: raise it)"
        raise LocalError(f"cannot join {group}: {error.strerror}{cure}") from error


def leave(sock: socket.socket, index: int, group: IPv6Address) -> None:
    """Undo `join`, all sources at once; the kernel's refusal is passed on as OSError."""
    _set(sock, MCAST_LEAVE_GROUP, struct.pack("@I4x", index) + sockaddr(group))


def _set(sock: socket.socket, option: int, value: bytes) -> None:
    sock.setsockopt(socket.IPPROTO_IPV6, option, value)


def sockaddr(address: IPv4Address | IPv6Address) -> bytes:
    """Return the address as a ``struct sockaddr_storage``."""
    if isinstance(address, IPv4Address):
        return struct.pack("=HH4s", socket.AF_INET, 0, address.packed).ljust(128, b"\0")
    return struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, address.packed, 0).ljust(128, b"\0")

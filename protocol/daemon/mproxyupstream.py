"""The upstream side: what we have joined there, and whether IPv4 can come from there."""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from pathlib import Path

from protocol.daemon.memberships import (
    MCAST_JOIN_GROUP,
    MCAST_JOIN_SOURCE_GROUP,
    MCAST_LEAVE_GROUP,
    MCAST_LEAVE_SOURCE_GROUP,
    sockaddr,
)
from protocol.daemon.sockets import interface_index
from protocol.mproxy.messages import Address


class UpstreamMemberships:
    """What we have joined upstream; the kernel reports it by MLD and IGMP.

    Linux bounds the memberships and sources of one socket (``igmp_max_memberships``,
    ``igmp_max_msf``, ``mld_max_msf``, ``optmem_max``), so there are several; and a socket cannot
    have a group as a whole and by sources at once, so there are two kinds.

    Attributes:
        counters: what could not be joined, by reason.
    """

    def __init__(self, interface: str) -> None:
        self.counters: Counter[str] = Counter()
        self._index = interface_index(interface)
        self._pools: dict[tuple[int, bool], list[socket.socket]] = {}
        self._holders: dict[tuple[Address, Address | None], socket.socket] = {}

    def join(self, group: Address, source: Address | None) -> None:
        """Join a group, or a source of it; a refusal is counted."""
        pool = self._pools.setdefault((group.version, source is None), [])
        option = MCAST_JOIN_GROUP if source is None else MCAST_JOIN_SOURCE_GROUP
        last: OSError | None = None
        for position in range(len(pool) + 1):
            try:
                if position == len(pool):
                    pool.append(_datagram(group.version))
                self._set(pool[position], option, group, source)
            except OSError as error:
                last = error
                if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                    break
            else:
                self._holders[(group, source)] = pool[position]
                return
        assert last is not None
        name = errno.errorcode.get(last.errno or 0, "unknown")
        self.counters[f"mproxy.join_failed.{name}"] += 1

    def leave(self, group: Address, source: Address | None) -> None:
        """Undo a `join`; no error if it had failed, or the interface is gone."""
        holder = self._holders.pop((group, source), None)
        if holder is None:
            return
        option = MCAST_LEAVE_GROUP if source is None else MCAST_LEAVE_SOURCE_GROUP
        try:
            self._set(holder, option, group, source)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown")
            self.counters[f"mproxy.leave_failed.{name}"] += 1

    def _set(
        self, sock: socket.socket, option: int, group: Address, source: Address | None
    ) -> None:
        level = socket.IPPROTO_IP if group.version == 4 else socket.IPPROTO_IPV6
        request = struct.pack("@I4x", self._index) + sockaddr(group)
        sock.setsockopt(level, option, request if source is None else request + sockaddr(source))

    def close(self) -> None:
        """Leave all; idempotent."""
        for pool in self._pools.values():
            for sock in pool:
                sock.close()
        self._pools.clear()
        self._holders.clear()


def _datagram(version: int) -> socket.socket:
    family = socket.AF_INET if version == 4 else socket.AF_INET6
    return socket.socket(family, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)


def check_reverse_path_filter(interface: str) -> str:
    """Return a warning if the kernel's own filter will drop IPv4 multicast, or an empty string.

    Values of ``rp_filter``: 1 drops every source whose unicast route is not this interface
    (RFC 3704); a tunnel for multicast alone has no such routes. MPROXY-9 does the check.
    """
    values = []
    for name in ("all", interface):
        try:
            values.append(int(Path(f"/proc/sys/net/ipv4/conf/{name}/rp_filter").read_text()))
        except (OSError, ValueError):
            return ""
    if max(values) != 1:
        return ""
    return (
        f"IPv4 multicast from {interface} needs a unicast route to its source there:"
        f" net.ipv4.conf.all.rp_filter and net.ipv4.conf.{interface}.rp_filter must not be 1"
    )

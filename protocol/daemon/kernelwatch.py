"""Tells when somebody else has changed the SAD, the SPD or the routing table.

The kernel announces every change, ours too. A filter in the kernel drops what our own sockets
caused: the netlink port of who asked stands in each message (``c.portid`` in net/xfrm/xfrm_user.c,
``info->portid`` in net/ipv6/route.c). So writing SAs wakes nobody. What is announced is not even
read: the whole is read back in any case. So a small buffer does, and that it overflowed (ENOBUFS)
is one more reason to read back, and counted.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections import Counter
from collections.abc import Callable

from protocol.core.errors import LocalError
from protocol.daemon.sourcefilter import program

BUFFER_BYTES = 64 << 10
"""Of each socket (SO_RCVBUF, which Linux doubles): about a hundred changes at once."""

_READ_BYTES = 64 << 10
_NETLINK_XFRM = 6
_SO_ATTACH_FILTER = 26
_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP = 270, 1
_XFRM_GROUPS = (3, 4)
"""XFRMNLGRP_SA and XFRMNLGRP_POLICY (linux/xfrm.h)."""

_ROUTE_GROUPS = (7, 11)
"""RTNLGRP_IPV4_ROUTE and RTNLGRP_IPV6_ROUTE (linux/rtnetlink.h)."""

_PORT_OFFSET = 12
"""Of ``nlmsg_pid`` in ``struct nlmsghdr``."""

_BPF_LOAD, _BPF_EQUAL, _BPF_RETURN = 0x20, 0x15, 0x06
"""``BPF_LD | BPF_W | BPF_ABS``, ``BPF_JMP | BPF_JEQ | BPF_K``, ``BPF_RET | BPF_K``."""


class KernelWatch:
    """Listens to one netlink family.

    Args:
        family: NETLINK_XFRM or NETLINK_ROUTE.
        groups: multicast groups to listen to.
        own_port: netlink port of the socket through which we make changes.
        on_change: called when somebody else made one, or when that may be.

    Attributes:
        counters: ``kernel.changes`` (announcements of others' changes), ``kernel.overruns``.

    Raises:
        LocalError: the kernel does not let us listen.
    """

    def __init__(
        self, family: int, groups: tuple[int, ...], own_port: int, on_change: Callable[[], None]
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._on_change = on_change
        try:
            self._socket = socket.socket(
                socket.AF_NETLINK,
                socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
                family,
            )
        except OSError as error:
            raise LocalError(f"cannot watch the kernel: {error.strerror}") from error
        code = program(
            (
                (_BPF_LOAD, 0, 0, _PORT_OFFSET),
                (_BPF_EQUAL, 0, 1, socket.htonl(own_port)),
                (_BPF_RETURN, 0, 0, 0),
                (_BPF_RETURN, 0, 0, 0xFFFFFFFF),
            )
        )
        packed = struct.pack("@HP", len(code), code.buffer_info()[0])
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, BUFFER_BYTES)
            self._socket.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, packed)
            self._socket.bind((0, 0))
            for group in groups:
                self._socket.setsockopt(_SOL_NETLINK, _NETLINK_ADD_MEMBERSHIP, group)
        except OSError as error:
            self._socket.close()
            raise LocalError(f"cannot watch the kernel: {error.strerror}") from error

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._socket.fileno()

    def readable(self) -> None:
        """Empty the socket; call back once if there was anything."""
        changes = 0
        for _ in range(1024):  # a flood must not keep us here
            try:
                _, sender = self._socket.recvfrom(_READ_BYTES)
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    self.counters[f"kernel.watch_failed.{os.strerror(error.errno or 0)}"] += 1
                    break
                self.counters["kernel.overruns"] += 1
                changes += 1
                continue
            if sender[0] == 0:  # from the kernel
                changes += 1
                self.counters["kernel.changes"] += 1
        if changes:
            self._on_change()

    def close(self) -> None:
        """Close; idempotent."""
        self._socket.close()


def watch_xfrm(own_port: int, on_change: Callable[[], None]) -> KernelWatch:
    """Return a watch over the SAD and SPD of our network namespace."""
    return KernelWatch(_NETLINK_XFRM, _XFRM_GROUPS, own_port, on_change)


def watch_routes(own_port: int, on_change: Callable[[], None]) -> KernelWatch:
    """Return a watch over the routes of our network namespace."""
    return KernelWatch(socket.NETLINK_ROUTE, _ROUTE_GROUPS, own_port, on_change)

"""The kernel's multicast routers: who owns the socket owns forwarding in its network namespace.

Layouts and numbers are those of ``linux/mroute6.h`` and ``linux/mroute.h``. A router lives as long
as its socket: when the daemon dies, however it dies, its interfaces and routes are gone and nothing
is forwarded any more.
"""

from __future__ import annotations

import errno
import fcntl
import socket
import struct
import sys
from collections import Counter
from collections.abc import Sequence
from ipaddress import IPv4Address, IPv6Address

from protocol.core.errors import LocalError
from protocol.daemon.sockets import interface_index
from protocol.mproxy.events import FlowCount, FlowKey, Upcall
from protocol.mproxy.messages import Address

_INIT, _ADD_INTERFACE, _ADD_MFC, _DEL_MFC = 200, 202, 204, 205
"""MRT_INIT and so on; IPv4 and IPv6 use the same numbers."""

_NOCACHE = 1
"""IGMPMSG_NOCACHE, MRT6MSG_NOCACHE."""

_SIOCGETSGCNT = 0x89E1
"""SIOCGETSGCNT and SIOCGETSGCNT_IN6."""

_VIFF_USE_IFINDEX = 8
_ICMP6_FILTER = 1
_THRESHOLD = 1
"""A packet is forwarded if its hop limit is above this."""

_RECEIVE_BYTES_MAX = 2048


class MulticastRouter:
    """What both families have in common.

    Attributes:
        counters: what the kernel refused, by reason.
        socket: the owner's socket.
    """

    level: int

    def __init__(self, sock: socket.socket, interfaces: Sequence[str]) -> None:
        self.counters: Counter[str] = Counter()
        self.socket = sock
        self._names = tuple(interfaces)
        self._numbers = {name: number for number, name in enumerate(interfaces)}
        try:
            self._set(_INIT, struct.pack("@i", 1))
            for number, name in enumerate(interfaces):
                self._set(_ADD_INTERFACE, self._interface(number, interface_index(name)))
        except OSError as error:
            sock.close()
            if error.errno == errno.EADDRINUSE:
                raise LocalError(
                    "another program routes multicast in this network namespace:"
                    " stop it (pim6d, smcroute, another mproxyd)"
                ) from error
            raise LocalError(f"the kernel does not route multicast: {error.strerror}") from error
        except LocalError:
            sock.close()
            raise

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self.socket.fileno()

    def close(self) -> None:
        """Close: all interfaces and routes go; idempotent."""
        self.socket.close()

    def _set(self, option: int, value: bytes) -> None:
        self.socket.setsockopt(self.level, option, value)

    def set_route(self, key: FlowKey, interface: str, outs: Sequence[str]) -> None:
        """Install or change a route; a refusal is counted."""
        numbers = [self._numbers[name] for name in outs]
        try:
            self._set(_ADD_MFC, self._route(key, self._numbers[interface], numbers))
        except OSError as error:
            self._failed("set", error)

    def delete_route(self, key: FlowKey) -> None:
        """Remove a route; no error if it is gone."""
        try:
            self._set(_DEL_MFC, self._route(key, 0, ()))
        except OSError as error:
            if error.errno != errno.ENOENT:
                self._failed("delete", error)

    def _failed(self, what: str, error: OSError) -> None:
        name = errno.errorcode.get(error.errno or 0, "unknown")
        self.counters[f"mproxy.route_{what}_failed.{name}"] += 1

    def count(self, key: FlowKey) -> FlowCount | None:
        """Return a route's counters, or None if the kernel has no such route."""
        request = bytearray(self._count_request(key))
        try:
            fcntl.ioctl(self.socket.fileno(), _SIOCGETSGCNT, request)
        except OSError:
            return None
        packets, _, refused = struct.unpack_from("@3L", request, len(request) - _COUNTS.size)
        return FlowCount(packets, refused)

    def _upcall(self, kind: int, number: int, source: Address, group: Address) -> Upcall | None:
        """Return what the kernel asks; other kinds (`MRT6MSG_WRONGMIF`) need no answer.

        A route's interface follows from its source alone, so it never becomes wrong: packets from
        elsewhere are to be dropped, and the route's counters tell how many were.
        """
        if kind != _NOCACHE or number >= len(self._names):
            self.counters["mproxy.upcall_ignored"] += 1
            return None
        return Upcall(self._names[number], source, group)

    # What the families say differently.

    def _interface(self, number: int, index: int) -> bytes:
        raise AssertionError(self)

    def _route(self, key: FlowKey, interface: int, outs: Sequence[int]) -> bytes:
        raise AssertionError(self)

    def _count_request(self, key: FlowKey) -> bytes:
        raise AssertionError(self)


_COUNTS = struct.Struct("@3L")


class Ip6Router(MulticastRouter):
    """IPv6 (``net/ipv6/ip6mr.c``)."""

    level = socket.IPPROTO_IPV6

    def __init__(self, interfaces: Sequence[str]) -> None:
        sock = _raw(socket.AF_INET6, socket.IPPROTO_ICMPV6)
        # Nothing from the network, which MldSocket reads: upcalls do not pass this filter.
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, b"\xff" * 32)
        super().__init__(sock, interfaces)

    def receive(self) -> Upcall | None:
        """Return one upcall (``struct mrt6msg``), or None."""
        try:
            data = self.socket.recv(_RECEIVE_BYTES_MAX)
        except OSError:
            return None
        if len(data) < 40 or data[0] != 0:
            self.counters["mproxy.upcall_ignored"] += 1
            return None
        kind, number = data[1], int.from_bytes(data[2:4], sys.byteorder)
        return self._upcall(kind, number, IPv6Address(data[8:24]), IPv6Address(data[24:40]))

    def _interface(self, number: int, index: int) -> bytes:
        """Return ``struct mif6ctl``."""
        return struct.pack("@HBBHI", number, 0, _THRESHOLD, index, 0)

    def _route(self, key: FlowKey, interface: int, outs: Sequence[int]) -> bytes:
        """Return ``struct mf6cctl``."""
        bits = sum(1 << number for number in outs)
        addresses = _sockaddr6(key.source) + _sockaddr6(key.group)
        return addresses + struct.pack("@HxxI28x", interface, bits)

    def _count_request(self, key: FlowKey) -> bytes:
        """Return ``struct sioc_sg_req6``."""
        return _sockaddr6(key.source) + _sockaddr6(key.group) + bytes(_COUNTS.size)


class Ip4Router(MulticastRouter):
    """IPv4 (``net/ipv4/ipmr.c``); its socket also receives IGMP: see `IgmpSocket`."""

    level = socket.IPPROTO_IP

    def __init__(self, interfaces: Sequence[str]) -> None:
        super().__init__(_raw(socket.AF_INET, socket.IPPROTO_IGMP), interfaces)

    def upcall(self, data: bytes) -> Upcall | None:
        """Return the upcall in a packet whose IP protocol is 0 (``struct igmpmsg``)."""
        number = data[10] | data[11] << 8
        return self._upcall(data[8], number, IPv4Address(data[12:16]), IPv4Address(data[16:20]))

    def _interface(self, number: int, index: int) -> bytes:
        """Return ``struct vifctl``."""
        return struct.pack("@HBBIi4x", number, _VIFF_USE_IFINDEX, _THRESHOLD, 0, index)

    def _route(self, key: FlowKey, interface: int, outs: Sequence[int]) -> bytes:
        """Return ``struct mfcctl``."""
        thresholds = bytearray(32)
        for number in outs:
            thresholds[number] = _THRESHOLD
        packed = key.source.packed, key.group.packed, interface, bytes(thresholds)
        return struct.pack("@4s4sH32s2x16x", *packed)

    def _count_request(self, key: FlowKey) -> bytes:
        """Return ``struct sioc_sg_req``."""
        return key.source.packed + key.group.packed + bytes(_COUNTS.size)


def _raw(family: int, protocol: int) -> socket.socket:
    kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    try:
        return socket.socket(family, kind, protocol)
    except PermissionError as error:
        raise LocalError("multicast routing needs root (CAP_NET_ADMIN, CAP_NET_RAW)") from error


def _sockaddr6(address: Address) -> bytes:
    """Return ``struct sockaddr_in6``."""
    return struct.pack("@HHI16sI", socket.AF_INET6, 0, 0, address.packed, 0)

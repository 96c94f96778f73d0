"""The sockets of MLD and IGMP: reports and queries in, queries out.

A socket here never raises for what the network did; what cannot be sent is counted. The messages'
bytes are the engine's business, what surrounds them (hop limit, router alert, interface) is read
here.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Iterable
from ipaddress import IPv4Address, IPv6Address

from protocol.daemon.mproxykernel import Ip4Router
from protocol.daemon.sockets import interface_index
from protocol.mproxy import igmp, mld
from protocol.mproxy.events import MessageReceived, Upcall
from protocol.mproxy.messages import Address

MESSAGE_BYTES_MAX = 9216
"""Largest packet read: the MTU of a jumbo frame."""

_ANCILLARY_BYTES_MAX = 512
_ICMP6_FILTER = 1
_IP_PKTINFO = 8
_IN6_PKTINFO = struct.Struct("@16sI")
_IN_PKTINFO = struct.Struct("@i4s4s")

_ROUTER_ALERT6 = bytes((0, 0, 5, 2, 0, 0, 1, 0))
"""Hop-by-hop options header: router alert with value 0 for MLD (RFC 2711), two bytes of padding."""

_ROUTER_ALERT4 = bytes((148, 4, 0, 0))
"""IPv4 option (RFC 2113)."""

_INTERNETWORK_CONTROL = 0xC0
"""Type of service of IGMP (RFC 3376 section 4)."""


class QuerySocket:
    """What both families have in common.

    Attributes:
        counters: what could not be sent, by reason.
    """

    def __init__(self, sock: socket.socket, interfaces: Iterable[str]) -> None:
        self.counters: Counter[str] = Counter()
        self._socket = sock
        self._names = {interface_index(name): name for name in interfaces}
        self._indexes = {name: index for index, name in self._names.items()}

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._socket.fileno()

    def send(self, interface: str, own: Address, destination: Address, payload: bytes) -> None:
        """Send a query from our address ``own``."""
        try:
            self._send(self._indexes[interface], own, destination, payload)
        except OSError as error:
            name = errno.errorcode.get(error.errno or 0, "unknown")
            self.counters[f"mproxy.send_failed.{name}"] += 1

    def _send(self, index: int, own: Address, destination: Address, payload: bytes) -> None:
        raise AssertionError(self)


class MldSocket(QuerySocket):
    """A raw ICMPv6 socket that hears MLD on the downstream interfaces."""

    def __init__(self, interfaces: Iterable[str]) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        sock = socket.socket(socket.AF_INET6, kind, socket.IPPROTO_ICMPV6)
        super().__init__(sock, interfaces)
        blocked = bytearray(b"\xff" * 32)
        words = memoryview(blocked).cast("I")
        for kind in (mld.QUERY, mld.REPORT_V1, mld.DONE, mld.REPORT_V2):
            words[kind >> 5] &= ~(1 << (kind & 31))
        sock.setsockopt(socket.IPPROTO_ICMPV6, _ICMP6_FILTER, bytes(blocked))
        for option in (socket.IPV6_RECVPKTINFO, socket.IPV6_RECVHOPLIMIT, socket.IPV6_RECVHOPOPTS):
            sock.setsockopt(socket.IPPROTO_IPV6, option, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_HOPOPTS, _ROUTER_ALERT6)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 1)
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
        for index in self._names:
            for group in (mld.ALL_ROUTERS, mld.ALL_MLDV2_ROUTERS):
                membership = group.packed + struct.pack("@I", index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)

    def close(self) -> None:
        """Close; idempotent."""
        self._socket.close()

    def receive(self) -> MessageReceived | None:
        """Return one message of a downstream interface, or None."""
        try:
            payload, ancillary, _, address = self._socket.recvmsg(
                MESSAGE_BYTES_MAX, _ANCILLARY_BYTES_MAX
            )
        except OSError:
            return None
        index, hop_limit, router_alert = 0, 0, False
        for level, kind, data in ancillary:
            if level != socket.IPPROTO_IPV6:
                continue
            if kind == socket.IPV6_PKTINFO:
                index = _IN6_PKTINFO.unpack_from(data)[1]
            elif kind == socket.IPV6_HOPLIMIT:
                hop_limit = int(struct.unpack_from("@i", data)[0])
            elif kind == socket.IPV6_HOPOPTS:
                router_alert = has_router_alert6(data)
        name = self._names.get(index)
        if name is None:
            return None
        source = IPv6Address(address[0].partition("%")[0])
        return MessageReceived(name, source, hop_limit, router_alert, payload)

    def _send(self, index: int, own: Address, destination: Address, payload: bytes) -> None:
        info = _IN6_PKTINFO.pack(own.packed, index)
        ancillary = [(socket.IPPROTO_IPV6, socket.IPV6_PKTINFO, info)]
        self._socket.sendmsg((payload,), ancillary, 0, (str(destination), 0, 0, index))


class IgmpSocket(QuerySocket):
    """The IPv4 multicast router's socket, which hears IGMP and the kernel's upcalls.

    The kernel gives IGMP that is addressed to a routed group to this very socket only.
    """

    def __init__(self, router: Ip4Router, interfaces: Iterable[str]) -> None:
        sock = router.socket
        super().__init__(sock, interfaces)
        self._router = router
        sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, _ROUTER_ALERT4)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, _INTERNETWORK_CONTROL)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_TTL, 1)
        sock.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_LOOP, 0)
        for index in self._names:
            for group in (igmp.ALL_ROUTERS, igmp.ALL_IGMPV3_ROUTERS):
                membership = group.packed + bytes(4) + struct.pack("@i", index)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    def receive(self) -> MessageReceived | Upcall | None:
        """Return one upcall, or one message of a downstream interface, or None."""
        try:
            packet, ancillary, _, _ = self._socket.recvmsg(MESSAGE_BYTES_MAX, _ANCILLARY_BYTES_MAX)
        except OSError:
            return None
        header_length = (packet[0] & 15) * 4 if packet else 0
        if not 20 <= header_length <= len(packet):
            return None
        if packet[9] == 0:
            return self._router.upcall(packet)
        index = 0
        for level, kind, data in ancillary:
            if level == socket.IPPROTO_IP and kind == _IP_PKTINFO:
                index = _IN_PKTINFO.unpack_from(data)[0]
        name = self._names.get(index)
        if name is None:
            return None
        return MessageReceived(
            name,
            IPv4Address(packet[12:16]),
            packet[8],
            has_router_alert4(packet[20:header_length]),
            packet[header_length : int.from_bytes(packet[2:4], "big")],
        )

    def _send(self, index: int, own: Address, destination: Address, payload: bytes) -> None:
        info = _IN_PKTINFO.pack(index, own.packed, bytes(4))
        ancillary = [(socket.IPPROTO_IP, _IP_PKTINFO, info)]
        self._socket.sendmsg((payload,), ancillary, 0, (str(destination), 0))


def has_router_alert6(header: bytes) -> bool:
    """Tell whether a hop-by-hop options header has the router alert of MLD (RFC 2711)."""
    at = 2
    while at < len(header):
        if header[at] == 0:
            at += 1
            continue
        if header[at : at + 4] == _ROUTER_ALERT6[2:6]:
            return True
        if at + 1 >= len(header):
            break
        at += 2 + header[at + 1]
    return False


def has_router_alert4(options: bytes) -> bool:
    """Tell whether IPv4 options have the router alert (RFC 2113)."""
    at = 0
    while at < len(options) and options[at] != 0:
        if options[at] == 1:
            at += 1
            continue
        if options[at] == _ROUTER_ALERT4[0]:
            return True
        if at + 1 >= len(options) or options[at + 1] < 2:
            break
        at += options[at + 1]
    return False

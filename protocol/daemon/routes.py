"""Routes to red prefixes through the xfrm interface: rtnetlink, batched, and the same in memory.

Our routes carry a protocol number of our own, so those of a killed daemon are found again and
nobody else's are ever touched. Encoded here and not by pyroute2: that takes 1.1 ms a route where
this takes 10 us, ten times as much in the emulated guest, and 0.3 s of import
(docs/decisions/0007-unicast-keys.md).
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator, Sequence
from ipaddress import IPv4Network, IPv6Address, IPv6Network
from typing import Protocol

from protocol.core.errors import LocalError
from protocol.idp.events import AddRoute, RemoveRoute, RouteOperation
from protocol.ipsec.backend import DONE, Outcome
from protocol.ipsec.model import Prefix

ROUTE_PROTOCOL = 29
"""Marks our routes (``ip route show proto 29``); free in /etc/iproute2/rt_protos."""

GATEWAY_PROTOCOL = 30
"""The same of a gateway's gatewayd, which chooses among its legs."""

BATCH_MAX = 64
"""Requests in one send, so that the answers fit into the smallest receive buffer."""

_ANSWER_WAIT_S = 5
_READ_BYTES = 64 << 10
_RECEIVE_BUFFER_BYTES = 1 << 20

# include/uapi/linux/netlink.h, rtnetlink.h, if_addr.h
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_RTM_NEWADDR, _RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 20, 24, 25, 26
_NLM_F_REQUEST, _NLM_F_ACK, _NLM_F_DUMP = 0x1, 0x4, 0x300
_NLM_F_EXCL, _NLM_F_CREATE = 0x200, 0x400
_RT_TABLE_MAIN, _RTN_UNICAST = 254, 1
_RT_SCOPE_UNIVERSE, _RT_SCOPE_LINK, _RT_SCOPE_NOWHERE = 0, 253, 255
_RTA_DST, _RTA_OIF, _RTA_PRIORITY = 1, 4, 6
_IFA_ADDRESS, _IFA_LOCAL, _IFA_F_NODAD = 1, 2, 0x02

_HEADER = struct.Struct("=IHHII")
_RTMSG = struct.Struct("=BBBBBBBBI")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")


class Routes(Protocol):
    """A routing table, as far as our own routes are concerned."""

    def apply(self, operations: Sequence[RouteOperation]) -> list[Outcome]:
        """Perform the operations in order; one outcome each."""
        ...

    def dump(self) -> list[Prefix]:
        """Return the destinations of our routes."""
        ...

    def close(self) -> None:
        """Release what is open; idempotent."""
        ...


class MemoryRoutes:
    """`Routes` without a kernel, for the memory backend: there is no interface to route into."""

    def __init__(self) -> None:
        self._prefixes: dict[Prefix, None] = {}

    def apply(self, operations: Sequence[RouteOperation]) -> list[Outcome]:
        """Perform the operations in order, as the kernel answers."""
        outcomes = []
        for operation in operations:
            there = operation.prefix in self._prefixes
            if isinstance(operation, AddRoute):
                self._prefixes[operation.prefix] = None
                outcomes.append(Outcome(errno.EEXIST, "File exists") if there else DONE)
            else:
                self._prefixes.pop(operation.prefix, None)
                outcomes.append(DONE if there else Outcome(errno.ESRCH, "No such process"))
        return outcomes

    def dump(self) -> list[Prefix]:
        """Return the destinations in order of addition."""
        return list(self._prefixes)

    def close(self) -> None:
        """Nothing to release."""


class KernelRoutes:
    """`Routes` of this network namespace's main table, all through one interface.

    Args:
        index: of the interface.
        metric: of the routes; of two to one destination the lower counts. 0: the kernel's default.
        protocol: marks the routes that are ours.

    Raises:
        LocalError: no rtnetlink socket.
    """

    def __init__(self, index: int, metric: int = 0, protocol: int = ROUTE_PROTOCOL) -> None:
        self._index = index
        self._metric = metric
        self._protocol = protocol
        self._sequence = 0
        self._socket = socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE
        )
        try:
            self._socket.bind((0, 0))
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _RECEIVE_BUFFER_BYTES)
            wait = struct.pack("@ll", _ANSWER_WAIT_S, 0)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, wait)
        except OSError as error:
            self._socket.close()
            raise LocalError(f"cannot set routes: {error.strerror}") from error

    @property
    def port(self) -> int:
        """Netlink port that the kernel names when it announces our changes."""
        return int(self._socket.getsockname()[0])

    def add_address(self, address: IPv6Address) -> None:
        """Give the interface a link-local address, at once usable; it may have it already.

        Raises:
            LocalError: the kernel refused.
        """
        family = _IFADDRMSG.pack(socket.AF_INET6, 64, _IFA_F_NODAD, _RT_SCOPE_LINK, self._index)
        attributes = _attribute(_IFA_LOCAL, address.packed) + _attribute(
            _IFA_ADDRESS, address.packed
        )
        flags = _NLM_F_CREATE | _NLM_F_EXCL
        (number,) = self._request([(_RTM_NEWADDR, flags, family + attributes)])
        if number not in (0, errno.EEXIST):
            raise LocalError(f"cannot set the address {address}: {os.strerror(number)}")

    def apply(self, operations: Sequence[RouteOperation]) -> list[Outcome]:
        """Perform the operations in order; one outcome each.

        Raises:
            LocalError: the kernel does not answer.
        """
        outcomes = []
        for start in range(0, len(operations), BATCH_MAX):
            part = operations[start : start + BATCH_MAX]
            for number in self._request([self._message(operation) for operation in part]):
                outcomes.append(DONE if number == 0 else Outcome(number, os.strerror(number)))
        return outcomes

    def dump(self) -> list[Prefix]:
        """Return the destinations of our routes through the interface.

        Raises:
            LocalError: the kernel does not answer.
        """
        found: list[Prefix] = []
        for family in (socket.AF_INET6, socket.AF_INET):
            self._sequence += 1
            message = _RTMSG.pack(family, 0, 0, 0, 0, 0, 0, 0, 0)
            flags = _NLM_F_REQUEST | _NLM_F_DUMP
            self._send(_wrap(_RTM_GETROUTE, flags, self._sequence, message))
            done = False
            while not done:
                for kind, sequence, payload in self._receive():
                    if sequence != self._sequence:
                        continue
                    done = done or kind in (_NLMSG_DONE, _NLMSG_ERROR)
                    if kind == _RTM_NEWROUTE:
                        found += self._ours(payload)
        return found

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def _message(self, operation: RouteOperation) -> tuple[int, int, bytes]:
        prefix = operation.prefix
        four = isinstance(prefix, IPv4Network)
        if isinstance(operation, RemoveRoute):
            kind, flags, scope = _RTM_DELROUTE, 0, _RT_SCOPE_NOWHERE
        else:
            kind, flags = _RTM_NEWROUTE, _NLM_F_CREATE | _NLM_F_EXCL
            scope = _RT_SCOPE_LINK if four else _RT_SCOPE_UNIVERSE
        header = _RTMSG.pack(
            socket.AF_INET if four else socket.AF_INET6,
            prefix.prefixlen,
            0,
            0,
            _RT_TABLE_MAIN,
            self._protocol,
            scope,
            _RTN_UNICAST,
            0,
        )
        destination = _attribute(_RTA_DST, prefix.network_address.packed)
        through = _attribute(_RTA_OIF, self._index.to_bytes(4, "little"))
        metric = _attribute(_RTA_PRIORITY, self._metric.to_bytes(4, "little"))
        return kind, flags, header + destination + through + (metric if self._metric else b"")

    def _ours(self, payload: bytes) -> Iterator[Prefix]:
        """Yield the destination of a route if it is one of ours."""
        family, length, _, _, table, protocol, _, _, _ = _RTMSG.unpack_from(payload)
        if (table, protocol) != (_RT_TABLE_MAIN, self._protocol):
            return
        attributes = dict(_attributes(payload[_RTMSG.size :]))
        through = int.from_bytes(attributes.get(_RTA_OIF, b""), "little")
        if through != self._index:
            return
        if family == socket.AF_INET:
            yield IPv4Network((attributes.get(_RTA_DST, bytes(4)), length))
        elif family == socket.AF_INET6:
            yield IPv6Network((attributes.get(_RTA_DST, bytes(16)), length))

    def _request(self, messages: Sequence[tuple[int, int, bytes]]) -> list[int]:
        """Send requests at once; return the error number of each, 0 for none."""
        first = self._sequence + 1
        self._sequence += len(messages)
        self._send(
            b"".join(
                _wrap(kind, flags | _NLM_F_REQUEST | _NLM_F_ACK, first + place, payload)
                for place, (kind, flags, payload) in enumerate(messages)
            )
        )
        numbers: dict[int, int] = {}
        while len(numbers) < len(messages):
            for kind, sequence, payload in self._receive():
                if kind == _NLMSG_ERROR and first <= sequence <= self._sequence:
                    numbers[sequence] = -int.from_bytes(payload[:4], "little", signed=True)
        return [numbers[first + place] for place in range(len(messages))]

    def _send(self, data: bytes) -> None:
        try:
            self._socket.send(data)
        except OSError as error:
            raise LocalError(f"routes: the kernel refuses a request: {error.strerror}") from error

    def _receive(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield kind, sequence number and payload of the messages of one datagram."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except OSError as error:
            raise LocalError(f"routes: no answer of the kernel: {error.strerror}") from error
        offset = 0
        while offset + _HEADER.size <= len(data):
            length, kind, _, sequence, _ = _HEADER.unpack_from(data, offset)
            if length < _HEADER.size:
                break
            yield kind, sequence, data[offset + _HEADER.size : offset + length]
            offset += (length + 3) & ~3


def _wrap(kind: int, flags: int, sequence: int, payload: bytes) -> bytes:
    return _HEADER.pack(_HEADER.size + len(payload), kind, flags, sequence, 0) + payload


def _attribute(kind: int, value: bytes) -> bytes:
    padding = bytes(-len(value) % 4)
    return _ATTRIBUTE.pack(_ATTRIBUTE.size + len(value), kind) + value + padding


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + _ATTRIBUTE.size <= len(data):
        length, kind = _ATTRIBUTE.unpack_from(data, offset)
        if length < _ATTRIBUTE.size:
            return
        yield kind, data[offset + _ATTRIBUTE.size : offset + length]
        offset += (length + 3) & ~3

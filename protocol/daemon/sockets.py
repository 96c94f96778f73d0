"""The daemons' UDP sockets: what all have in common, and the local one between the daemons.

A datagram socket here never blocks and never raises for what the network did: a datagram that
cannot be sent or is too long is counted. Opening one may fail, with cause and cure in one line.
"""

from __future__ import annotations

import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from ipaddress import IPv6Address
from typing import NamedTuple

from protocol.core.errors import LocalError
from protocol.daemon import memberships
from protocol.daemon.memberships import Sources

DATAGRAM_BYTES_MAX = 8192
"""Largest datagram read; one byte more is asked for, so that longer ones are seen as such."""

LOCAL_BYTES_MAX = 32 * 1024
"""The same on ::1 (docs/local-interface.md)."""

RECEIVE_BUFFER_BYTES = 1024 * 1024
"""Room for the burst with which a large group answers a join while we are not scheduled."""

SOURCES_MAX = 1024
"""Parsed source addresses remembered; a flood of forged ones empties the table, nothing more."""

SHED_AT_ONCE = 16
"""Datagrams that are thrown away unread before others are looked at: one of so many is handed on,
and tells how long it had waited (`Received`)."""

LOCALHOST = IPv6Address("::1")

# Linux values that the socket module of Python 3.11 does not name.
_SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35

_STAMP = struct.Struct("@qq")
STAMP_SPACE_BYTES = socket.CMSG_SPACE(_STAMP.size)


class Received(NamedTuple):
    """One datagram.

    Attributes:
        payload: its bytes.
        source: address, without scope.
        waited_ns: how long it was in the socket; 0 unless the kernel stamps what arrives there.
    """

    payload: bytes
    source: IPv6Address
    waited_ns: int = 0


class DatagramSocket:
    """A bound, non-blocking UDP socket over IPv6.

    Attributes:
        counters: what was dropped, by reason.
        sheds: says of a datagram, at this monotonic time in ns, that it is one of too many and not
            to be handed on.
    """

    sheds: Callable[[bytes, int], bool] | None = None

    def __init__(self, sock: socket.socket, name: str, largest: int = DATAGRAM_BYTES_MAX) -> None:
        self.counters: Counter[str] = Counter()
        self._largest = largest
        self._socket = sock
        self._name = name
        self._sources: dict[str, IPv6Address] = {}
        self._arrived_mono_ns = time.monotonic_ns()

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._socket.fileno()

    def receive(self) -> Received | None:
        """Return one datagram, or None."""
        mono_ns = 0 if self.sheds is None else time.monotonic_ns()
        try:
            for _ in range(SHED_AT_ONCE):
                payload, ancillary, _, address = self._socket.recvmsg(
                    self._largest + 1, STAMP_SPACE_BYTES
                )
                if self.sheds is None or not self.sheds(payload, mono_ns):
                    break
        except OSError as error:
            self._not_received(error)
            return None
        if self._is_oversized(payload):
            return None
        text = address[0]
        source = self._sources.get(text)
        if source is None:
            if len(self._sources) >= SOURCES_MAX:
                self._sources.clear()
            source = IPv6Address(text.partition("%")[0])
            self._sources[text] = source
        return self._received(payload, source, arrival_wall_ns(ancillary))

    def _not_received(self, error: OSError) -> None:
        """Count why nothing was read, unless nothing was there."""
        if not isinstance(error, BlockingIOError):
            self.counters[f"{self._name}.receive_failed.{errno_name(error)}"] += 1

    def _is_oversized(self, payload: bytes) -> bool:
        """Say whether a datagram is longer than any of ours, and count it."""
        if len(payload) <= self._largest:
            return False
        self.counters[f"{self._name}.oversized"] += 1
        return True

    def _received(self, payload: bytes, source: IPv6Address, stamp_ns: int | None) -> Received:
        return Received(payload, source, 0 if stamp_ns is None else self._waited_ns(stamp_ns))

    def _waited_ns(self, stamp_wall_ns: int) -> int:
        """Return how long a datagram with this stamp was in the socket.

        The stamp is a wall time, and that clock may have been set since: nothing waits for less
        than no time, nor since before the datagram that was read before it arrived.
        """
        mono_ns = time.monotonic_ns()
        arrived_mono_ns = mono_ns - max(time.time_ns() - stamp_wall_ns, 0)
        self._arrived_mono_ns = max(self._arrived_mono_ns, arrived_mono_ns)
        return mono_ns - self._arrived_mono_ns

    def drain(self) -> int:
        """Throw away what is queued; return how many datagrams that were."""
        dropped = 0
        while dropped < 10_000:
            try:
                self._socket.recvfrom(1)
            except OSError:
                break
            dropped += 1
        return dropped

    def _send(
        self,
        payload: bytes,
        ancillary: Sequence[tuple[int, int, bytes]],
        target: tuple[str, int, int, int],
    ) -> None:
        """Send; a refusal by the kernel is counted."""
        try:
            self._socket.sendmsg((payload,), ancillary, 0, target)
        except OSError as error:
            self._sent(error)

    def _sent(self, error: OSError) -> None:
        self.counters[f"{self._name}.send_failed.{errno_name(error)}"] += 1

    def close(self) -> None:
        """Close; idempotent."""
        self._socket.close()


class LocalSocket(DatagramSocket):
    """The channel between idpd and miked on ::1; authenticity is the protocol's business."""

    def __init__(self, own_port: int, other_port: int) -> None:
        sock = udp_socket()
        try:
            enlarge_receive_buffer(sock)
            sock.bind((str(LOCALHOST), own_port))
        except OSError as error:
            sock.close()
            raise LocalError(
                f"cannot open port {own_port} on ::1: {error.strerror}"
                " (is the daemon already running here? is the interface lo up?)"
            ) from error
        super().__init__(sock, "local", LOCAL_BYTES_MAX)
        self._target = (str(LOCALHOST), other_port)

    def send(self, payload: bytes, _destination: IPv6Address | None) -> None:
        """Send to the other daemon; a refusal by the kernel is counted."""
        try:
            self._socket.sendto(payload, self._target)
        except OSError as error:
            self._sent(error)


class EspMembership:
    """Membership of the black interface in the group of the ESP packets.

    The kernel decrypts only what its interface listens to. Own packets are excluded as a source:
    looped back, each would be taken for a replay by the own SA.

    Args:
        interface: on the black network.
        address: of this device.
        group: destination of the ESP packets.
        sources: the other devices.
    """

    def __init__(
        self, interface: str, address: IPv6Address, group: IPv6Address, sources: Sources
    ) -> None:
        self._interface = interface
        self._address = address
        self._group = group
        self._sources = sources
        self._socket: socket.socket | None = None

    def join(self) -> None:
        """Join, with the own address blocked as source; idempotent."""
        if self._socket is not None:
            return
        index = interface_index(self._interface)
        sock = udp_socket()
        try:
            memberships.join(sock, index, self._group, self._sources(), without=self._address)
        except LocalError:
            sock.close()
            raise
        self._socket = sock

    def leave(self) -> None:
        """Leave; idempotent."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None


def interface_index(interface: str) -> int:
    """Return the index of an interface, or say that there is none."""
    try:
        return socket.if_nametoindex(interface)
    except OSError as error:
        raise LocalError(
            f"no interface {interface} in this network namespace (see `ip link`)"
        ) from error


def check_address(interface: str, address: IPv6Address) -> None:
    """Refuse an address this device cannot use yet or at all."""
    with udp_socket() as sock:
        try:
            sock.bind((str(address), 0, 0, interface_index(interface)))
        except OSError as error:
            raise LocalError(
                f"address {address} is not usable on {interface}: not assigned, or duplicate"
                " address detection has not ended (see `ip -6 address`)"
            ) from error


def stamped_socket(interface: str, address: IPv6Address, port: int) -> socket.socket:
    """Open a UDP socket whose datagrams carry the kernel's receive time (SO_TIMESTAMPNS)."""
    sock = udp_socket()
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
        sock.bind((str(address), port, 0, interface_index(interface) if interface else 0))
    except OSError as error:
        sock.close()
        raise LocalError(f"cannot open port {port} on {address}: {error.strerror}") from error
    return sock


def arrival_wall_ns(ancillary: Iterable[tuple[int, int, bytes]]) -> int | None:
    """Return the kernel's stamp of a datagram from its control messages, None without one."""
    for level, kind, data in ancillary:
        if level == socket.SOL_SOCKET and kind == SO_TIMESTAMPNS:
            seconds, rest_ns = _STAMP.unpack(data)
            return int(seconds) * 1_000_000_000 + int(rest_ns)
    return None


def udp_socket() -> socket.socket:
    """Return an unbound, non-blocking UDP socket for IPv6 alone."""
    sock = socket.socket(
        socket.AF_INET6, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
    )
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    return sock


def enlarge_receive_buffer(sock: socket.socket) -> None:
    """Ask for a large buffer; without the privilege the kernel grants what its limit allows."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, RECEIVE_BUFFER_BYTES)
    except OSError:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)


def errno_name(error: OSError) -> str:
    """Return the symbolic name of an error number, for a counter."""
    import errno

    return errno.errorcode.get(error.errno or 0, "unknown")

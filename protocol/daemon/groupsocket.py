"""The black channel of one protocol: several sockets on one port, and what goes to which."""

from __future__ import annotations

import socket
import struct
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from ipaddress import IPv6Address

from protocol.core.errors import LocalError
from protocol.daemon import memberships, sourcefilter
from protocol.daemon.config import ChannelSection
from protocol.daemon.floodedsocket import FloodedSocket
from protocol.daemon.memberships import Sources
from protocol.daemon.sockets import (
    SO_TIMESTAMPNS,
    DatagramSocket,
    check_address,
    enlarge_receive_buffer,
    errno_name,
    interface_index,
    udp_socket,
)

STRANGERS_BUFFER_BYTES = 64 * 1024
"""Receive buffer for who is not known: a flood of strangers waits here, and is lost here."""

# Linux values that the socket module of Python 3.11 does not name.
_IPV6_MULTICAST_ALL = 29
_SO_ATTACH_FILTER = 26
_SO_ATTACH_REUSEPORT_CBPF = 51
_SO_MEMINFO = 55
_MEMINFO = struct.Struct("@9I")
"""SK_MEMINFO_VARS of linux/sock_diag.h; the last one is SK_MEMINFO_DROPS."""

_NO_FORM = array("Q")


class GroupSocket(DatagramSocket):
    """The black channel of one protocol: its multicast group, and unicast to the same port.

    It is bound to the black interface, so nothing from the red side or from ::1 reaches it, and
    every datagram leaves with the device's certified address as source. There are several sockets
    (`protocol.daemon.sourcefilter`), so that a flood in one crowds nobody out of another: this one
    for known sources, one for those of them in whose name much is forged, one more for what these
    ask if there are such kinds of message, and one for strangers, who have an own way out too.

    Attributes:
        flooded: of known sources in whose name much is forged: what they say, then what they ask;
            none with ``group_only``.
        strangers: of all other sources; None with ``group_only``.

    Args:
        interface: on the black network.
        address: of this device.
        channel: multicast group, joined source by source if it is source-specific, and UDP port.
        hops: hop limit of what goes to the group.
        sources: the other devices.
        form: a filter that drops what cannot be a message, to be followed by another one.
        asking: kinds of message that whoever is in no group may send: only of these can more be
            forged than a device in a group has to read.
        group_only: hear the group and nothing else, and leave unicast to the daemon beside us
            that has the same port.

    Raises:
        LocalError: the interface, address or port cannot be used.
    """

    def __init__(
        self,
        interface: str,
        address: IPv6Address,
        channel: ChannelSection,
        hops: int,
        sources: Sources,
        *,
        form: array[int] = _NO_FORM,
        asking: Sequence[int] = (),
        group_only: bool = False,
    ) -> None:
        group, port = channel.group, channel.port
        index = interface_index(interface)
        check_address(interface, address)
        # In this order: see `sourcefilter.choice`.
        self._each = [udp_socket() for _ in range(1 if group_only else 4 if asking else 3)]
        try:
            for sock in self._each:
                _open_group(sock, interface, index, hops)
                enlarge_receive_buffer(sock)
            if group_only:
                self._each[0].bind((str(group), port, 0, index))
            else:
                self._each[1].setsockopt(
                    socket.SOL_SOCKET, socket.SO_RCVBUF, STRANGERS_BUFFER_BYTES // 2
                )
                for sock in self._each:
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                    sock.bind(("::", port))
        except OSError as error:
            for sock in self._each:
                sock.close()
            raise LocalError(f"cannot open port {port} on {interface}: {error.strerror}") from error
        super().__init__(self._each[0], "group")
        self.strangers: DatagramSocket | None = None
        if not group_only:
            self.strangers = DatagramSocket(self._each[1], "strangers")
        self.flooded = tuple(
            FloodedSocket(sock, name)
            for sock, name in zip(self._each[2:], ("suspects", "suspects_ask"), strict=False)
        )
        self._asking = asking
        self._form = form
        self._code = sourcefilter.EVERYTHING
        self._known: dict[IPv6Address, None] | None = None
        self._trusted: tuple[IPv6Address, ...] = ()
        self._suspected: tuple[IPv6Address, ...] = ()
        self._index = index
        self._group = group
        self._group_sources = sources
        self._joined = False
        self._port = port
        self._group_target = (str(group), port, 0, index)
        self._ancillary = [
            (
                socket.IPPROTO_IPV6,
                socket.IPV6_PKTINFO,
                address.packed + struct.pack("@I", index),
            )
        ]

    def _members(self) -> list[socket.socket]:
        """Return the sockets that are members of the group.

        A member gets a copy of all that is sent to it, whatever its filter drops then. So those of
        the suspects are none while there are none, nor that of strangers where none is a source.
        """
        strangers = [] if memberships.is_source_specific(self._group) else self._each[1:2]
        suspects = self._each[2:] if self._suspected else []
        return [self._each[0], *strangers, *suspects]

    def join(self) -> None:
        """Become a member of the group; idempotent."""
        if self._joined:
            return
        self._join(self._members())
        self._joined = True

    def leave(self) -> None:
        """Leave the group and forget what is queued; idempotent."""
        if not self._joined:
            return
        self._joined = False
        self._leave(self._members())
        self.drain()

    def _join(self, socks: Iterable[socket.socket]) -> None:
        for sock in socks:
            memberships.join(sock, self._index, self._group, self._group_sources())

    def _leave(self, socks: Iterable[socket.socket]) -> None:
        try:
            for sock in socks:
                memberships.leave(sock, self._index, self._group)
        except OSError as error:
            self.counters[f"group.leave_failed.{errno_name(error)}"] += 1

    def drain(self) -> int:
        """Throw away what is queued; return how many datagrams that were."""
        return super().drain() + sum(sock.drain() for sock in self._others())

    def _others(self) -> list[DatagramSocket]:
        return [sock for sock in (self.strangers, *self.flooded) if sock is not None]

    def close(self) -> None:
        """Close all of them; idempotent."""
        for sock in self._each:
            sock.close()

    def thrown_away(self) -> int:
        """Return what the kernel has dropped here: by a filter, or because a buffer was full."""
        options = socket.SOL_SOCKET, _SO_MEMINFO, _MEMINFO.size
        return sum(_MEMINFO.unpack(sock.getsockopt(*options))[-1] for sock in self._each)

    def all_counters(self) -> Counter[str]:
        """Return what was dropped in all of them, by reason."""
        counters = self.counters + Counter({"group.thrown_away": self.thrown_away()})
        for sock in self._others():
            counters.update(sock.counters)
        return counters

    def attach_filter(self, code: array[int]) -> None:
        """Have the kernel drop datagrams by a classic BPF program, so that they do not wake us.

        A convenience: if the kernel refuses the filter, the engine drops them.
        """
        self._code = code
        self._attach()

    def know(self, sources: Iterable[IPv6Address], suspects: Sequence[IPv6Address] = ()) -> None:
        """Have datagrams of all sources but these come in the strangers' socket.

        Args:
            sources: known addresses.
            suspects: those of them whose datagrams come in the suspects' sockets.
        """
        known = dict.fromkeys(sources)
        if len(known) > sourcefilter.KNOWN_MAX:
            suspects = ()  # then nobody is told from anybody
        suspected = tuple(one for one in suspects if one in known)
        if self.strangers is None or (known, suspected) == (self._known, self._suspected):
            return
        before = self._members() if self._joined else []
        self._known, self._suspected = known, suspected
        after = self._members() if self._joined else []
        try:
            self._join(sock for sock in after if sock not in before)
        except LocalError:
            self.counters["group.join_failed"] += 1  # then only unicast of suspects is heard
        self._trusted = tuple(one for one in known if one not in suspected)
        code = sourcefilter.choice(self._trusted, suspected, self._asking)
        self._set_program(self._each[0], _SO_ATTACH_REUSEPORT_CBPF, code)
        self._attach()
        self._leave(sock for sock in before if sock not in after)

    def _attach(self) -> None:
        """Give each socket its program: whose datagrams it gets, and which of them."""
        code = self._form + self._code
        if self._known is None or self.strangers is None:
            self._set_program(self._each[0], _SO_ATTACH_FILTER, code)
            return
        programs = sourcefilter.of_each(self._trusted, self._suspected, self._asking, code)
        for sock, program in zip(self._each, programs, strict=True):
            self._set_program(sock, _SO_ATTACH_FILTER, program)

    def _set_program(self, sock: socket.socket, option: int, code: array[int]) -> None:
        """Attach a classic BPF program; a refusal is counted."""
        program = struct.pack("@HP", len(code), code.buffer_info()[0])
        try:
            sock.setsockopt(socket.SOL_SOCKET, option, program)
        except OSError as error:
            self.counters[f"group.filter_failed.{errno_name(error)}"] += 1

    def send(self, payload: bytes, destination: IPv6Address | None) -> None:
        """Send to the group, or to one device; a refusal by the kernel is counted."""
        if destination is None:
            self._send(payload, self._ancillary, self._group_target)
            return
        target = (str(destination), self._port, 0, 0)
        way: DatagramSocket = self
        if self.strangers is not None and destination not in (self._known or ()):
            # What waits for a neighbour that never answers fills the send buffer: not ours.
            way = self.strangers
        way._send(payload, self._ancillary, target)


def _open_group(sock: socket.socket, interface: str, index: int, hops: int) -> None:
    """Set what all sockets of a black channel have in common."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, hops)
    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_LOOP, 0)
    sock.setsockopt(socket.IPPROTO_IPV6, _IPV6_MULTICAST_ALL, 0)
    sock.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)

"""The channel of the prefix announcements: link-local datagrams inside the pairs' SAs.

The socket is bound to our link-local address on the xfrm interface. What it receives came through
the SA of the device that has the source address: the inbound policy sees to that.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable
from ipaddress import IPv6Address

from protocol.core.errors import LocalError
from protocol.daemon.sockets import DatagramSocket, Received, interface_index, udp_socket
from protocol.ipsec.pairpolicy import link_local


class PairSocket(DatagramSocket):
    """Datagrams from device to device, named by their black addresses.

    Args:
        interface: the xfrm interface; it has our link-local address.
        own: our black address.
        port: UDP port, source and destination.
        devices: returns the black addresses of the other devices.

    Raises:
        LocalError: interface or port cannot be used.
    """

    def __init__(
        self,
        interface: str,
        own: IPv6Address,
        port: int,
        devices: Callable[[], Iterable[IPv6Address]],
    ) -> None:
        index = interface_index(interface)
        sock = udp_socket()
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode() + b"\0")
            sock.bind((str(link_local(own)), port, 0, index))
        except OSError as error:
            sock.close()
            raise LocalError(f"cannot open port {port} on {interface}: {error.strerror}") from error
        super().__init__(sock, "pair")
        self._index = index
        self._port = port
        self._devices = devices
        self._black: dict[IPv6Address, IPv6Address] = {}

    def receive(self) -> Received | None:
        """Return one datagram and its sender's black address, or None."""
        received = super().receive()
        if received is None:
            return None
        source = received.source
        if source not in self._black:
            self._black = {link_local(black): black for black in self._devices()}
        black = self._black.get(source)
        if black is None:
            self.counters["pair.unknown_source"] += 1
            return None
        return received._replace(source=black)

    def send(self, payload: bytes, destination: IPv6Address | None) -> None:
        """Send to one device; a refusal by the kernel is counted."""
        assert destination is not None
        try:
            self._socket.sendto(payload, (str(link_local(destination)), self._port, 0, self._index))
        except OSError as error:
            self._sent(error)

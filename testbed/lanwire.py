"""What is on the wire of a red LAN, listeners or not: a packet socket at one of its nodes."""

from __future__ import annotations

import socket
from typing import Final

from testbed.errors import TestbedError
from testbed.namespaces import NetNamespace

_ETH_P_ALL: Final = 3
_FRAME_MAX: Final = 65536
_BUFFER_BYTES: Final = 1 << 22


class LanWire:
    """Reads every frame that passes an interface, in both directions.

    A switch that does not snoop floods multicast, so every node of a LAN sees all of it.

    Args:
        namespace: of the node.
        interface: in it.

    Raises:
        TestbedError: there is no such interface, or no right to it.
    """

    def __init__(self, namespace: NetNamespace, interface: str) -> None:
        with namespace.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER_BYTES)
                self._socket.bind((interface, _ETH_P_ALL))
            except OSError as error:
                self._socket.close()
                raise TestbedError(
                    f"{namespace.name}: cannot watch {interface}: {error.strerror}"
                ) from None

    def frames(self) -> list[bytes]:
        """Return what has passed since the last call, without waiting."""
        found = []
        while True:
            try:
                found.append(self._socket.recv(_FRAME_MAX))
            except BlockingIOError:
                return found

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._socket.close()

"""Watches the carrier of one interface through rtnetlink notifications."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

from protocol.core.errors import LocalError

_RTMGRP_LINK = 1
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")


class LinkWatch:
    """Tells when the interface gains or loses its carrier."""

    def __init__(self, index: int, on_change: Callable[[bool], None]) -> None:
        self._index = index
        self._on_change = on_change
        self._up: bool | None = None
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        try:
            self._socket.bind((0, _RTMGRP_LINK))
        except OSError as error:
            self._socket.close()
            raise LocalError(f"cannot watch the network interfaces: {error.strerror}") from error

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._socket.fileno()

    def readable(self) -> None:
        """Read one notification and call back if the carrier changed.

        The first notification only sets what is known if it says "up": interfaces are up when a
        daemon starts, and the kernel repeats the state for every other change of the link.
        """
        try:
            data, sender = self._socket.recvfrom(65536)
        except OSError:
            return
        if sender[0] != 0:
            return
        for up in carrier_changes(data, self._index):
            before, self._up = self._up, up
            if up != (before is not False):
                self._on_change(up)

    def close(self) -> None:
        """Close; idempotent."""
        self._socket.close()


def carrier_changes(data: bytes, index: int) -> list[bool]:
    """Return the carrier states of the interface in a batch of rtnetlink messages, in order."""
    states = []
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, _, _, _ = _HEADER.unpack_from(data, offset)
        if length < _HEADER.size or offset + length > len(data):
            break
        if kind in {_RTM_NEWLINK, _RTM_DELLINK} and length >= _HEADER.size + _IFINFO.size:
            _, _, found, flags, _ = _IFINFO.unpack_from(data, offset + _HEADER.size)
            if found == index:
                both = _IFF_UP | _IFF_LOWER_UP
                states.append(kind == _RTM_NEWLINK and flags & both == both)
        offset += (length + 3) & ~3
    return states

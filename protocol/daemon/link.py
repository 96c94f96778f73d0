"""Watches the carrier of one interface through rtnetlink notifications."""

from __future__ import annotations

import errno
import socket
import struct
from collections import Counter
from collections.abc import Callable

from protocol.core.errors import LocalError

_RTMGRP_LINK = 1
_RTM_NEWLINK = 16
_RTM_DELLINK = 17
_RTM_GETLINK = 18
_NLM_F_REQUEST = 0x1
_IFF_UP = 0x1
_IFF_LOWER_UP = 0x10000
_HEADER = struct.Struct("=IHHII")
_IFINFO = struct.Struct("=BxHiII")


class LinkWatch:
    """Tells when the interface gains or loses its carrier.

    Attributes:
        counters: ``link.overruns``: how often the kernel had to drop notifications.
    """

    def __init__(self, index: int, on_change: Callable[[bool], None]) -> None:
        self._index = index
        self._on_change = on_change
        self._up: bool | None = None
        self.counters: Counter[str] = Counter()
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
        if self._read() is not None:
            return
        # The kernel had to drop some. Its answer needs room: what is there is read first.
        self.counters["link.overruns"] += 1
        while self._read():
            pass
        self._ask()

    def _read(self) -> bool | None:
        """Read one notification; return whether there was one, None if some were dropped."""
        try:
            data, sender = self._socket.recvfrom(65536)
        except OSError as error:
            return None if error.errno == errno.ENOBUFS else False
        if sender[0] == 0:
            for up in carrier_changes(data, self._index):
                before, self._up = self._up, up
                if up != (before is not False):
                    self._on_change(up)
        return True

    def _ask(self) -> None:
        """Have the kernel say how the interface is: it has dropped what it said before."""
        body = _IFINFO.pack(0, 0, self._index, 0, 0)
        head = _HEADER.pack(_HEADER.size + len(body), _RTM_GETLINK, _NLM_F_REQUEST, 0, 0)
        try:
            self._socket.send(head + body)
        except OSError:
            self.counters["link.ask_failed"] += 1

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

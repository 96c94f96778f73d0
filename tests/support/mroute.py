"""The kernel's IPv6 multicast router with fixed entries, for tests that have no routing daemon.

Values of linux/mroute6.h. Forwarding ends when the socket is closed.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Sequence
from ipaddress import IPv6Address
from types import TracebackType
from typing import Self

_MRT6_INIT = 200
_MRT6_ADD_MIF = 202
_MRT6_ADD_MFC = 204


class StaticRouter:
    """Owns multicast forwarding of the calling thread's namespace.

    Args:
        interfaces: names; the position is the number of the MIF.
    """

    def __init__(self, interfaces: Sequence[str]) -> None:
        self._names = list(interfaces)
        self._socket = socket.socket(socket.AF_INET6, socket.SOCK_RAW, socket.IPPROTO_ICMPV6)
        self._set(_MRT6_INIT, struct.pack("@i", 1))
        for number, name in enumerate(self._names):
            mif = struct.pack("@HBBHI", number, 0, 1, socket.if_nametoindex(name), 0)
            self._set(_MRT6_ADD_MIF, mif)

    def forward(self, source: str, group: str, from_: str, to: Sequence[str]) -> None:
        """Install one (S,G) entry."""
        outs = 0
        for name in to:
            outs |= 1 << self._names.index(name)
        entry = b"".join(
            struct.pack("=HHI16sI", socket.AF_INET6, 0, 0, IPv6Address(address).packed, 0)
            for address in (source, group)
        )
        entry += struct.pack("@H2x8I", self._names.index(from_), outs, *([0] * 7))
        self._set(_MRT6_ADD_MFC, entry)

    def _set(self, option: int, value: bytes) -> None:
        self._socket.setsockopt(socket.IPPROTO_IPV6, option, value)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._socket.close()

"""Watches the proxy's interfaces: under which addresses it can speak, and whether they exist."""

from __future__ import annotations

import fcntl
import socket
import struct
from collections.abc import Callable, Iterable
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

from protocol.core.errors import LocalError
from protocol.daemon.sockets import interface_index
from protocol.mproxy.messages import Address, Family

_RTMGRP_LINK = 0x1
_RTMGRP_IPV4_IFADDR = 0x10
_RTMGRP_IPV6_IFADDR = 0x100

_SIOCGIFFLAGS = 0x8913
_SIOCGIFADDR = 0x8915
_IFF_UP_AND_RUNNING = 0x41
_IFREQ_BYTES = 40

_SCOPE_LINK = 0x20
_UNUSABLE = 0x40 | 0x08
"""IFA_F_TENTATIVE, IFA_F_DADFAILED."""

OnChange = Callable[[str, Family, Address | None], None]
"""Gets interface, family, and our address there or None."""


class AddressWatch:
    """Tells the addresses of the downstream interfaces, now and whenever they change.

    Args:
        downstreams: interfaces whose addresses are wanted.
        upstream: an interface that must only go on to exist.
        on_change: see `OnChange`; first called by `refresh`.
    """

    def __init__(self, downstreams: Iterable[str], upstream: str, on_change: OnChange) -> None:
        self._downstreams = tuple(downstreams)
        self._indexes = {name: interface_index(name) for name in (*self._downstreams, upstream)}
        self._on_change = on_change
        self._known: dict[tuple[str, Family], Address] = {}
        self._asker = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._socket = socket.socket(
            socket.AF_NETLINK,
            socket.SOCK_RAW | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC,
            socket.NETLINK_ROUTE,
        )
        self._socket.bind((0, _RTMGRP_LINK | _RTMGRP_IPV4_IFADDR | _RTMGRP_IPV6_IFADDR))

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._socket.fileno()

    def close(self) -> None:
        """Close; idempotent."""
        self._socket.close()
        self._asker.close()

    def readable(self) -> None:
        """Something changed: look at all again, whatever it was (or was lost: ENOBUFS)."""
        try:
            self._socket.recv(65536)
        except BlockingIOError:
            return
        except OSError:
            pass
        self.refresh()

    def refresh(self) -> None:
        """Call back for each address that is not as it was.

        Raises:
            LocalError: an interface has gone; its routes went with it.
        """
        for name, index in self._indexes.items():
            if interface_index(name) != index:
                raise LocalError(f"interface {name} was replaced: start the daemon again")
        for name in self._downstreams:
            for family in Family:
                address = self._address(name, family)
                if address != self._known.get((name, family)):
                    if address is None:
                        del self._known[(name, family)]
                    else:
                        self._known[(name, family)] = address
                    self._on_change(name, family, address)

    def known(self, interface: str, family: Family) -> Address | None:
        """Return our address on an interface, as last seen."""
        return self._known.get((interface, family))

    def _address(self, interface: str, family: Family) -> Address | None:
        flags = self._ask(_SIOCGIFFLAGS, interface)
        if flags is None:
            return None
        if struct.unpack_from("@h", flags)[0] & _IFF_UP_AND_RUNNING != _IFF_UP_AND_RUNNING:
            return None
        if family is Family.IPV6:
            return link_local(Path("/proc/thread-self/net/if_inet6").read_text(), interface)
        found = self._ask(_SIOCGIFADDR, interface)
        return None if found is None else IPv4Address(found[4:8])

    def _ask(self, request: int, interface: str) -> bytes | None:
        """Return the answer in a ``struct ifreq``, after the name; None if there is none."""
        ifreq = bytearray(interface.encode().ljust(_IFREQ_BYTES, b"\0"))
        try:
            fcntl.ioctl(self._asker.fileno(), request, ifreq)
        except OSError:
            return None
        return bytes(ifreq[16:])


def link_local(table: str, interface: str) -> IPv6Address | None:
    """Return the first usable link-local address in the text of ``/proc/net/if_inet6``."""
    for line in table.splitlines():
        address, _, _, scope, flags, name = line.split()
        usable = int(scope, 16) == _SCOPE_LINK and not int(flags, 16) & _UNUSABLE
        if name == interface and usable:
            return IPv6Address(bytes.fromhex(address))
    return None

"""Sees the making of an epoch from outside, message by message, and acts at one moment of it.

A packet socket on a device's cable sees what it hears and says; a netlink socket in its namespace
sees its SAs written, used and deleted. Nothing is asked of the daemons, so nothing is disturbed
before the moment, and the act follows it within the scheduler's latency.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from enum import StrEnum
from ipaddress import IPv6Address
from typing import Final

from protocol.core.errors import LocalError
from protocol.identity.envelope import KIND_OFFSET, PROTOCOL_MIKE
from protocol.idp.notice import PREAMBLE as NOTICE
from protocol.ipsec.model import Policy, SaId, SecurityAssociation
from protocol.mike.messages import Kind
from protocol.xfrm.messages import DelSa, Message, NewPolicy, NewSa, UpdPolicy
from protocol.xfrm.observer import XfrmObserver
from testbed.errors import DeadlineError, TestbedError, one_line

_ETH_P_ALL: Final = 3
"""A socket for one protocol would see nothing: the bridge takes frames before it does."""

_IPV6_TYPE: Final = b"\x86\xdd"
_FRAME_BYTES: Final = 9000
_ETHERNET, _IPV6, _UDP = 14, 40, 8
_NEXT_HEADER_OFFSET: Final = 6
_SOURCE: Final = slice(_ETHERNET + 8, _ETHERNET + 24)
_PAYLOAD: Final = _ETHERNET + _IPV6 + _UDP


class Moment(StrEnum):
    """Where the making of an epoch stands at a device, in this order."""

    JOIN = "join"
    """A JOIN was heard."""
    TREE = "tree"
    """The device said which members and keys there are (TREE)."""
    PATH = "path"
    """A sponsor's PATH was heard or said: everybody can compute the key."""
    WRITTEN = "written"
    """The device's first SA of the epoch is in its SAD."""
    NOTICE = "notice"
    """The device said that it has the SAs."""
    ACTIVE = "active"
    """Its outbound policy moved to the epoch."""
    DELETED = "deleted"
    """The first SA of the epoch before was deleted."""


_SAID: Final = {Moment.TREE: Kind.TREE}
_HEARD: Final = {Moment.JOIN: Kind.JOIN, Moment.PATH: Kind.PATH}
_KERNEL: Final = {
    Moment.WRITTEN: (NewSa,),
    Moment.ACTIVE: (NewPolicy, UpdPolicy),
    Moment.DELETED: (DelSa,),
}


def _is_group(message: Message | None) -> bool:
    """Return whether an announcement is about the group, not about a pair of devices."""
    match message:
        case NewSa(SecurityAssociation() as sa):
            return sa.destination.is_multicast
        case DelSa(SaId() as sa_id):
            return sa_id.destination.is_multicast
        case NewPolicy(Policy() as policy) | UpdPolicy(Policy() as policy):
            return policy.template_destination.is_multicast
    return False


class MomentWatch:
    """Watches one device.

    Args:
        interface: the switch's end of its cable, in the calling thread's namespace.
        pid: a process in its namespaces.
        address: its black address.

    Raises:
        TestbedError: the kernel does not let us watch.
    """

    def __init__(self, interface: str, pid: int, address: str) -> None:
        self._address = IPv6Address(address).packed
        self._stack = ExitStack()
        try:
            self._wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
            self._stack.callback(self._wire.close)
            self._wire.bind((interface, _ETH_P_ALL))
            self._kernel = XfrmObserver(pid)
            self._stack.callback(self._kernel.close)
        except (LocalError, OSError) as error:
            self._stack.close()
            raise TestbedError(f"cannot watch {interface}: {one_line(error)}") from None

    def close(self) -> None:
        """Stop watching; idempotent."""
        self._stack.close()

    def act(self, moment: Moment, action: Callable[[], None], deadline_s: float) -> int:
        """Wait for a moment, then act at once; return when it was (UTC ns).

        Raises:
            DeadlineError: it did not come.
        """
        end = time.monotonic() + deadline_s
        while (left := end - time.monotonic()) > 0:
            wire, kernel = self._wire.fileno(), self._kernel.fileno()
            readable, _, _ = select.select([wire, kernel], [], [], left)
            if (wire in readable and self._on_wire(moment)) or (
                kernel in readable and self._in_kernel(moment)
            ):
                when = time.time_ns()
                action()
                return when
        raise DeadlineError(f"the moment '{moment}' of an epoch did not come")

    def _in_kernel(self, moment: Moment) -> bool:
        return any(
            isinstance(event.message, _KERNEL.get(moment, ())) and _is_group(event.message)
            for event in self._kernel.events()
        )

    def _on_wire(self, moment: Moment) -> bool:
        frame = self._wire.recv(_FRAME_BYTES)
        if len(frame) <= _PAYLOAD + KIND_OFFSET or frame[12:14] != _IPV6_TYPE:
            return False
        if frame[_ETHERNET + _NEXT_HEADER_OFFSET] != socket.IPPROTO_UDP:
            return False
        payload, ours = frame[_PAYLOAD:], frame[_SOURCE] == self._address
        if moment is Moment.NOTICE:
            return ours and payload.startswith(NOTICE)
        wanted = _SAID.get(moment) if ours else None
        wanted = wanted or _HEARD.get(moment)
        return payload[1] == PROTOCOL_MIKE and payload[KIND_OFFSET] == wanted

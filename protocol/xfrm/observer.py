"""The kernel's own word on SAs and policies, from outside the daemon that writes them.

The testbed holds one observer in each device's namespace and compares the daemon's ``t_written``
with the moment at which XFRM announced the SA. The kernel announces inside the request, before
it acknowledges it (``km_state_notify`` in ``xfrm_add_sa``, net/xfrm/xfrm_user.c), but netlink
carries no time-stamps: an event is stamped when it is read, so a stamp is never too early and is
late by as long as the reader took to wake up.
"""

from __future__ import annotations

import socket
import time
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from protocol.ipsec.snapshot import SadSnapshot, SnapshotEntry
from protocol.xfrm.messages import (
    DelPolicy,
    DelSa,
    ExpirePolicy,
    ExpireSa,
    FlushPolicy,
    FlushSa,
    Message,
    NewPolicy,
    NewSa,
    UpdPolicy,
    UpdSa,
)
from protocol.xfrm.socket import (
    XFRMNLGRP_EXPIRE,
    XFRMNLGRP_POLICY,
    XFRMNLGRP_SA,
    XfrmOverrunError,
    XfrmSocket,
)

__all__ = ["SadSnapshot", "SnapshotEntry", "XfrmEvent", "XfrmObserver"]

_KINDS: dict[type, str] = {
    NewSa: "sa-added",
    UpdSa: "sa-updated",
    DelSa: "sa-deleted",
    FlushSa: "sas-flushed",
    ExpireSa: "sa-expired",
    NewPolicy: "policy-added",
    UpdPolicy: "policy-updated",
    DelPolicy: "policy-deleted",
    FlushPolicy: "policies-flushed",
    ExpirePolicy: "policy-expired",
}


@dataclass(frozen=True, slots=True)
class XfrmEvent:
    """One announcement.

    Attributes:
        kind: ``sa-added``, ``sa-deleted``, ``policy-updated``, ...; ``lost`` when the kernel
            dropped announcements and the SAD has to be read back.
        mono_ns: monotonic clock when it was read.
        wall_ns: UTC when it was read.
        message: what was announced, None for ``lost``.
        port: netlink port of the process that asked for the change, 0 if the kernel did it itself.
    """

    kind: str
    mono_ns: int
    wall_ns: int
    message: Message | None = None
    port: int = 0

    @property
    def spi(self) -> int | None:
        """SPI of the SA concerned, None for policies and flushes."""
        match self.message:
            case NewSa(sa):
                return sa.spi
            case DelSa(sa_id) | ExpireSa(sa_id, _):
                return sa_id.spi
        return None


class XfrmObserver:
    """Listens to SA, policy and expire announcements of one network namespace.

    Args:
        namespace: nsfs path or process id, or None for our own.
    """

    def __init__(self, namespace: str | int | None = None) -> None:
        groups = (XFRMNLGRP_SA, XFRMNLGRP_POLICY, XFRMNLGRP_EXPIRE)
        self._socket = XfrmSocket(namespace, groups)

    def fileno(self) -> int:
        """Return the descriptor, for a selector: readable when there are events."""
        return self._socket.fileno()

    def events(self) -> list[XfrmEvent]:
        """Return what was announced since the last call, without waiting."""
        events: list[XfrmEvent] = []
        while True:
            try:
                frames = self._socket.receive(socket.MSG_DONTWAIT)
            except BlockingIOError:
                return events
            except XfrmOverrunError:
                events.append(XfrmEvent("lost", time.monotonic_ns(), time.time_ns()))
                continue
            mono_ns, wall_ns = time.monotonic_ns(), time.time_ns()
            for frame in frames:
                kind = _KINDS.get(type(frame.message))
                if kind is not None:
                    events.append(XfrmEvent(kind, mono_ns, wall_ns, frame.message, frame.port))

    def close(self) -> None:
        """Close the socket; idempotent."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

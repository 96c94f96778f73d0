"""Eyes on the kernel of every device: announcements of SAs, and the SADs read back and compared.

The announcements come on one netlink socket per device namespace. A thread takes the bytes and the
time and nothing more; they are decoded when asked for, so that watching costs little while it is
measured. Keys are never kept: what is compared and recorded are digests.
"""

from __future__ import annotations

import contextlib
import errno
import os
import selectors
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final

from protocol.core.errors import LocalError, PeerError
from protocol.ipsec.snapshot import SadSnapshot
from protocol.xfrm.codec import decode
from protocol.xfrm.messages import DelSa, ExpireSa, FlushSa, Frame, NewSa, UpdSa
from protocol.xfrm.netlink import NetlinkBackend
from protocol.xfrm.socket import XFRMNLGRP_EXPIRE, XFRMNLGRP_SA, XfrmSocket
from testbed.cpu import IdleReport, IdleSampler
from testbed.errors import TestbedError
from testbed.packets import PacketCheck

__all__ = [
    "IdleReport",
    "IdleSampler",
    "KernelEvent",
    "KernelObserver",
    "PacketCheck",
    "SadCheck",
    "SadReader",
    "compare",
]

_READ_BYTES: Final = 1 << 16


@dataclass(frozen=True, slots=True)
class KernelEvent:
    """A notification about an SA that the kernel sent to the observer.

    Attributes:
        wall_ns: UTC at which the observer received it: never too early, late by its wake-up.
        device: in whose namespace.
        kind: ``new``, ``update``, ``delete``, ``flush``, ``expire``, or ``lost`` when the kernel
            dropped notifications.
        spi: of the SA, 0 where there is none.
        fields: source, destination and what else was told; never keys.
    """

    wall_ns: int
    device: str
    kind: str
    spi: int
    fields: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SadCheck:
    """Whether the SADs of all devices agree.

    Attributes:
        ok: they do; always False when not applicable.
        applicable: False when there is nothing to compare, see ``reason``.
        source: ``kernel``: read back by netlink; ``memory``: there is no kernel SAD.
        epoch: the common epoch, if there is one.
        reason: empty when ok, else what differs, naming devices.
        digests: digest of each device's SAD.
        spis: SPIs of each device's SAD, sorted.
        elapsed_ms: how long it took until they agreed.
    """

    ok: bool
    applicable: bool
    source: str
    epoch: str | None
    reason: str
    digests: Mapping[str, str]
    spis: Mapping[str, tuple[int, ...]]
    elapsed_ms: float

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return asdict(self)


class KernelObserver:
    """Collects the SA notifications of all devices.

    Args:
        nodes: device -> process that holds its namespaces.

    Raises:
        TestbedError: this kernel has no XFRM, or no right to listen.
    """

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self._sockets: dict[str, XfrmSocket] = {}
        self._selector = selectors.DefaultSelector()
        self._raw: list[tuple[int, str, bytes]] = []
        self._lock = threading.Lock()
        self._wake_read, self._wake_write = os.pipe()
        try:
            for device, pid in nodes.items():
                sock = XfrmSocket(pid, (XFRMNLGRP_SA, XFRMNLGRP_EXPIRE))
                self._sockets[device] = sock
                os.set_blocking(sock.fileno(), False)
                self._selector.register(sock.fileno(), selectors.EVENT_READ, device)
        except LocalError as error:
            self._close_descriptors()
            raise TestbedError(f"cannot observe the kernel's SAs: {error}") from None
        self._selector.register(self._wake_read, selectors.EVENT_READ, None)
        self._thread = threading.Thread(target=self._run, name="kernel-observer", daemon=True)
        self._thread.start()

    def events(self) -> list[KernelEvent]:
        """Return what came since the last call, in order of arrival."""
        with self._lock:
            raw, self._raw = self._raw, []
        events: list[KernelEvent] = []
        for wall_ns, device, data in raw:
            if not data:
                events.append(KernelEvent(wall_ns, device, "lost", 0))
                continue
            try:
                frames = decode(data)
            except PeerError as error:
                events.append(KernelEvent(wall_ns, device, "unreadable", 0, {"why": str(error)}))
                continue
            for frame in frames:
                event = _event(wall_ns, device, frame)
                if event is not None:
                    events.append(event)
        return events

    def close(self) -> None:
        """End the thread and close the sockets; idempotent."""
        if self._wake_write < 0:
            return
        os.write(self._wake_write, b"x")
        self._thread.join()
        self._close_descriptors()

    def _run(self) -> None:
        while True:
            for key, _ in self._selector.select():
                if key.data is None:
                    return
                self._take(key.fd, key.data)

    def _take(self, descriptor: int, device: str) -> None:
        while True:
            try:
                data = os.read(descriptor, _READ_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    return
                data = b""
            wall_ns = time.time_ns()
            with self._lock:
                self._raw.append((wall_ns, device, data))

    def _close_descriptors(self) -> None:
        self._selector.close()
        for sock in self._sockets.values():
            sock.close()
        for descriptor in (self._wake_read, self._wake_write):
            with contextlib.suppress(OSError):
                os.close(descriptor)
        self._wake_read = self._wake_write = -1


class SadReader:
    """Reads the group's SAs of all devices back from the kernel; pairs of devices have others."""

    def __init__(self, nodes: Mapping[str, int]) -> None:
        self._nodes = dict(nodes)
        self._backends: dict[str, NetlinkBackend] = {}

    def read(self, device: str) -> SadSnapshot:
        """Return the SAs of the group that a device's SAD holds now.

        Raises:
            TestbedError: the kernel did not tell.
        """
        try:
            if device not in self._backends:
                self._backends[device] = NetlinkBackend(self._nodes[device])
            sas = self._backends[device].dump_sas()
            return SadSnapshot.of(sa for sa in sas if sa.destination.is_multicast)
        except LocalError as error:
            raise TestbedError(f"{device}: cannot read its SAD: {error}") from None

    def close(self) -> None:
        """Close the sockets; idempotent."""
        for backend in self._backends.values():
            backend.close()
        self._backends.clear()


def compare(snapshots: Mapping[str, SadSnapshot], sa_mode: str) -> str:
    """Return what is wrong with the SADs of a group, nothing if they agree.

    In mode ``per-sender`` there is an SA per member and the SADs are equal; in mode ``paper`` one
    SA per epoch, whose source each device sets to its own address.
    """
    shared = sa_mode == "paper"
    least = 1 if shared else len(snapshots)
    for device, snapshot in snapshots.items():
        if len(snapshot.entries) < least:
            return f"{device} has {len(snapshot.entries)} SAs, at least {least} are expected"
    digests = {
        device: snapshot.digest_without_source if shared else snapshot.digest
        for device, snapshot in snapshots.items()
    }
    first = next(iter(digests), "")
    for device, digest in digests.items():
        if digest != digests[first]:
            theirs, ours = (
                {entry.spi for entry in snapshots[name].entries} for name in (first, device)
            )
            if theirs == ours:
                return f"{device} and {first} have the same SPIs with different keys"
            return (
                f"{device} and {first} differ in SPIs: "
                f"{', '.join(f'{spi:#x}' for spi in sorted(theirs ^ ours)[:4])}"
            )
    return ""


def _event(wall_ns: int, device: str, frame: Frame) -> KernelEvent | None:
    fields: dict[str, Any] = {"port": frame.port}
    match frame.message:
        case NewSa(sa) as message:
            kind = "update" if isinstance(message, UpdSa) else "new"
            fields |= {
                name: str(getattr(sa, name))
                for name in ("source", "destination", "suite")
                if hasattr(sa, name)
            }
            return KernelEvent(wall_ns, device, kind, int(getattr(sa, "spi", 0)), fields)
        case DelSa(sa_id):
            return KernelEvent(wall_ns, device, "delete", int(getattr(sa_id, "spi", 0)), fields)
        case ExpireSa(sa_id, _):
            return KernelEvent(wall_ns, device, "expire", int(getattr(sa_id, "spi", 0)), fields)
        case FlushSa():
            return KernelEvent(wall_ns, device, "flush", 0, fields)
    return None

"""The packet check: red multicast sent at one place must arrive decrypted at every other.

Each place gets two sockets in its namespace: one that has joined the red test group, one that sends
to it. A client's are on its LAN. A device's are on ``xfrm0``: what others send arrives there only
as ESP over the black network. What the device forwards into the tunnel itself, the kernel hands to
listeners there too, so a device is no witness for its own LAN.
"""

from __future__ import annotations

import secrets
import select
import socket
import struct
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any, Final, Protocol

from testbed.errors import TestbedError
from testbed.namespaces import NetNamespace

RED_GROUP: Final = IPv6Address("ff0e::7e57")
"""Red multicast group of the check packets; not the black group."""

RED_GROUP_4: Final = IPv4Address("239.126.87.1")
"""The same for IPv4."""

PORT: Final = 47600
HOP_LIMIT: Final = 8
RESEND_S: Final = 0.1
"""The same packet again: a sender may still be on the old epoch, which a joiner cannot read."""

_SO_TIMESTAMPNS: Final = 35
"""Of asm-generic/socket.h; the control message has the same number and holds a struct timespec."""

_TIMESPEC: Final = struct.Struct("@qq")
_MAGIC: Final = b"idpmike red check "


@dataclass(frozen=True, slots=True)
class PacketCheck:
    """Whether red multicast reaches everybody through IPsec.

    Attributes:
        ok: every packet arrived at every other device, no more often than it was sent; always
            False when not applicable.
        applicable: False for the memory backend: "not applicable: memory backend".
        reason: empty when ok.
        delivered: sender -> receiver -> milliseconds from the first sending, None for never.
        sendings: how often each sender's packet was sent.
    """

    ok: bool
    applicable: bool
    reason: str
    delivered: Mapping[str, Mapping[str, float | None]]
    sendings: Mapping[str, int]

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return asdict(self)


def not_applicable(reason: str) -> PacketCheck:
    """Return the answer where there is no data path to check."""
    return PacketCheck(False, False, f"not applicable: {reason}", {}, {})


class Endpoint(Protocol):
    """Where a device's check packets go out and come in."""

    def send(self, payload: bytes) -> str:
        """Send one packet; return why it could not be sent, or nothing."""

    def receive(self) -> list[bytes]:
        """Return what has arrived, without waiting."""

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""


class RedEndpoint:
    """The two sockets of one place.

    Args:
        namespace: of the device or client.
        red: its red address, the source; decides between IPv6 and IPv4.
        interface: where it sends and listens.
        group: red multicast group of the same family; None: the check's own.
        listening: whether it is a member of the group from the beginning.

    Raises:
        TestbedError: the address or interface cannot be used.
    """

    def __init__(
        self,
        namespace: NetNamespace,
        red: IPv6Address | IPv4Address,
        interface: str,
        *,
        group: IPv6Address | IPv4Address | None = None,
        listening: bool = True,
    ) -> None:
        v6 = red.version == 6
        self._group = group or (RED_GROUP if v6 else RED_GROUP_4)
        family = socket.AF_INET6 if v6 else socket.AF_INET
        with namespace.entered():
            self._receiver = socket.socket(family, socket.SOCK_DGRAM)
            self._sender = socket.socket(family, socket.SOCK_DGRAM)
            try:
                self._receiver.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
                index = socket.if_nametoindex(interface)
                self._membership = self._group.packed + struct.pack("@I", index)
                if v6:
                    self._open6(index, red)
                else:
                    self._membership = self._group.packed + struct.pack("@II", 0, index)
                    self._open4(index, red)
                if listening:
                    self.join()
            except OSError as error:
                self.close()
                raise TestbedError(
                    f"{namespace.name}: packet check on {interface}: {error.strerror}"
                ) from None

    def _open6(self, index: int, red: IPv6Address | IPv4Address) -> None:
        receiver, sender, v6 = self._receiver, self._sender, socket.IPPROTO_IPV6
        receiver.setblocking(False)
        receiver.bind((str(self._group), PORT, 0, index))
        sender.setblocking(False)
        sender.bind((str(red), 0))
        sender.setsockopt(v6, socket.IPV6_MULTICAST_IF, index)
        sender.setsockopt(v6, socket.IPV6_MULTICAST_HOPS, HOP_LIMIT)
        sender.setsockopt(v6, socket.IPV6_MULTICAST_LOOP, 0)

    def _open4(self, index: int, red: IPv6Address | IPv4Address) -> None:
        receiver, sender, v4 = self._receiver, self._sender, socket.IPPROTO_IP
        receiver.setblocking(False)
        receiver.bind((str(self._group), PORT))
        sender.setblocking(False)
        sender.bind((str(red), 0))
        sender.setsockopt(v4, socket.IP_MULTICAST_IF, struct.pack("@4s4sI", b"", red.packed, index))
        sender.setsockopt(v4, socket.IP_MULTICAST_TTL, HOP_LIMIT)
        sender.setsockopt(v4, socket.IP_MULTICAST_LOOP, 0)

    def join(self) -> None:
        """Become a listener of the group: the host reports it by MLD or IGMP."""
        if self._group.version == 6:
            self._receiver.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, self._membership)
        else:
            self._receiver.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, self._membership)

    def leave(self) -> None:
        """Be no listener any more."""
        if self._group.version == 6:
            self._receiver.setsockopt(
                socket.IPPROTO_IPV6, socket.IPV6_LEAVE_GROUP, self._membership
            )
        else:
            self._receiver.setsockopt(
                socket.IPPROTO_IP, socket.IP_DROP_MEMBERSHIP, self._membership
            )

    def send(self, payload: bytes) -> str:
        """Send one packet; return why it could not be sent, or nothing."""
        try:
            self._sender.sendto(payload, (str(self._group), PORT))
        except OSError as error:
            return error.strerror or str(error)
        return ""

    def receive(self) -> list[bytes]:
        """Return what has arrived, without waiting."""
        return [payload for _, payload in self.receive_stamped()]

    def receive_stamped(self) -> list[tuple[int, bytes]]:
        """Return what has arrived with the kernel's time of arrival (UTC ns), without waiting."""
        packets: list[tuple[int, bytes]] = []
        while True:
            try:
                payload, control, _, _ = self._receiver.recvmsg(2048, 128)
            except OSError:
                return packets
            stamps = [data for level, kind, data in control if kind == _SO_TIMESTAMPNS]
            seconds, nanoseconds = _TIMESPEC.unpack(stamps[0])
            packets.append((seconds * 1_000_000_000 + nanoseconds, payload))

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._receiver.fileno()

    def close(self) -> None:
        """Close both sockets; idempotent."""
        self._receiver.close()
        self._sender.close()


def check(
    endpoints: Mapping[str, Endpoint], senders: Sequence[str], deadline_s: float
) -> PacketCheck:
    """Send one marked packet per sender, again until all have it or time is up.

    Args:
        endpoints: of all devices that are to hear each other.
        senders: which of them send, one after the other.
        deadline_s: for each sender.
    """
    delivered: dict[str, dict[str, float | None]] = {}
    sendings: dict[str, int] = {}
    problems: list[str] = []
    for sender in senders:
        others = {name: point for name, point in endpoints.items() if name != sender}
        times, count, problem, arrivals = _one(endpoints[sender], sender, others, deadline_s)
        delivered[sender], sendings[sender] = times, count
        doubled = [name for name, number in arrivals.items() if number > count]
        if doubled:
            problems.append(f"from {sender} one packet came several times to {', '.join(doubled)}")
        missing = [name for name, value in times.items() if value is None]
        if missing:
            detail = f" ({problem})" if problem else ""
            problems.append(f"from {sender} nothing reached {', '.join(missing)}{detail}")
    return PacketCheck(not problems, True, "; ".join(problems), delivered, sendings)


def _one(
    source: Endpoint, sender: str, others: Mapping[str, Endpoint], deadline_s: float
) -> tuple[dict[str, float | None], int, str, Counter[str]]:
    """Return when it arrived first, how often it was sent, why it was not, how often it came."""
    payload = _MAGIC + sender.encode() + b" " + secrets.token_hex(8).encode()
    times: dict[str, float | None] = dict.fromkeys(others)
    waiting = dict(others)
    arrivals: Counter[str] = Counter()
    start = time.monotonic()
    next_send, count, problem = start, 0, ""
    while waiting and (now := time.monotonic()) < start + deadline_s:
        if now >= next_send:
            problem = source.send(payload)
            count += 1
            next_send = now + RESEND_S
        pause = max(0.0, min(next_send, start + deadline_s) - time.monotonic())
        ready = select.select(list(waiting.values()), [], [], pause)[0]
        for name, endpoint in list(waiting.items()):
            if endpoint in ready:
                arrivals[name] += endpoint.receive().count(payload)
            if arrivals[name]:
                times[name] = round((time.monotonic() - start) * 1e3, 3)
                del waiting[name]
    for name, endpoint in others.items():
        arrivals[name] += endpoint.receive().count(payload)
    return times, count, problem, arrivals

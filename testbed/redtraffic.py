"""A stream of numbered packets, and what became of it: a program for a client's namespace.

    python -m testbed.redtraffic send --source fd00:1::11 --interface eth0 --rate-pps 50 --json
    python -m testbed.redtraffic receive --own fd00:2::11 --interface eth0 --json

Both say ``{"ready": true}`` once their sockets are open, and give their report at SIGTERM (the
sender also after ``--count`` packets). At SIGUSR1 the receiver reports what came since the last
report and begins anew. Arrivals carry the kernel's receive stamp, so a receiver that reads late
measures no less exactly; it may even read only now and then (``--pause-ms``), to leave the
processors to what is measured. Only the standard library is imported: it starts in a moment.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, Final

GROUP: Final = IPv6Address("ff0e::7e58")
GROUP_4: Final = IPv4Address("239.126.88.1")
"""Red multicast groups of the streams; not those of the packet check (`testbed.packets`)."""

PORT: Final = 47601
HOP_LIMIT: Final = 8
GAPS_MAX: Final = 100
"""So many gaps are listed; all are counted."""

_HEAD: Final = struct.Struct(">4sIQQ")
_MAGIC: Final = b"RTs1"
SIZE_MIN: Final = _HEAD.size

_SO_TIMESTAMPNS: Final = 35  # asm-generic/socket.h
_SO_RXQ_OVFL: Final = 40
_SO_RCVBUFFORCE: Final = 33
_TIMESPEC: Final = struct.Struct("@qq")
_U32: Final = struct.Struct("@I")
_ANCILLARY: Final = socket.CMSG_SPACE(_TIMESPEC.size) + socket.CMSG_SPACE(_U32.size)
_LARGEST: Final = 65536
_NS: Final = 1_000_000_000
_BURST_MAX: Final = 64
"""A sender that is late sends at most this many in a row before it looks at its signals."""

Address = IPv4Address | IPv6Address


def packet(stream: int, sequence: int, sent_wall_ns: int, size_bytes: int) -> bytes:
    """Return one packet of a stream.

    Args:
        stream: its number, 32 bits.
        sequence: from 0.
        sent_wall_ns: UTC ns at which it is sent.
        size_bytes: of the UDP payload, at least `SIZE_MIN`.
    """
    return _HEAD.pack(_MAGIC, stream, sequence, sent_wall_ns).ljust(size_bytes, b"\0")


def parse(data: bytes) -> tuple[int, int, int] | None:
    """Return stream, sequence and send time (UTC ns) of a packet, None if it is not one."""
    if len(data) < _HEAD.size:
        return None
    magic, stream, sequence, sent_wall_ns = _HEAD.unpack_from(data)
    return (stream, sequence, sent_wall_ns) if magic == _MAGIC else None


@dataclass(slots=True)
class Tally:
    """What arrived of one stream at one receiver.

    A packet is lost if it is missing between the first and the last that arrived; what was sent
    before and after only the sender knows. It is reordered if one with a larger number came before.

    Attributes:
        seen: bit n is set when the packet of that number has arrived.
        received: packets, each number once.
        duplicated: further copies.
        reordered: packets overtaken by another.
        first: number, send time and arrival (UTC ns) of the first that arrived.
        last_arrival_ns: UTC ns.
        delay_min_ns: least time from sending to arrival; one kernel's clock.
        delay_max_ns: largest.
        gaps: first missing number, how many were missing, ns without an arrival.
        gap_count: how many gaps there were.
    """

    seen: bytearray = field(default_factory=bytearray)
    received: int = 0
    duplicated: int = 0
    reordered: int = 0
    first: tuple[int, int, int] | None = None
    first_sequence: int = 0
    last_sequence: int = -1
    last_arrival_ns: int = 0
    delay_min_ns: int = 0
    delay_max_ns: int = 0
    gaps: list[tuple[int, int, int]] = field(default_factory=list)
    gap_count: int = 0

    def add(self, sequence: int, sent_ns: int, arrival_ns: int) -> None:
        """Count one packet; numbers are below 2^28, so that the bits fit into 32 MiB."""
        place, bit = sequence >> 3, 1 << (sequence & 7)
        if place >= len(self.seen):
            self.seen.extend(bytes(place + 256 - len(self.seen)))
        if self.seen[place] & bit:
            self.duplicated += 1
            return
        self.seen[place] |= bit
        self.received += 1
        delay = arrival_ns - sent_ns
        if self.first is None:
            self.first = (sequence, sent_ns, arrival_ns)
            self.first_sequence = sequence
            self.delay_min_ns = self.delay_max_ns = delay
        elif sequence > self.last_sequence:
            if (missing := sequence - self.last_sequence - 1) > 0:
                self.gap_count += 1
                if len(self.gaps) < GAPS_MAX:
                    gap_ns = arrival_ns - self.last_arrival_ns
                    self.gaps.append((self.last_sequence + 1, missing, gap_ns))
        else:
            self.reordered += 1
            self.first_sequence = min(self.first_sequence, sequence)
        self.delay_min_ns = min(self.delay_min_ns, delay)
        self.delay_max_ns = max(self.delay_max_ns, delay)
        self.last_sequence = max(self.last_sequence, sequence)
        self.last_arrival_ns = max(self.last_arrival_ns, arrival_ns)

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values; times are UTC ns, delays and gaps ms."""
        assert self.first is not None
        return {
            "received": self.received,
            "lost": self.last_sequence - self.first_sequence + 1 - self.received,
            "duplicated": self.duplicated,
            "reordered": self.reordered,
            "first_sequence": self.first_sequence,
            "last_sequence": self.last_sequence,
            "first_arrival_wall_ns": self.first[2],
            "first_arrival_sequence": self.first[0],
            "first_arrival_sent_wall_ns": self.first[1],
            "last_arrival_wall_ns": self.last_arrival_ns,
            "delay_min_ms": self.delay_min_ns / 1e6,
            "delay_max_ms": self.delay_max_ns / 1e6,
            "gap_count": self.gap_count,
            "gaps": [
                {"first_missing": first, "missing": missing, "silent_ms": silent_ns / 1e6}
                for first, missing, silent_ns in self.gaps
            ],
        }


@contextlib.contextmanager
def _closed_on_error(sock: socket.socket) -> Iterator[socket.socket]:
    try:
        yield sock
    except BaseException:
        sock.close()
        raise


class Receiver:
    """A member of the group that counts every stream.

    Args:
        own: an address of this client; decides between IPv6 and IPv4.
        interface: where it listens.
        group: of the same family.
        port: UDP port.
        buffer_bytes: what the kernel keeps until it is read; needs CAP_NET_ADMIN.

    Raises:
        OSError: the interface, group or buffer cannot be had.
    """

    def __init__(
        self, own: Address, interface: str, group: Address, port: int, buffer_bytes: int
    ) -> None:
        v6 = own.version == 6
        self._socket = socket.socket(
            socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
        )
        self._tallies: dict[tuple[int, str], Tally] = {}
        self._foreign = 0
        self._overflow = self._overflow_before = 0
        with _closed_on_error(self._socket) as sock:
            index = socket.if_nametoindex(interface)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, buffer_bytes)
            sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
            sock.setsockopt(socket.SOL_SOCKET, _SO_RXQ_OVFL, 1)
            if v6:
                sock.bind((str(group), port, 0, index))
                membership = group.packed + struct.pack("@I", index)
                sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
            else:
                sock.bind((str(group), port))
                membership = group.packed + struct.pack("@II", 0, index)
                sock.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)

    def fileno(self) -> int:
        """Return the descriptor that becomes readable."""
        return self._socket.fileno()

    def drain(self) -> None:
        """Count everything that has arrived."""
        receive, tallies = self._socket.recvmsg, self._tallies
        while True:
            try:
                data, ancillary, _, sender = receive(_LARGEST, _ANCILLARY)
            except BlockingIOError:
                return
            arrival = 0
            for _, kind, value in ancillary:
                if kind == _SO_TIMESTAMPNS:
                    seconds, rest = _TIMESPEC.unpack_from(value)
                    arrival = seconds * _NS + rest
                elif kind == _SO_RXQ_OVFL:
                    self._overflow = _U32.unpack_from(value)[0]
            found = parse(data)
            if found is None or found[1] >= 1 << 28:
                self._foreign += 1
                continue
            key = (found[0], sender[0])
            tally = tallies.get(key)
            if tally is None:
                tally = tallies[key] = Tally()
            tally.add(found[1], found[2], arrival)

    def report(self) -> dict[str, Any]:
        """Return what came since the last report, and begin anew.

        ``overflow`` counts packets that had come and found the buffer full: lost by us, not on the
        way. The kernel tells it with the next packet, so a report may lack those of the very end.
        """
        streams = [
            {"stream": stream, "source": source, **tally.as_json()}
            for (stream, source), tally in sorted(self._tallies.items())
        ]
        overflow = self._overflow - self._overflow_before
        self._overflow_before = self._overflow
        foreign, self._foreign = self._foreign, 0
        self._tallies.clear()
        return {"streams": streams, "overflow": overflow, "foreign": foreign}

    def close(self) -> None:
        """Leave the group."""
        self._socket.close()


class Sender:
    """Sends a stream at a constant rate.

    Args:
        source: address of this client; decides between IPv6 and IPv4.
        interface: where it goes out.
        group: of the same family.
        port: UDP port.
        hop_limit: of the packets; each router on the red way takes one.

    Raises:
        OSError: the address or interface cannot be used.
    """

    def __init__(
        self, source: Address, interface: str, group: Address, port: int, hop_limit: int
    ) -> None:
        v6 = source.version == 6
        self._socket = socket.socket(socket.AF_INET6 if v6 else socket.AF_INET, socket.SOCK_DGRAM)
        with _closed_on_error(self._socket) as sock:
            index = socket.if_nametoindex(interface)
            sock.bind((str(source), 0))
            if v6:
                level = socket.IPPROTO_IPV6
                sock.setsockopt(level, socket.IPV6_MULTICAST_IF, index)
                sock.setsockopt(level, socket.IPV6_MULTICAST_HOPS, hop_limit)
                sock.setsockopt(level, socket.IPV6_MULTICAST_LOOP, 0)
            else:
                level = socket.IPPROTO_IP
                chosen = struct.pack("@4s4sI", b"", source.packed, index)
                sock.setsockopt(level, socket.IP_MULTICAST_IF, chosen)
                sock.setsockopt(level, socket.IP_MULTICAST_TTL, hop_limit)
                sock.setsockopt(level, socket.IP_MULTICAST_LOOP, 0)
            sock.connect((str(group), port))

    def run(
        self, stream: int, rate_pps: float, size_bytes: int, count: int | None, signals: Signals
    ) -> dict[str, Any]:
        """Send until ``count`` packets are sent or SIGTERM; return the report.

        Packet n is due n / rate after the start; one that is late is sent at once, so the mean rate
        holds as long as the machine can.
        """
        interval_ns = _NS / rate_pps
        begin = time.monotonic_ns()
        sequence = sent = late_max_ns = 0
        refused: dict[str, int] = {}
        first_ns = last_ns = 0
        send, now_ns, wall_ns = self._socket.send, time.monotonic_ns, time.time_ns
        padding = bytes(size_bytes - SIZE_MIN)
        while not signals.end and (count is None or sequence < count):
            elapsed = now_ns() - begin
            due = int(elapsed / interval_ns) + 1
            if count is not None:
                due = min(due, count)
            late_max_ns = max(late_max_ns, elapsed - int(sequence * interval_ns))
            for number in range(sequence, min(due, sequence + _BURST_MAX)):
                last_ns = wall_ns()
                first_ns = first_ns or last_ns
                try:
                    send(_HEAD.pack(_MAGIC, stream, number, last_ns) + padding)
                    sent += 1
                except OSError as error:
                    text = error.strerror or str(error)
                    refused[text] = refused.get(text, 0) + 1
                sequence = number + 1
            pause_ns = int(sequence * interval_ns) - (now_ns() - begin)
            if pause_ns > 0:
                signals.wait(pause_ns / _NS)
        seconds = (now_ns() - begin) / _NS
        return {
            "stream": stream,
            "sent": sent,
            "refused": refused,
            "numbers": sequence,
            "seconds": seconds,
            "rate_pps": sequence / seconds if seconds > 0 else 0.0,
            "late_max_ms": late_max_ns / 1e6,
            "first_sent_wall_ns": first_ns,
            "last_sent_wall_ns": last_ns,
        }

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


class Signals:
    """SIGTERM and SIGINT end the program, SIGUSR1 asks for a report; both end a wait at once.

    Attributes:
        end: whether to end.
        report: whether a report is wanted; whoever gives it sets it to False.
    """

    def __init__(self) -> None:
        self.end = False
        self.report = False
        self._read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(write)
        signal.signal(signal.SIGTERM, self._on_end)
        signal.signal(signal.SIGINT, self._on_end)
        signal.signal(signal.SIGUSR1, self._on_report)

    def _on_end(self, _number: int, _frame: Any) -> None:
        self.end = True

    def _on_report(self, _number: int, _frame: Any) -> None:
        self.report = True

    def wait(self, seconds: float | None, *readable: Receiver) -> None:
        """Wait until a signal has come, something is readable or the time is over."""
        watched: list[int | Receiver] = [self._read, *readable]
        ready = select.select(watched, [], [], seconds)[0]
        if self._read in ready:
            with contextlib.suppress(BlockingIOError):
                os.read(self._read, 64)


def _receive(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    group = options.group or (GROUP if options.own.version == 6 else GROUP_4)
    buffer_bytes = options.buffer_bytes
    receiver = Receiver(options.own, options.interface, group, options.port, buffer_bytes)
    with contextlib.closing(receiver):
        signals = Signals()
        yield {"ready": True}
        while not signals.end:
            if options.pause_ms:
                signals.wait(options.pause_ms / 1000)
            else:
                signals.wait(None, receiver)
            receiver.drain()
            if signals.report and not signals.end:
                signals.report = False
                yield receiver.report()
        yield receiver.report()


def _send(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    group = options.group or (GROUP if options.source.version == 6 else GROUP_4)
    sender = Sender(options.source, options.interface, group, options.port, options.hop_limit)
    with contextlib.closing(sender):
        signals = Signals()
        yield {"ready": True}
        yield sender.run(
            options.stream, options.rate_pps, options.size_bytes, options.count, signals
        )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="testbed.redtraffic", description=__doc__)
    commands = parser.add_subparsers(required=True)
    send = commands.add_parser("send", help="send numbered packets at a constant rate")
    send.set_defaults(run=_send)
    send.add_argument("--source", type=ip_address, required=True)
    send.add_argument("--rate-pps", type=float, default=50.0)
    send.add_argument("--size-bytes", type=int, default=200, help="of the UDP payload")
    send.add_argument("--count", type=int, help="end after so many; without: at SIGTERM")
    send.add_argument("--stream", type=int, default=1, help="number of the stream")
    send.add_argument("--hop-limit", type=int, default=HOP_LIMIT)
    receive = commands.add_parser("receive", help="count what arrives")
    receive.set_defaults(run=_receive)
    receive.add_argument("--own", type=ip_address, required=True)
    receive.add_argument("--pause-ms", type=int, default=0, help="between readings; 0: at once")
    receive.add_argument("--buffer-bytes", type=int, default=8 << 20)
    for command in (send, receive):
        command.add_argument("--interface", required=True)
        command.add_argument("--group", type=ip_address)
        command.add_argument("--port", type=int, default=PORT)
        command.add_argument("--json", action="store_true", help="one JSON object a line")
    return parser


def _text(report: dict[str, Any]) -> str:
    if report.get("ready"):
        return "ready"
    if "streams" not in report:
        return ", ".join(f"{name} {value}" for name, value in report.items())
    lines = [
        f"stream {s['stream']} from {s['source']}: received {s['received']}, lost {s['lost']}, "
        f"duplicated {s['duplicated']}, reordered {s['reordered']}, {s['gap_count']} gaps"
        for s in report["streams"]
    ]
    return "\n".join(lines or ["nothing has arrived"])


def main(arguments: list[str] | None = None) -> int:
    """Run the program; return the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if getattr(options, "size_bytes", SIZE_MIN) < SIZE_MIN:
        parser.error(f"--size-bytes is at least {SIZE_MIN}")
    if getattr(options, "rate_pps", 1.0) <= 0:
        parser.error("--rate-pps must be positive")
    try:
        for report in options.run(options):
            print(json.dumps(report) if options.json else _text(report), flush=True)
    except OSError as error:
        print(f"redtraffic: error: {error.strerror or error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Answers an NTP on-wire exchange (RFC 5905 sections 7.3 and 8), to measure clock offsets.

It is an instrument, not a source of time: it answers a client (mode 3) with the device's own clock
and synchronises nothing. The receive time-stamp is the kernel's (SO_TIMESTAMPNS), so that a busy
daemon does not show as a clock offset; the transmit time-stamp is taken right before ``sendto``.
Both are shifted by the injected offset of the device's clock (`protocol.daemon.clock`).

Standalone: ``python -m protocol.daemon.timeserver ADDRESS PORT [OFFSET_US]``.
"""

from __future__ import annotations

import struct
import sys
import time
from collections import Counter
from ipaddress import IPv6Address

from protocol.core.errors import LocalError
from protocol.daemon.sockets import arrival_wall_ns, stamped_socket

PACKET_LENGTH = 48
"""Header of RFC 5905 figure 8; extension fields and MAC are neither understood nor wanted."""

UNIX_EPOCH_IN_NTP_S = 2_208_988_800
"""1970 minus 1900 in seconds (RFC 5905 section 6)."""

STRATUM = 1
PRECISION = -20
"""log2 of the clock's resolution in seconds: about a microsecond."""

REFERENCE_ID = b"LOCL"

MODE_CLIENT = 3
MODE_SERVER = 4
VERSIONS = (3, 4)

_PACKET = struct.Struct("!BBbb4s4s4sQQQQ")
_BATCH_MAX = 4


def ntp_from_unix_ns(wall_ns: int) -> int:
    """Return UTC nanoseconds as a 64-bit NTP time-stamp, rounded to the nearest 2^-32 s."""
    seconds, rest_ns = divmod(wall_ns, 1_000_000_000)
    return (((seconds + UNIX_EPOCH_IN_NTP_S) << 32) + ((rest_ns << 32) + 500_000_000) // 10**9) % (
        1 << 64
    )


def unix_ns_from_ntp(stamp: int) -> int:
    """Return a 64-bit NTP time-stamp of the era that began in 1900 as UTC nanoseconds."""
    seconds, fraction = stamp >> 32, stamp & 0xFFFFFFFF
    return (seconds - UNIX_EPOCH_IN_NTP_S) * 10**9 + ((fraction * 10**9 + (1 << 31)) >> 32)


class TimeServer:
    """The responder on one address and port.

    Attributes:
        counters: requests answered and dropped, by reason.
    """

    def __init__(
        self, address: IPv6Address, port: int, offset_ns: int = 0, interface: str = ""
    ) -> None:
        self.counters: Counter[str] = Counter()
        self._offset_ns = offset_ns
        self._socket = stamped_socket(interface, address, port)

    def fileno(self) -> int:
        """Return the descriptor, for the loop."""
        return self._socket.fileno()

    @property
    def port(self) -> int:
        """The port it is bound to."""
        return int(self._socket.getsockname()[1])

    def readable(self) -> None:
        """Answer what is queued, at most one batch; never raises for what a client did."""
        for _ in range(_BATCH_MAX):
            try:
                request, ancillary, _, client = self._socket.recvmsg(PACKET_LENGTH + 1, 64)
            except BlockingIOError:
                return
            except OSError:
                self.counters["ntp.receive_failed"] += 1
                return
            received_ns = arrival_wall_ns(ancillary) or time.time_ns()
            defect = request_defect(request)
            if defect:
                self.counters[f"ntp.{defect}"] += 1
                continue
            try:
                self._socket.sendto(self._answer(request, received_ns), client)
            except OSError:
                self.counters["ntp.send_failed"] += 1
                continue
            self.counters["ntp.answered"] += 1

    def _answer(self, request: bytes, received_ns: int) -> bytes:
        receive_stamp = ntp_from_unix_ns(received_ns + self._offset_ns)
        head = (request[0] & 0b00111000) | MODE_SERVER
        return _PACKET.pack(
            head,
            STRATUM,
            request[2] - 256 if request[2] > 127 else request[2],
            PRECISION,
            bytes(4),
            bytes(4),
            REFERENCE_ID,
            receive_stamp,
            int.from_bytes(request[40:48], "big"),
            receive_stamp,
            ntp_from_unix_ns(time.time_ns() + self._offset_ns),
        )

    def close(self) -> None:
        """Close; idempotent."""
        self._socket.close()


def request_defect(request: bytes) -> str:
    """Return why a datagram is not a client's request, as a counter name; empty if it is one."""
    if len(request) < PACKET_LENGTH:
        return "truncated"
    if len(request) > PACKET_LENGTH:
        return "oversized"
    if request[0] & 0b111 != MODE_CLIENT:
        return "not_a_client"
    if request[0] >> 3 & 0b111 not in VERSIONS:
        return "version"
    if not any(request[40:48]):
        return "no_transmit_stamp"
    return ""


def main(arguments: list[str]) -> int:
    """Serve until killed."""
    import select

    try:
        address, port = IPv6Address(arguments[0]), int(arguments[1])
        offset_ns = int(arguments[2]) * 1000 if len(arguments) > 2 else 0
    except (IndexError, ValueError):
        sys.stderr.write("usage: python -m protocol.daemon.timeserver ADDRESS PORT [OFFSET_US]\n")
        return 2
    try:
        server = TimeServer(address, port, offset_ns)
    except LocalError as error:
        sys.stderr.write(f"timeserver: {error}\n")
        return 1
    try:
        while True:
            select.select([server.fileno()], [], [])
            server.readable()
    except KeyboardInterrupt:
        return 0
    finally:
        server.close()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

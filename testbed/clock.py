"""Clock offset and delay between the monitor and every device: the NTP on-wire exchange.

RFC 5905 section 8: with t1 (request sent), t2 (request received), t3 (answer sent) and t4 (answer
received), ``offset = ((t2 - t1) + (t3 - t4)) / 2`` and ``delay = (t4 - t1) - (t3 - t2)``. The true
offset lies within half the delay of the measured one, whatever the asymmetry of the path; so of
all samples the one with the smallest delay is kept (the clock filter, section 10).

The client's socket lies in the monitor's namespace; t2 and t4 are the kernel's receive stamps,
which a busy process does not move. On one machine all clocks are one and the true offset is zero:
there the exchange calibrates the instrument.
"""

from __future__ import annotations

import select
import socket
import struct
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from ipaddress import IPv6Address
from typing import Any, Final

from testbed.errors import TestbedError
from testbed.namespaces import NetNamespace

NTP_EPOCH_S: Final = 2_208_988_800
"""1900 to 1970 in seconds (RFC 5905 section 6)."""

_VERSION_AND_MODE: Final = (4 << 3) | 3
_SERVER_MODE: Final = 4
_PACKET: Final = struct.Struct("!BBbb4s4s4sQQQQ")
_SCM_TIMESTAMPNS: Final = 35
_TIMESPEC: Final = struct.Struct("@qq")
_UNANSWERED_MAX: Final = 3


class ClockError(TestbedError):
    """A device's clock could not be measured."""


@dataclass(frozen=True, slots=True)
class Offset:
    """How far a device's clock is ahead of the monitor's.

    Attributes:
        offset_ns: device clock minus monitor clock; subtract it from the device's stamps.
        delay_ns: round-trip delay of the best sample.
        bound_ns: the largest possible error of ``offset_ns`` (half the delay).
        samples: answered exchanges.
    """

    offset_ns: int
    delay_ns: int
    bound_ns: int
    samples: int

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values for a record."""
        return asdict(self)


def measure(
    namespace: NetNamespace,
    source: IPv6Address,
    targets: Mapping[str, tuple[IPv6Address, int]],
    samples: int = 16,
    *,
    timeout_s: float = 0.5,
    shift_ns: int = 0,
) -> dict[str, Offset]:
    """Measure the clocks of devices against the monitor's.

    Args:
        namespace: the monitor's.
        source: the monitor's black address.
        targets: device -> address and port of its responder.
        samples: exchanges with each device, spread over rounds.
        timeout_s: longest wait for one answer.
        shift_ns: how far the monitor's clock is ahead of the machine's (an injected offset).

    Raises:
        ClockError: a device answers none of its requests.
    """
    found: dict[str, list[Offset]] = {device: [] for device in targets}
    missed = dict.fromkeys(targets, 0)
    with namespace.entered():
        client = _open(source)
    with client:
        for _ in range(samples):
            for device, target in targets.items():
                if missed[device] >= _UNANSWERED_MAX and not found[device]:
                    address, port = target
                    raise ClockError(
                        f"{device}: no clock answers at [{address}]:{port} (UDP); is its idpd "
                        "running, and is [clock] responder_port set?"
                    )
                sample = _exchange(client, target, timeout_s, shift_ns)
                if sample is None:
                    missed[device] += 1
                else:
                    found[device].append(sample)
    return {device: best(of_device) for device, of_device in found.items()}


def best(samples: list[Offset]) -> Offset:
    """Return the sample with the smallest delay, with the number of all.

    Raises:
        ClockError: there is none.
    """
    if not samples:
        raise ClockError("no clock sample at all")
    least = min(samples, key=lambda sample: sample.delay_ns)
    return Offset(least.offset_ns, least.delay_ns, least.bound_ns, len(samples))


def combine(t1: int, t2: int, t3: int, t4: int) -> Offset:
    """Return offset and delay of one exchange; the four stamps are nanoseconds."""
    delay = (t4 - t1) - (t3 - t2)
    # Clock resolution can make a tiny delay negative; RFC 5905 section 8 clamps it.
    delay = max(delay, 1)
    return Offset(((t2 - t1) + (t3 - t4)) // 2, delay, (delay + 1) // 2, 1)


def to_ntp(wall_ns: int) -> int:
    """Return UTC nanoseconds as a 64-bit NTP time-stamp."""
    seconds, rest = divmod(wall_ns, 10**9)
    return ((seconds + NTP_EPOCH_S) << 32) + ((rest << 32) + 5 * 10**8) // 10**9


def from_ntp(stamp: int) -> int:
    """Return a 64-bit NTP time-stamp as UTC nanoseconds."""
    return ((stamp >> 32) - NTP_EPOCH_S) * 10**9 + (
        ((stamp & 0xFFFFFFFF) * 10**9 + (1 << 31)) >> 32
    )


def _open(source: IPv6Address) -> socket.socket:
    client = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    client.setsockopt(socket.SOL_SOCKET, _SCM_TIMESTAMPNS, 1)
    client.setblocking(False)
    client.bind((str(source), 0))
    return client


def _exchange(
    client: socket.socket, target: tuple[IPv6Address, int], timeout_s: float, shift_ns: int
) -> Offset | None:
    """Ask once; None if no answer to this very request came in time."""
    address, port = target
    t1 = time.time_ns() + shift_ns
    sent = to_ntp(t1)
    request = _PACKET.pack(_VERSION_AND_MODE, 0, 0, 0, bytes(4), bytes(4), bytes(4), 0, 0, 0, sent)
    try:
        client.sendto(request, (str(address), port))
    except OSError:
        return None
    limit = time.monotonic() + timeout_s
    while (left := limit - time.monotonic()) > 0:
        if not select.select([client], [], [], left)[0]:
            return None
        try:
            answer, ancillary, _, _ = client.recvmsg(_PACKET.size + 1, 64)
        except OSError:  # the responder's port is closed: ICMPv6 said so
            return None
        if len(answer) != _PACKET.size:
            continue
        head, _, _, _, _, _, _, _, origin, received, transmitted = _PACKET.unpack(answer)
        if head & 7 != _SERVER_MODE or origin != sent:
            continue
        t4 = _kernel_stamp(ancillary) + shift_ns
        return combine(t1, from_ntp(received), from_ntp(transmitted), t4)
    return None


def _kernel_stamp(ancillary: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, _SCM_TIMESTAMPNS):
            seconds, rest = _TIMESPEC.unpack(data[: _TIMESPEC.size])
            return int(seconds) * 10**9 + int(rest)
    return time.time_ns()

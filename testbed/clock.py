"""Clock offset and delay between devices: the NTP on-wire exchange. SKELETON."""

from __future__ import annotations

from dataclasses import dataclass


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

"""What is dropped before it is decoded: too much of what is worth no look (AUTH-19).

A signature costs a hundred times what a mark costs. So a message that has its mark is always looked
at; one that has none, only while not too many were forged in its sender's name. The count is each
device's own: whoever forges in one name does nothing to another. Nothing that a device signs for
itself ever counts, so without forgeries nothing is shed, marked or not.

Even to shed costs time, and in a socket that is full what is genuine is lost with the rest. So such
a device is a suspect while too much is forged in its name: its messages are read apart from those
of the others, after them.
"""

from __future__ import annotations

from ipaddress import IPv6Address
from typing import Final

from protocol.core.buckets import Bucket
from protocol.core.counters import RuleCounters
from protocol.core.engine import Instant
from protocol.identity import envelope
from protocol.identity.known import KnownDevice
from protocol.identity.marks import Marks

RULE_UNMARKED: Final = "AUTH-19"

CHECKS_IN_VAIN_PER_S: Final = 1
CHECKS_BURST_S: Final = 2
"""Signatures that do not verify which are checked in a second in the name of one device, and the
seconds whose checks may come at once. No device makes such messages."""

REASONS_PER_S: Final = 50
"""Datagrams without any form that are refused with a reason in a second; others are counted."""


class Shedding:
    """Owned by `protocol.identity.identity.Identity`.

    Attributes:
        changes: how often `know` was called, a device became a suspect, or ceased to be one:
            whoever keeps something of whom we know looks here.

    Args:
        marks: ours.
        counters: of the identity.
    """

    def __init__(self, marks: Marks, counters: RuleCounters) -> None:
        self._marks = marks
        self._counters = counters
        self._devices: dict[bytes, KnownDevice] = {}
        self._in_vain: dict[bytes, Bucket] = {}
        self._reasons = Bucket(REASONS_PER_S, 0, burst_s=1)
        self._suspects: dict[bytes, None] = {}
        self.changes = 0

    def suspects(self) -> list[IPv6Address]:
        """Return the addresses of the devices in whose name too much is forged now."""
        return [self._devices[fingerprint].peer.address for fingerprint in self._suspects]

    def know(self, devices: dict[bytes, KnownDevice]) -> None:
        """Take other devices, by fingerprint; what was counted of those that stay is kept."""
        self.changes += 1
        self._devices = devices
        self._in_vain = {key: one for key, one in self._in_vain.items() if key in devices}
        self._suspects = {key: None for key in self._suspects if key in devices}

    def explained(self, now: Instant) -> None:
        """Note that a datagram without any form was refused with a reason."""
        self._reasons.take(now.mono_ns)

    def in_vain(self, fingerprint: bytes, now: Instant) -> None:
        """Note that something in a device's name did not verify: a signature, or a MAC."""
        if fingerprint not in self._in_vain:
            bucket = Bucket(CHECKS_IN_VAIN_PER_S, now.mono_ns, burst_s=CHECKS_BURST_S)
            self._in_vain[fingerprint] = bucket
        bucket = self._in_vain[fingerprint]
        bucket.take(now.mono_ns)
        if fingerprint not in self._suspects and not bucket.has_one(now.mono_ns):
            self._suspects[fingerprint] = None
            self.changes += 1

    def in_order(self, device: KnownDevice, now: Instant) -> None:
        """Note that a signature of a device did verify.

        A suspect is one until nothing was forged for as long as its bucket takes to fill.
        """
        fingerprint = device.peer.fingerprint
        if fingerprint in self._suspects and self._in_vain[fingerprint].is_full(now.mono_ns):
            del self._suspects[fingerprint]
            self.changes += 1

    def drops(self, datagram: bytes, mono_ns: int) -> bool:
        """Say whether a datagram is one too many; then it is counted, and nothing else is done.

        Who asks before it decodes may be asked again later: nothing changes for what passes. Those
        are datagrams without the form of an envelope, and messages without a mark of a device in
        whose name too much was forged.
        """
        if not envelope.may_decode(datagram):
            if self._reasons.has_one(mono_ns):
                return False  # whoever decodes it says what is wrong with it
            self._counters.count(envelope.RULE_SYNTAX)
            return True
        fingerprint = datagram[envelope.FINGERPRINT]
        in_vain = self._in_vain.get(fingerprint)
        if in_vain is None or in_vain.has_one(mono_ns):
            return False
        if self._marks.is_marked(datagram, self._devices[fingerprint]):
            return False
        self._counters.count(RULE_UNMARKED)
        return True

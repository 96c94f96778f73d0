"""The anti-replay window: a sliding bitmap over 64-bit sequence numbers (RFC 6479, RFC 4303).

Memory is bounded by the window's size whatever arrives. Checking and marking are apart, because a
sequence number may be marked only after the message that carries it was authenticated
(RFC 4303 section 3.4.3).
"""

from __future__ import annotations

WINDOW_BITS = 1024
"""Default window: RFC 4303 asks for at least 32 and recommends 64. A larger one costs 128 bytes and
never refuses the reordering of a burst by netem or multicast."""

SEQUENCE_MAX = (1 << 64) - 1


class AntiReplayWindow:
    """Remembers which of the last ``bits`` sequence numbers were seen.

    Attributes:
        highest: largest sequence number marked, or -1.
    """

    __slots__ = ("_all", "_bits", "_seen", "highest")

    def __init__(self, bits: int = WINDOW_BITS) -> None:
        if bits < 1:
            raise ValueError("a window has at least one bit")
        self._bits = bits
        self._all = (1 << bits) - 1
        self._seen = 0
        self.highest = -1

    def is_fresh(self, sequence: int) -> bool:
        """Say whether this number was not seen and is not older than the window; marks nothing."""
        if not 0 <= sequence <= SEQUENCE_MAX:
            return False
        if sequence > self.highest:
            return True
        age = self.highest - sequence
        return age < self._bits and not self._seen >> age & 1

    def mark(self, sequence: int) -> bool:
        """Record an authenticated number; False (and no change) if it was not fresh."""
        if not self.is_fresh(sequence):
            return False
        if sequence > self.highest:
            # The shift is clipped first: a jump of 2**63 must not build a number of that many bits.
            jump = min(sequence - self.highest, self._bits)
            self._seen = (self._seen << jump | 1) & self._all
            self.highest = sequence
        else:
            self._seen |= 1 << (self.highest - sequence)
        return True

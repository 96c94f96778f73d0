"""Token buckets: how often something may be done in a second, with a burst."""

from __future__ import annotations

BURST_S = 4
"""A bucket holds the tokens of so many seconds."""

_NS_PER_S = 1_000_000_000


class Bucket:
    """Fills at a rate and gives tokens out; starts full."""

    __slots__ = ("_filled_mono_ns", "_most_ns", "_rate", "_tokens_ns")

    def __init__(self, per_s: int, now_mono_ns: int, burst_s: int = BURST_S) -> None:
        self._rate = per_s
        self._tokens_ns = self._most_ns = per_s * burst_s * _NS_PER_S
        self._filled_mono_ns = now_mono_ns

    def take(self, now_mono_ns: int) -> bool:
        """Take one token if there is one."""
        if not self.has_one(now_mono_ns):
            return False
        self._tokens_ns -= _NS_PER_S
        return True

    def has_one(self, now_mono_ns: int) -> bool:
        """Say whether there is a token. Times that go back (arrivals) give and take nothing."""
        gained_ns = max(now_mono_ns - self._filled_mono_ns, 0) * self._rate
        self._filled_mono_ns = max(now_mono_ns, self._filled_mono_ns)
        self._tokens_ns = min(self._tokens_ns + gained_ns, self._most_ns)
        return self._tokens_ns >= _NS_PER_S

    def is_full(self, now_mono_ns: int) -> bool:
        """Say whether nothing was taken for as long as it takes to fill."""
        self.has_one(now_mono_ns)
        return self._tokens_ns == self._most_ns

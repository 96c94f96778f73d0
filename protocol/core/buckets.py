"""Token buckets: how often something may be done in a second, with a burst."""

from __future__ import annotations

BURST_S = 4
"""A bucket holds the tokens of so many seconds."""

_NS_PER_S = 1_000_000_000


class Bucket:
    """Fills at a rate and gives tokens out; starts full."""

    __slots__ = ("_filled_mono_ns", "_rate", "_tokens_ns")

    def __init__(self, per_s: int, now_mono_ns: int) -> None:
        self._rate = per_s
        self._tokens_ns = per_s * BURST_S * _NS_PER_S
        self._filled_mono_ns = now_mono_ns

    def take(self, now_mono_ns: int) -> bool:
        """Take one token if there is one."""
        gained_ns = (now_mono_ns - self._filled_mono_ns) * self._rate
        self._filled_mono_ns = now_mono_ns
        self._tokens_ns = min(self._tokens_ns + gained_ns, self._rate * BURST_S * _NS_PER_S)
        if self._tokens_ns < _NS_PER_S:
            return False
        self._tokens_ns -= _NS_PER_S
        return True

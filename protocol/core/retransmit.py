"""Back-off as pure functions of the attempt number; jitter is an argument, never drawn here."""

from __future__ import annotations

from dataclasses import dataclass

from protocol.core.errors import LocalError

NS_PER_MS = 1_000_000


@dataclass(frozen=True, slots=True)
class Backoff:
    """An exponential back-off.

    Attributes:
        initial_ns: wait before the first repetition.
        maximum_ns: the wait grows no further than this.
        repetitions_max: how often to repeat before giving up.
        factor: growth per repetition.
    """

    initial_ns: int
    maximum_ns: int
    repetitions_max: int
    factor: int = 2

    def __post_init__(self) -> None:
        if not 0 < self.initial_ns <= self.maximum_ns:
            raise LocalError("back-off needs 0 < initial_ns <= maximum_ns")
        if self.factor < 1 or self.repetitions_max < 0:
            raise LocalError("back-off needs factor >= 1 and repetitions_max >= 0")

    def delay_ns(self, repetitions: int) -> int:
        """Return the wait after ``repetitions`` repetitions were sent (0: after the original)."""
        delay = self.initial_ns
        for _ in range(repetitions):
            if delay >= self.maximum_ns:
                break
            delay *= self.factor
        return min(delay, self.maximum_ns)

    def is_spent(self, repetitions: int) -> bool:
        """Say whether it is time to give up."""
        return repetitions >= self.repetitions_max

    def total_ns(self) -> int:
        """Return the time from the original to giving up."""
        return sum(self.delay_ns(n) for n in range(self.repetitions_max + 1))


def with_jitter(delay_ns: int, jitter_ns: int, draw: int) -> int:
    """Add a jitter of 0 to ``jitter_ns``, both included.

    Args:
        delay_ns: the delay without jitter.
        jitter_ns: largest jitter.
        draw: any non-negative integer from the engine's key source, e.g. of four random bytes.
    """
    if jitter_ns < 0 or draw < 0:
        raise LocalError("jitter and draw are not negative")
    return delay_ns + draw % (jitter_ns + 1)

"""The end of a run: what is wrong, or since when nothing is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from protocol.core.agenda import NS_PER_MS, Agenda

STABLE_MS = 6_500
"""Agreement must last so long: more than the dead interval and MIKE's `tm_silence_ms`."""

LIVENESS_MS = 20_000
"""All must agree within this time after the last fault."""

LIVENESS_AFTER_CLOCKS_MS = 150_000
"""The same if clocks were wrong for a while: one that was 45 s ahead, or 90 s by two faults, makes
a TM refuse JOINs that were, by its clock, sent before a LEAVE (MIKE-12)."""

POLL_MS = 250
"""How often agreement is looked for, if anything changed."""


@dataclass(frozen=True, slots=True)
class Violation:
    """Something that must not be.

    Attributes:
        checker: who objects.
        at_ms: when.
        text: what is wrong.
        device: where, -1 if that has no meaning.
        partition: of that device, empty if there is one network only.
    """

    checker: str
    at_ms: float
    text: str
    device: int = -1
    partition: str = ""

    def __str__(self) -> str:
        device = f"d{self.device + 1}" if self.device >= 0 else ""
        where = f"{self.partition}{device}"
        return f"{self.checker}{where and f' at {where}'}, {self.at_ms:.1f} ms: {self.text}"


class ViolationError(Exception):
    """Ends a run."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(str(violation))
        self.violation = violation


def await_rest(
    agenda: Agenda,
    limit_ms: int,
    changes: Callable[[], object],
    objection: Callable[[], Violation | None],
) -> float:
    """Run until nothing was to object to, and nothing changed, for `STABLE_MS`.

    Args:
        agenda: what is due.
        limit_ms: within which time that must be.
        changes: differs from before if anything has changed.
        objection: what is wrong now.

    Returns:
        How long it took, in ms, until it was so.

    Raises:
        ViolationError: it did not come to that.
    """
    begun_ms = agenda.now_ms
    changed_ms = begun_ms
    seen: object = None
    judged: object = None
    found: Violation | None = None
    while True:
        agenda.run(agenda.now_ns + POLL_MS * NS_PER_MS)
        now = changes()
        over = agenda.now_ms - begun_ms > limit_ms
        if seen != now:
            seen = now
            changed_ms = agenda.now_ms
        # Looking at all devices takes long, and what still changes is looked at again anyway.
        if judged != seen and (over or agenda.now_ms > changed_ms):
            judged = seen
            found = objection()
        if judged == seen and found is None and agenda.now_ms - changed_ms >= STABLE_MS:
            return changed_ms - begun_ms
        if over:
            if found is None:
                text = f"no rest within {limit_ms} ms after the faults"
                found = Violation("rest", agenda.now_ms, text)
            raise ViolationError(found)

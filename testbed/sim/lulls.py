"""Times in the middle of a run when nothing has gone wrong for so long that all must agree."""

from __future__ import annotations

from collections.abc import Callable

from protocol.core.agenda import NS_PER_MS, Agenda
from testbed.sim.faults import Fault, Kind
from testbed.sim.rest import (
    LIVENESS_AFTER_CLOCKS_MS,
    LIVENESS_MS,
    POLL_MS,
    Violation,
    ViolationError,
)
from testbed.sim.scenario import Scenario

LULL_MS = 6_000
"""All must agree within this time: if MIKE renews the key as it begins, the SAs of that epoch have
come and the older ones have gone after 4 s. Shorter lulls are none."""

AGAIN_MS = 60_000
"""How often one looks again in a long lull: what is well may not decay."""


def lulls(scenario: Scenario) -> list[int]:
    """Return when to look in the safety phase, in ms and in the order of time.

    A lull begins when the last fault has been over for as long as a group may take to agree, and
    ends when the next one begins.
    """
    found: list[int] = []
    since_ms = max(scenario.starts_ms) + LIVENESS_MS
    for fault in scenario.faults:
        found += range(since_ms, fault.start_ms - LULL_MS + 1, AGAIN_MS)
        since_ms = max(since_ms, fault.end_ms + _patience_ms(fault))
    return found + list(range(since_ms, scenario.safety_ms - LULL_MS + 1, AGAIN_MS))


def _patience_ms(fault: Fault) -> int:
    return LIVENESS_AFTER_CLOCKS_MS if fault.kind is Kind.CLOCK else LIVENESS_MS


def must_agree(
    agenda: Agenda,
    until_ms: int,
    objection: Callable[[], Violation | None],
    again: Callable[[int], None],
) -> bool:
    """Say whether all agree now; if not, have somebody look again a little later.

    Args:
        agenda: what is due.
        until_ms: when the time for that is over.
        objection: what is wrong now.
        again: is called to look once more, with ``until_ms``.

    Raises:
        ViolationError: something is wrong, and there is no time to look again.
    """
    found = objection()
    if found is None:
        return True
    if agenda.now_ms + POLL_MS >= until_ms:
        raise ViolationError(found)
    agenda.after(POLL_MS * NS_PER_MS, again, until_ms)
    return False

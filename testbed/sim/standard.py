"""The checkers of every run."""

from __future__ import annotations

from testbed.sim import checkers, paircheckers
from testbed.sim.checkers import Checker
from testbed.sim.people import People
from testbed.sim.secrecy import Secrecy


def standard(people: People, *, shared_sa: bool, unicast: bool) -> list[Checker]:
    """Return new checkers for these devices."""
    return [
        checkers.OneKeyPerEpoch(),
        checkers.EpochsGrow(),
        checkers.StrangersChangeNothing(),
        checkers.StateIsBounded(people.size),
        checkers.TablesAgree(),
        checkers.GroupAgrees(),
        checkers.SasAgree(shared=shared_sa),
        paircheckers.PairsAgree(unicast=unicast),
        paircheckers.NothingStolen(people),
        paircheckers.AnnouncingStops(),
        checkers.SignalsLeadToKeys(),
        Secrecy(),
    ]

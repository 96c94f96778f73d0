"""The checkers of every run, and those of some."""

from __future__ import annotations

from protocol.idp.config import Unicast
from testbed.sim import checkers, paircheckers
from testbed.sim.checkers import Checker
from testbed.sim.people import People
from testbed.sim.rest import LIVENESS_MS
from testbed.sim.scenario import Scenario, Theme
from testbed.sim.schedules import SETTLED_MS
from testbed.sim.secrecy import Secrecy


def standard(people: People, *, shared_sa: bool, unicast: Unicast) -> list[Checker]:
    """Return new checkers for these devices, by their settings."""
    return [
        checkers.OneKeyPerEpoch(),
        checkers.EpochsGrow(),
        checkers.StrangersChangeNothing(),
        checkers.StateIsBounded(people.size),
        checkers.TablesAgree(),
        checkers.GroupAgrees(),
        checkers.SasAgree(shared=shared_sa),
        paircheckers.PairsAgree(
            unicast=unicast is not Unicast.OFF, of_epochs=unicast is Unicast.GROUP
        ),
        paircheckers.NothingStolen(people),
        paircheckers.AnnouncingStops(),
        checkers.SignalsLeadToKeys(),
        Secrecy(),
    ]


def particular(scenario: Scenario) -> list[Checker]:
    """Return new checkers of what only runs like this one promise."""
    found: list[Checker] = []
    if scenario.theme is Theme.FLAP:
        found.append(checkers.NoRekey(SETTLED_MS))
    if scenario.theme is Theme.SOAK and scenario.rekey_interval_ms:
        found.append(checkers.KeysAreRenewed(scenario.rekey_interval_ms + LIVENESS_MS))
    return found

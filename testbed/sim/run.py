"""Runs seeds: one, many in several processes, a failing one again and again until it is short."""

from __future__ import annotations

import gc
import multiprocessing
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from testbed.sim.gateways.world import GatewayWorld
from testbed.sim.rest import Violation, ViolationError
from testbed.sim.scenario import Scenario
from testbed.sim.sharing import shared_work
from testbed.sim.thawing import thawed
from testbed.sim.world import World

INTERNAL = "no-internal-error"
"""Name of the check that no engine fails."""

SHRINK_RUNS_MAX = 400
"""Runs spent on shrinking one schedule."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of one run.

    Attributes:
        scenario: what was run.
        violation: what was wrong, or None.
        digest: of the trace.
        virtual_ms: length of the run.
        agreed_ms: from the last fault to agreement, None if it did not come to that.
        epochs: group keys established, of all devices.
        datagrams: copies that arrived.
        left_out: effects that the simulator has no model of, and did not perform: their names.
        cpu_s: CPU time that it took.
    """

    scenario: Scenario
    violation: Violation | None
    digest: str
    virtual_ms: float
    agreed_ms: float | None
    epochs: int
    datagrams: int
    left_out: tuple[str, ...] = ()
    cpu_s: float = 0.0

    def as_json(self) -> dict[str, Any]:
        """Return plain JSON values: what every seed is worth a line for."""
        return {
            "seed": self.scenario.seed,
            "members": self.scenario.members,
            "theme": self.scenario.theme.value,
            "ok": self.violation is None,
            "violation": None if self.violation is None else str(self.violation),
            "faults": len(self.scenario.faults),
            "digest": self.digest,
            "virtual_ms": round(self.virtual_ms),
            "agreed_ms": None if self.agreed_ms is None else round(self.agreed_ms),
            "epochs": self.epochs,
            "datagrams": self.datagrams,
            "left_out": list(self.left_out),
        }


def run(scenario: Scenario) -> Verdict:
    """Run one scenario; an engine that fails is a violation like any other."""
    return _run(_world(scenario))


def _world(scenario: Scenario, *, noting: bool = False) -> World | GatewayWorld:
    if scenario.topology:
        return GatewayWorld(scenario, noting=noting)
    return World(scenario, noting=noting)


def _run(world: World | GatewayWorld) -> Verdict:
    violation = None
    begun_s = time.process_time()
    try:
        with shared_work(), thawed(), _uncollected():
            world.run()
    except ViolationError as error:
        violation = error.violation
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        text = f"{error!r} in {place.name}, line {place.lineno} of {place.filename.split('/')[-1]}"
        violation = Violation(INTERNAL, world.now_ms, text)
    return Verdict(
        scenario=world.scenario,
        violation=violation,
        digest=world.digest,
        virtual_ms=world.now_ms,
        agreed_ms=world.agreed_ms,
        epochs=world.epochs,
        datagrams=world.datagrams,
        left_out=tuple(sorted(world.left_out_effects)),
        cpu_s=time.process_time() - begun_s,
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Leave cycles of garbage until after the run: it makes next to none, and is long looked for.

    What a run itself is made of is one, and goes when the collector next runs, between two runs.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def run_all(scenarios: Iterable[Scenario], jobs: int = 1) -> Iterator[Verdict]:
    """Run scenarios, in their order, in so many processes."""
    if jobs == 1:
        yield from map(run, scenarios)
        return
    with multiprocessing.get_context("spawn").Pool(jobs) as pool:
        yield from pool.imap(run, scenarios, chunksize=4)


def trace(scenario: Scenario) -> list[str]:
    """Run a scenario once more and return what a reader wants to see of it."""
    world = _world(scenario, noting=True)
    verdict = _run(world)
    return [*world.lines(), str(verdict.violation or "nothing is wrong")]


def shrink(
    verdict: Verdict, judge: Callable[[Scenario], Verdict] = run, runs_max: int = SHRINK_RUNS_MAX
) -> Verdict:
    """Leave out faults as long as the same checker objects (greedy delta debugging).

    Args:
        verdict: a failed run.
        judge: runs a scenario.
        runs_max: how many runs to spend.

    Returns:
        The shortest failing run found, perhaps the one given.
    """
    assert verdict.violation is not None
    name = verdict.violation.checker
    spent = 0
    size = len(verdict.scenario.faults)
    while size >= 1:
        start = 0
        smaller = False
        while start < len(verdict.scenario.faults) and spent < runs_max:
            faults = verdict.scenario.faults
            spent += 1
            tried = judge(verdict.scenario.with_faults(faults[:start] + faults[start + size :]))
            if tried.violation is not None and tried.violation.checker == name:
                verdict = tried
                smaller = True
            else:
                start += size
        if not smaller or size > 1:
            size //= 2
    return verdict

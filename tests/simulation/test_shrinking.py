"""A failing schedule is shrunk to the faults that it takes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from testbed.sim import run as runner
from testbed.sim.faults import Fault, Kind
from testbed.sim.rest import Violation
from testbed.sim.run import Verdict, run, shrink
from testbed.sim.scenario import Scenario, Theme, draw
from testbed.sim.schedules import SETTLED_MS


def failing_if(scenario: Scenario, *needed: Fault) -> Verdict:
    """Judge a scenario: it fails while these faults are all in it."""
    guilty = set(needed) <= set(scenario.faults)
    violation = Violation("test", 1.0, "fails") if guilty else None
    return Verdict(scenario, violation, "", 1.0, None, 0, 0)


@pytest.mark.parametrize("places", [(0,), (5,), (0, 12), (3, 4, 11)])
def test_only_the_guilty_faults_remain(places: tuple[int, ...]) -> None:
    scenario = next(s for s in map(draw, range(1, 50)) if len(s.faults) > 12)
    needed = [scenario.faults[place] for place in places]
    runs = 0

    def judge(tried: Scenario) -> Verdict:
        nonlocal runs
        runs += 1
        return failing_if(tried, *needed)

    shortest = shrink(failing_if(scenario, *needed), judge)
    assert list(shortest.scenario.faults) == needed
    assert runs < 100


def test_another_checkers_objection_does_not_count() -> None:
    scenario = draw(2)

    def judge(tried: Scenario) -> Verdict:
        verdict = failing_if(tried)
        return replace(verdict, violation=Violation("another", 1.0, "fails"))

    assert shrink(failing_if(scenario), judge).scenario.faults == scenario.faults


def test_the_runs_spent_are_bounded() -> None:
    scenario = draw(2)
    runs = 0

    def judge(tried: Scenario) -> Verdict:
        nonlocal runs
        runs += 1
        return failing_if(tried, *scenario.faults)

    shrink(failing_if(scenario, *scenario.faults), judge, runs_max=7)
    assert runs == 7


def test_a_real_run_is_shrunk_to_the_one_flap_that_was_too_long() -> None:
    long = Fault(Kind.CARRIER, SETTLED_MS, 6_000, (0,))
    others = tuple(Fault(Kind.PAUSE, SETTLED_MS + 7_000 + 2_000 * n, 300, (1,)) for n in range(3))
    scenario = replace(draw(1, members=3, theme=Theme.FLAP), clock_ms=0)
    verdict = run(scenario.with_faults((long, *others)))
    assert verdict.violation is not None
    assert verdict.violation.checker == "no-rekey"
    shortest = shrink(verdict)
    assert shortest.scenario.faults == (long,)
    # What it prints repeats the failure to the letter.
    again = run(Scenario.from_json(shortest.scenario.to_json()))
    assert (again.digest, again.violation) == (shortest.digest, shortest.violation)


def test_a_trace_tells_what_happened_and_what_is_wrong() -> None:
    long = Fault(Kind.CARRIER, SETTLED_MS, 6_000, (0,))
    scenario = draw(1, members=3, theme=Theme.FLAP).with_faults((long,))
    lines = runner.trace(scenario)
    text = "\n".join(lines)
    for part in ("begins: carrier 12000+6000", "t_key epoch=", "sends all TREE", "TM, epoch"):
        assert part in text
    assert lines[-1].startswith("no-rekey at d")

"""Soak tests: minutes of a group to which now and then something happens, judged in between."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.mike.renewal import Renewer
from testbed.sim import world as world_module
from testbed.sim.checkers import KeysAreRenewed
from testbed.sim.faults import FOR_GOOD, PROCESSES, RED, Fault, Kind, is_final
from testbed.sim.history import Agreed, KeyPublished
from testbed.sim.lulls import AGAIN_MS, LULL_MS, lulls
from testbed.sim.rest import LIVENESS_AFTER_CLOCKS_MS, LIVENESS_MS
from testbed.sim.run import run
from testbed.sim.scenario import SOAK_MS, Scenario, Theme, draw
from testbed.sim.schedules import REST_MS, SETTLED_MS
from testbed.sim.world import World

CUT = Fault(Kind.PARTITION, 60_000, 60_000, (0,))


def soak(*faults: Fault, safety_ms: int = 200_000, rekey_interval_ms: int = 0) -> Scenario:
    """Three devices, started together, and exactly these faults."""
    return replace(
        draw(1, members=3, theme=Theme.SOAK),
        faults=faults,
        starts_ms=(0, 0, 1_000),
        clock_ms=0,
        safety_ms=safety_ms,
        rekey_interval_ms=rekey_interval_ms,
    )


def test_drawn_schedules_keep_their_promises() -> None:
    scenarios = [draw(seed, members=10, theme=Theme.SOAK) for seed in range(60)]
    for scenario in scenarios:
        assert SOAK_MS[0] <= scenario.safety_ms <= SOAK_MS[1]
        assert len(scenario.survivors) == 10
        free_ms: dict[int, int] = {}
        for fault in scenario.faults:
            assert fault.end_ms <= scenario.safety_ms
            if fault.kind not in RED:
                assert fault.start_ms >= SETTLED_MS
                assert fault.duration_ms != FOR_GOOD
            if fault.kind in PROCESSES:
                (device,) = fault.devices
                assert fault.start_ms >= free_ms.get(device, 0)
                free_ms[device] = fault.end_ms + REST_MS
        assert Scenario.from_json(scenario.to_json()) == scenario
    for kind in set(Kind) - {Kind.KILL_GATEWAYD, Kind.REVOKE}:
        having = sum(any(f.kind is kind for f in scenario.faults) for scenario in scenarios)
        assert 0 < having < len(scenarios), kind
    assert not any(is_final(fault) for scenario in scenarios for fault in scenario.faults)


def test_no_seed_is_a_soak_test_unasked() -> None:
    assert all(draw(seed).theme is not Theme.SOAK for seed in range(300))


FIRST = 1_000 + LIVENESS_MS
AFTER_CUT = CUT.end_ms + LIVENESS_MS


def test_a_lull_begins_when_all_must_agree_and_is_looked_at_again() -> None:
    assert lulls(soak()) == [FIRST, FIRST + AGAIN_MS, FIRST + 2 * AGAIN_MS]
    assert lulls(soak(CUT)) == [FIRST, AFTER_CUT]


@pytest.mark.parametrize("missing_ms", [0, 1])
def test_a_lull_that_is_too_short_for_a_renewal_is_none(missing_ms: int) -> None:
    nexts = Fault(Kind.LOSS, AFTER_CUT + LULL_MS - missing_ms, 10, (), 0.1)
    looks = [FIRST, AFTER_CUT, nexts.end_ms + LIVENESS_MS]
    assert lulls(soak(CUT, nexts)) == [
        at_ms for at_ms in looks if at_ms != AFTER_CUT or not missing_ms
    ]


def test_a_long_fault_outlasts_shorter_ones_and_clocks_take_their_time() -> None:
    within = Fault(Kind.PAUSE, 70_000, 100, (1,))
    assert lulls(soak(CUT, within)) == lulls(soak(CUT))
    clock = Fault(Kind.CLOCK, 22_000, 1_000, (0,), 45_000.0)
    later = Fault(Kind.LOSS, 190_000, 1_000, (), 0.1)
    assert lulls(soak(clock, later)) == [23_000 + LIVENESS_AFTER_CLOCKS_MS]


@pytest.mark.parametrize("mode", ["ka", "kd", "auto"])
def test_no_checker_objects(mode: str) -> None:
    verdict = run(draw(11, members=4, theme=Theme.SOAK, mode=mode))
    assert verdict.violation is None, verdict
    assert verdict.left_out == ()


def test_a_group_that_does_not_agree_again_is_objected_to_in_the_middle_of_the_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert run(soak(CUT)).violation is None
    # What a fault does that nobody declared is what a broken engine would do.
    monkeypatch.setattr(world_module, "lulls", lambda _scenario: [80_000])
    violation = run(soak(CUT)).violation
    assert violation is not None
    assert violation.checker in ("tables-agree", "group-agrees")
    assert 80_000 < violation.at_ms < 80_000 + LULL_MS


def test_who_agrees_only_later_in_a_lull_is_given_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world_module, "lulls", lambda _scenario: [119_000])
    seen: list[float] = []
    world = World(soak(CUT))
    told = world.tell

    def tell(record: object) -> None:
        if isinstance(record, Agreed):
            seen.append(record.at_ms)
        told(record)  # type: ignore[arg-type]

    monkeypatch.setattr(world, "tell", tell)
    world.run()
    assert len(seen) == 1
    assert CUT.end_ms < seen[0] < 119_000 + LULL_MS


def test_keys_grow_old_only_where_nothing_renews_them(monkeypatch: pytest.MonkeyPatch) -> None:
    renewed = soak(rekey_interval_ms=60_000)
    assert run(renewed).violation is None
    monkeypatch.setattr(Renewer, "on_rekey_timer", lambda _self: None)
    violation = run(renewed).violation
    assert violation is not None
    assert violation.checker == "keys-are-renewed"


def test_the_checker_of_the_age_of_keys() -> None:
    checker = KeysAreRenewed(1_000)
    assert checker.record(KeyPublished(500.0, 0, "7-aa", b"k")) is None
    assert checker.record(Agreed(1_500.0, -1)) is None
    assert checker.record(Agreed(1_501.0, -1)) == "the key is of 500 ms, older than 1000 ms"

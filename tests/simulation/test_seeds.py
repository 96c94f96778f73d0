"""Some hundred seeds with every test run, and all that ever failed; `make sim` runs many more."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from testbed.sim.faults import Kind
from testbed.sim.modelled import ModelledSecret
from testbed.sim.people import Crypto
from testbed.sim.run import Verdict, run
from testbed.sim.scenario import Scenario, Theme, draw
from testbed.sim.secrecy import Heard, overheard
from testbed.sim.unwrapping import everything, with_rosters
from testbed.sim.world import World

REGRESSIONS = [
    line
    for line in (Path(__file__).parent / "regressions.txt").read_text().splitlines()
    if line.startswith("{")
]

MODELLED, REAL = range(1, 201), range(201, 207)
OTHERS = [("kd", range(1, 101)), ("auto", range(101, 201))]
"""Modes of MIKE beside key agreement, and their seeds."""


def assert_clean(scenario: Scenario) -> Verdict:
    verdict = run(scenario)
    assert verdict.violation is None, f"{verdict.violation}; replay: {scenario.to_json()}"
    assert verdict.agreed_ms is not None
    assert verdict.epochs >= scenario.members
    return verdict


@pytest.mark.parametrize("first", MODELLED[::20])
def test_no_checker_objects_to_twenty_seeds(first: int) -> None:
    for seed in range(first, first + 20):
        assert_clean(draw(seed))


def test_no_checker_objects_where_sponsors_are_relieved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bound on operations as low as if these small groups had a thousand members."""
    monkeypatch.setattr("protocol.mike.duties.OPERATIONS_MAX", 3)
    for seed in range(401, 416):
        assert_clean(draw(seed))


@pytest.mark.parametrize("seed", REAL)
def test_no_checker_objects_with_the_real_cryptography(seed: int) -> None:
    assert_clean(draw(seed, crypto=Crypto.REAL))


@pytest.mark.parametrize(
    ("mode", "first"), [(mode, first) for mode, seeds in OTHERS for first in seeds[::20]]
)
def test_no_checker_objects_in_another_mode(mode: str, first: int) -> None:
    for seed in range(first, first + 20):
        assert_clean(draw(seed, mode=mode))


@pytest.mark.parametrize(("mode", "seed"), [("kd", 301), ("kd", 302), ("auto", 303)])
def test_no_checker_objects_in_another_mode_with_the_real_cryptography(
    mode: str, seed: int
) -> None:
    assert_clean(draw(seed, mode=mode, crypto=Crypto.REAL))


def test_a_group_that_grows_is_switched_and_the_thief_sees_all_that_is_distributed() -> None:
    """Otherwise the checker would have nothing to object to."""
    drawn = draw(101, members=6, mode="auto", theme=Theme.ANY)
    starts = tuple(1_000 * number for number in range(6))
    scenario = replace(
        drawn, faults=(), starts_ms=starts, kd_members_min=4, ka_members_max=2, safety_ms=8_000
    )
    world = World(scenario)
    world.run()
    heard = Heard(world.mike_datagrams)
    assert heard.trees
    assert heard.rekeys
    draws = [device.entropy.drawn for device in world.devices]
    agreed = {pointer: epoch.roster() for pointer, epoch in overheard(heard).items()}
    epochs = with_rosters(heard.rekeys, heard.pages, agreed)
    truth = everything(ModelledSecret, draws, epochs, world.group_keys)
    told = {pointer for pointer, epoch in epochs.items() if epoch.wraps}
    assert told
    assert truth.roots.keys() == told


@pytest.mark.parametrize("line", REGRESSIONS, ids=lambda line: line[:12])
def test_what_failed_once_passes_for_ever(line: str) -> None:
    assert_clean(Scenario.from_json(line))


def test_the_seeds_above_draw_every_theme_and_switch_every_class_of_faults_on_and_off() -> None:
    scenarios = [draw(seed) for seed in MODELLED]
    assert {scenario.theme for scenario in scenarios} == set(Theme) - {Theme.SOAK}
    mixed = [scenario for scenario in scenarios if scenario.theme is Theme.ANY]
    for kind in set(Kind) - {Kind.KILL_GATEWAYD}:  # gateways have seeds of their own
        having = sum(any(f.kind is kind for f in scenario.faults) for scenario in mixed)
        assert 0 < having < len(mixed), kind
    assert {scenario.members for scenario in scenarios} == set(range(2, 11))

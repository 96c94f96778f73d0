"""Throughput: levels, what counts as lost, and the highest rate that gets through."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from experiments import summary, throughputsummary
from experiments.analysis import read_run
from experiments.errors import PlanError
from experiments.outcome import Context, Outcome
from experiments.plan import Overrides, Plan, load
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.runner import Runner
from experiments.throughput import run
from testbed.redstreams import StreamSpec
from tests.unit.experiments.fake_fleet import FakeFleet, NullDisplay, World
from tests.unit.experiments.fake_streams import FakeStreams, FakeSurroundings, counts
from tests.unit.experiments.support import SESSION, fake_sa_writes
from topologies.families import coalition, star

CAPACITY = {"aes-gcm": 400, "clear-text": 800}


def quick_plan(**options: Any) -> Plan:
    return load("throughput", Overrides(quick=True, **options))


def fleet_with(world: World, capacity_pps: float, deaf: str = "") -> FakeFleet:
    """Return a fleet whose path passes this rate and drops what is above."""

    def heard(receiver: str, _sender: str, spec: StreamSpec) -> Any:
        if receiver == deaf:
            return None
        if spec.count is None:  # the slow stream before each size
            return counts(1)
        return counts(round(spec.count * min(1.0, capacity_pps / spec.rate_pps)))

    fleet = FakeFleet(world, 4)
    fleet.topology = coalition(4)
    fleet.surroundings = FakeSurroundings(FakeStreams(world, heard))
    return fleet


def measured(capacity_pps: float = 400, **options: Any) -> tuple[Outcome, FakeFleet]:
    world = World()
    fleet = fleet_with(world, capacity_pps, **options)
    repetition = quick_plan().repetitions()[0]
    return run(fleet, repetition, Context(world.clock())), fleet  # type: ignore[arg-type]


def test_every_level_has_a_row_for_a_client_in_each_other_lan() -> None:
    outcome, fleet = measured()
    rows = outcome.tables["throughput.csv"]
    assert [s.method for s in outcome.steps][:2] == ["200-bytes-100-pps", "200-bytes-200-pps"]
    assert len(rows) == 14 * 3
    assert {row["sender"] for row in rows} == {"c1a"}
    assert [row["receiver"] for row in rows[:3]] == ["c2b", "c3b", "c4b"]
    by_rate = {(r["size_bytes"], r["rate_pps"]): r["lost_percent"] for r in rows}
    assert by_rate[200, 400] == pytest.approx(0)
    assert by_rate[200, 800] == pytest.approx(50)
    assert by_rate[1300, 1600] == pytest.approx(75)
    assert fleet.surroundings.groups == [fleet.topology.group.black_group]
    assert fleet.surroundings.given.closed
    assert fleet.running == set(), "parked"


def test_a_lan_that_hears_nothing_is_named_and_the_rest_is_not_run() -> None:
    outcome, fleet = measured(deaf="c3b")
    assert [s.status for s in outcome.steps][:2] == ["failed", "not-run"]
    assert "reaches the red LANs of d3" in outcome.steps[0].reason
    assert outcome.tables["throughput.csv"] == []
    assert outcome.broken == ""
    assert fleet.surroundings.given.closed


def test_a_network_without_clients_is_refused() -> None:
    world = World()
    fleet = fleet_with(world, 1)
    fleet.topology = star(4)
    repetition = quick_plan().repetitions()[0]
    outcome = run(fleet, repetition, Context(world.clock()))  # type: ignore[arg-type]
    assert "has no clients behind two devices" in outcome.steps[0].reason


def whole_run(path: Path) -> RunDirectory:
    world = World()
    directory = RunDirectory.create(path, quick_plan(), {"command": ["synthetic"]})

    def load_fleet(repetition: Any, _logs: str) -> Any:
        return fleet_with(world, CAPACITY[repetition.variant.name])

    Runner(directory, load_fleet, fake_sa_writes, NullDisplay(), world.clock()).execute(SESSION)
    directory.close()
    return directory


def test_the_summary_has_the_highest_rate_and_the_ratio(tmp_path: Path) -> None:
    directory = whole_run(tmp_path / "run")
    found = summary.write(directory.path)["throughput"]
    sizes = {name: data["sizes"]["200"] for name, data in found["variants"].items()}
    assert sizes["aes-gcm"]["highest_pps"] == 400
    assert sizes["clear-text"]["highest_pps"] == 800
    assert sizes["clear-text"]["highest_mbit"] == pytest.approx(1.28)
    half = {"ratio": 0.5, "upper_bound": False}
    assert found["ratios"] == {"200": half, "1300": half}
    assert not sizes["clear-text"]["beyond_the_plan"]
    assert sizes["aes-gcm"]["loss_percent"]["800"] == pytest.approx(50)
    text = "\n".join(throughputsummary.text(found))
    assert "CLEAR TEXT, nothing is protected" in text
    files = {file.name for file in draw_all(directory.path, tmp_path)}
    assert "throughput.png" in files


def test_a_rate_beyond_the_plan_makes_the_ratio_a_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(CAPACITY, "clear-text", 1_000_000)
    found = summary.write(whole_run(tmp_path / "run").path)["throughput"]
    assert found["ratios"]["200"] == {"ratio": 0.125, "upper_bound": True}
    assert "0.12 or less" in "\n".join(throughputsummary.text(found))


def test_a_gap_in_the_loss_curve_ends_it(tmp_path: Path) -> None:
    """A higher rate that happens to pass after one that did not is no proof."""
    directory = whole_run(tmp_path / "run")
    levels = throughputsummary.levels(
        throughputsummary.analysis.read_table(read_run(directory.path).path, "throughput.csv")
    )
    one = levels[(levels["variant"] == "clear-text") & (levels["size_bytes"] == 200)].copy()
    one.loc[one["rate_pps"] == 200, "lost_percent"] = 1.5
    assert throughputsummary.highest(one) == 100


def test_clear_text_is_marked_and_never_a_run_without_sas() -> None:
    plan = quick_plan()
    assert not plan.memory, "the other variant has kernel SAs: the run needs a kernel with ESP"
    protections = {v.name: (v.protection, v.sa_backend) for v in plan.campaigns[0].variants}
    assert protections["clear-text"] == ("clear-text", "memory")


def test_another_backend_is_for_what_has_sas() -> None:
    with pytest.raises(PlanError, match="without kernel SAs nothing red crosses"):
        quick_plan(sa_backend="memory")
    names = {v.name for v in quick_plan(sa_backend="command").campaigns[0].variants}
    assert names == {"command+per-sender", "clear-text"}

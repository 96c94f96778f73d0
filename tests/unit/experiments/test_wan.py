"""A WAN's delay and loss on the core links, the order of things, and the budget of a join."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from experiments import summary, wansummary
from experiments.analysis import read_run
from experiments.campaign import Variant
from experiments.outcome import Context
from experiments.plan import Overrides, Plan, load
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.runner import Runner
from experiments.steps import run
from experiments.wan import Wan, core_links, share_of_loss
from testbed.clock import Offset
from tests.unit.experiments.fake_fleet import MS, FakeFleet, NullDisplay, World
from tests.unit.experiments.fake_streams import FakeStreams, FakeSurroundings, counts
from tests.unit.experiments.support import SESSION, fake_sa_writes
from topologies import find


@dataclass
class FakeNetwork:
    world: World
    links: dict[str, dict[str, float]] = field(default_factory=dict)

    def set_link(self, name: str, **values: float) -> None:
        self.links[name] = values
        self.world.calls.append(f"link {name} {values['delay_ms']:g}")


class WanFleet(FakeFleet):
    """Its clock exchanges take as long as the links are; its joins take four of their delays."""

    def __init__(self, world: World, devices: int, topology: str = "coalition-wan") -> None:
        super().__init__(world, devices)
        self.topology = find(topology)
        self.network = FakeNetwork(world)
        self.usual_mike = world.mike
        self.surroundings = FakeSurroundings(FakeStreams(world, self.heard))

    def heard(self, *_what: Any) -> dict[str, Any]:
        return counts(1, arrival_ns=self.world.now)

    def one_way_ms(self) -> float:
        return self.network.links.get("r1-r2", {}).get("delay_ms", 20.0)

    def clock_offsets(self, samples: int = 16) -> dict[str, Offset]:
        self.world.calls.append(f"clocks {samples}")
        round_trip = int(2 * self.one_way_ms() * MS) + 20_000
        return {name: Offset(0, round_trip, round_trip // 2, samples) for name in self.devices}

    def start(self, device: str, at_wall_ns: int | None = None) -> None:
        self.world.mike = self.usual_mike + 3 * self.one_way_ms()
        super().start(device, at_wall_ns)


def quick_plan() -> Plan:
    return load("wan", Overrides(quick=True))


def test_the_core_is_the_links_between_routers_only() -> None:
    mesh = core_links(find("coalition-wan"))
    assert {"r1-r2", "r2-r3", "r1-r3", "r0-r1", "r0-r2", "r0-r3"} <= set(mesh)
    assert all(end.startswith("r") for link in mesh for end in link.split("-"))
    assert set(mesh.values()) == {1}
    # Around a switch there are two links between any two routers.
    around = core_links(find("coalition"))
    assert {f"r{n}-s1" for n in range(4)} <= set(around)
    assert all(link.endswith("-s1") and count == 2 for link, count in around.items())
    assert core_links(find("measurement")) == {}


def test_two_links_in_a_row_lose_together_what_was_asked_for() -> None:
    each = share_of_loss(5.0, 2)
    assert 1 - (1 - each / 100) ** 2 == pytest.approx(0.05)
    assert share_of_loss(5.0, 1) == pytest.approx(5.0)


def test_a_switch_in_the_core_halves_the_delay_of_its_links() -> None:
    fleet = WanFleet(World(), 4, "coalition")
    Wan(fleet, Variant("v", wan_delay_ms=50, wan_loss_percent=0)).impair()  # type: ignore[arg-type]
    assert {values["delay_ms"] for values in fleet.network.links.values()} == {25}


def test_what_a_variant_leaves_open_is_as_the_topology_says() -> None:
    fleet = WanFleet(World(), 4)
    Wan(fleet, Variant("v", wan_loss_percent=1)).impair()  # type: ignore[arg-type]
    assert fleet.network.links["r1-r3"] == {
        "delay_ms": 40,
        "jitter_ms": 3,
        "loss_percent": pytest.approx(1),
    }
    untouched = WanFleet(World(), 4)
    wan = Wan(untouched, Variant("v"))  # type: ignore[arg-type]
    wan.clear()
    wan.impair()
    assert untouched.network.links == {}
    assert wan.probe() == {}


def test_clocks_are_compared_while_the_links_are_clear() -> None:
    world = World()
    fleet = WanFleet(world, 4)
    repetition = next(r for r in quick_plan().repetitions() if r.variant.name == "delay-50")
    outcome = run(fleet, repetition, Context(world.clock()))  # type: ignore[arg-type]
    link = [c for c in world.calls if c.startswith(("link r1-r2", "clocks", "start", "stop"))]
    assert link[:4] == ["link r1-r2 0", "clocks 16", "link r1-r2 50", "clocks 6"]
    assert link[4].startswith("start")
    assert link[-2:] == ["link r1-r2 0", "clocks 16"]
    rows = {(r["device"], r["when"]): r for r in outcome.tables["clocks.csv"]}
    assert rows["d3", "wan"]["delay_ns"] == pytest.approx(100 * MS, rel=1e-3)
    assert rows["d3", "before"]["delay_ns"] < MS
    flags = {row["flags"] for row in outcome.tables["latencies.csv"]}
    assert flags == {""}, "the WAN's delay is no error of the clocks"


def whole_run(path: Path) -> tuple[RunDirectory, World]:
    world = World()
    directory = RunDirectory.create(path, quick_plan(), {"command": ["synthetic"]})

    def load_fleet(_repetition: Any, _logs: str) -> Any:
        return WanFleet(world, 4)

    Runner(directory, load_fleet, fake_sa_writes, NullDisplay(), world.clock()).execute(SESSION)
    directory.close()
    return directory, world


def test_variants_that_differ_in_the_wan_share_a_fleet_and_fresh_ones_never(
    tmp_path: Path,
) -> None:
    _, world = whole_run(tmp_path / "run")
    assert world.loads == 3, "six source-specific variants, and two any-source ones of a fleet each"


def test_the_budget_is_the_latency_without_delay_and_three_one_way_delays(tmp_path: Path) -> None:
    directory, _ = whole_run(tmp_path / "run")
    found = summary.write(directory.path)["wan"]
    fifty = found["variants"]["delay-50"]
    plain = found["variants"]["delay-0"]["monitor"]["median_ms"]
    assert fifty["one_way_ms"] == pytest.approx(50, abs=0.1)
    assert fifty["switch_only"] == "delay-0"
    assert fifty["budget_ms"] == pytest.approx(plain + 150, abs=0.5)
    assert fifty["within_budget"] is True
    assert found["variants"]["any-source-50"]["switch_only"] == "any-source-0"
    assert found["variants"]["loss-5"]["repaired"] == {"joins": 2, "waited_for_a_repair": 0}
    assert "within the budget" in "\n".join(wansummary.text(found))
    offsets = directory.manifest["clock_offsets_ns"]
    assert max(device["bound_max"] for device in offsets.values()) < MS
    files = {file.name for file in draw_all(directory.path, tmp_path)}
    assert "wan_joins.png" in files


def test_a_join_that_waited_for_a_repair_is_counted(tmp_path: Path) -> None:
    directory, _ = whole_run(tmp_path / "run")
    run_data = read_run(directory.path)
    late = (run_data.latencies["variant"] == "loss-5") & (run_data.latencies["step"] == 2)
    run_data.latencies.loc[late, "total_ms"] += 2 * wansummary.REPAIR_MS
    found = wansummary.summarise(run_data)["variants"]
    assert found["loss-5"]["repaired"] == {"joins": 2, "waited_for_a_repair": 1}


def test_a_run_without_a_wan_has_no_such_section(tmp_path: Path) -> None:
    plan = load("join", Overrides(devices=4, repetitions=1))
    directory = RunDirectory.create(tmp_path / "run", plan, {"command": ["synthetic"]})
    world = World()

    def load_fleet(_repetition: Any, _logs: str) -> Any:
        return FakeFleet(world, 4)

    Runner(directory, load_fleet, fake_sa_writes, NullDisplay(), world.clock()).execute(SESSION)
    directory.close()
    assert summary.write(directory.path)["wan"] == {}

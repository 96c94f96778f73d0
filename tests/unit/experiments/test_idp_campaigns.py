"""The campaigns about IDP: what a step does and records, what summary and figures make of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import flapping, hellobench, idpsummary, summary
from experiments.analysis import read_run
from experiments.kinds import KINDS
from experiments.outcome import Context, Outcome
from experiments.plan import Overrides, load
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.runner import Runner
from testbed.fleet import Event
from tests.unit.experiments.fake_fleet import MS, NullDisplay, World
from tests.unit.experiments.support import SESSION, fake_sa_writes

CAMPAIGNS = ("discovery", "hello-cost", "hello-interval", "flapping", "idp-leave")
DETECT_MS, ANSWER_MS, DEAD_MS, RTT_MS = 2.0, 130.0, 3500.0, 0.05


class IdpFleet:
    """Devices that find and lose each other after known times; epochs for leaves and returns."""

    def __init__(self, world: World, devices: int) -> None:
        self.world = world
        self.devices = tuple(f"d{n}" for n in range(1, devices + 1))
        self.addresses = {name: f"2001:db8:b::{name[1:]}" for name in self.devices}
        self.facts: dict[str, Any] = {"timings_ms": {"daemons": 1.0}}
        self.processes = {f"{name}/idpd": SimpleNamespace(pid=1) for name in self.devices}
        self.running: list[str] = []
        self.parked = 0
        self.cuts: dict[str, int] = {}
        self.number = 1
        self.traced: list[Event] = []
        self.blind = ""

    def __enter__(self) -> IdpFleet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def _detect(self, device: str, kind: str, peer: str, wall_ns: int) -> None:
        if device != self.blind:
            fields = {"kind": kind, "peer": self.addresses[peer]}
            self.traced.append(Event(wall_ns, wall_ns, device, "idpd", "t_detect", fields))

    def _rekey(self, wall_ns: int) -> None:
        self.number += 1
        for device in self.running:
            self.traced.append(Event(wall_ns, wall_ns, device, "idpd", "t_written", {}))

    def start_daemon(self, device: str, daemon: str, at_wall_ns: int | None = None) -> None:
        assert daemon == "idpd"
        at = at_wall_ns or self.world.now
        for other in self.running:
            self._detect(other, "join", device, at + int(DETECT_MS * MS))
            self._detect(device, "join", other, at + int(ANSWER_MS * MS))
        self.running.append(device)

    def start(self, device: str) -> None:
        self.start_daemon(device, "idpd")
        self.number += 1

    def stop(self, device: str) -> None:
        self.parked += 1
        if device in self.running:
            self.running.remove(device)
            self._lose(device, self.world.now)

    def _lose(self, device: str, wall_ns: int) -> None:
        at = wall_ns + int(DEAD_MS * MS)
        for other in self.running:
            self._detect(other, "leave", device, at)
        self._rekey(at)

    def cut(self, device: str) -> int:
        self.cuts[device] = self.world.now
        return self.world.now

    def heal(self, device: str) -> int:
        out_ms = (self.world.now - self.cuts.pop(device)) / MS
        if out_ms > DEAD_MS / 1000 * 500:
            for other in self.running:
                if other != device:
                    self._detect(other, "restore", device, self.world.now + MS)
            self._rekey(self.world.now + MS)
            self._rekey(self.world.now + MS)
        return self.world.now

    def status(self, device: str, daemon: str) -> dict[str, Any]:
        others = [self.addresses[name] for name in self.running if name != device]
        return {
            "peers": [{"address": address, "state": "up"} for address in others],
            "counters": {"idp.hello_light": self.world.now // 10**9 * 15, "idp.hello_signed": 3},
            "epoch": f"{self.number}-00",
        }

    def await_members(self, devices: list[str], *, deadline_s: float) -> str:
        self.world.now += 10**9
        if self.cuts and self.world.now - min(self.cuts.values()) < 10**9 * 5:
            self._lose(next(iter(self.cuts)), min(self.cuts.values()))
        return f"{self.number}-00"

    def clock_offsets(self, samples: int) -> dict[str, Any]:
        return {name: SimpleNamespace(delay_ns=RTT_MS * MS) for name in self.devices}

    def give_turns(self, ranked: list[str] | None) -> None:
        self.world.turns.append(None if ranked is None else tuple(ranked))

    def idle(self) -> Any:
        return SimpleNamespace(mean_percent=50.0)

    def flush(self) -> None:
        return None

    def check_alive(self) -> None:
        return None

    def events(self) -> list[Event]:
        return []

    def all_events(self) -> list[Event]:
        return sorted(self.traced, key=lambda event: event.wall_ns)


@pytest.fixture(autouse=True)
def proc(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Processes that use 7 ms of processor time and send 500 bytes at each look."""
    counted = {"ns": 0, "bytes": 0}

    def processor_ns(pid: int) -> int:
        counted["ns"] += 7 * MS
        return counted["ns"]

    def transmitted(pid: int, interface: str) -> int:
        assert interface == "black0"
        counted["bytes"] += 500
        return counted["bytes"]

    monkeypatch.setattr(hellobench, "processor_ns", processor_ns)
    monkeypatch.setattr(hellobench, "transmitted_bytes", transmitted)
    return counted


def measured(name: str, blind: str = "") -> tuple[Outcome, IdpFleet, World]:
    plan = load(name, Overrides(quick=True))
    world = World()
    fleet = IdpFleet(world, plan.devices)
    fleet.blind = blind
    repetition = plan.repetitions()[0]
    run = KINDS[name].load()
    return run(fleet, repetition, Context(world.clock())), fleet, world


def values(outcome: Outcome, measure: str) -> list[float]:
    return [row["value"] for row in outcome.tables["hellos.csv"] if row["measure"] == measure]


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_plans_run_natively_without_kernel_sas_and_say_so(name: str) -> None:
    plan = load(name)
    assert plan.memory
    assert all(repetition.steps for repetition in plan.repetitions())


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_all_steps_are_ok_and_everything_is_parked_again(name: str) -> None:
    outcome, fleet, _ = measured(name)
    assert [step.status for step in outcome.steps] == ["ok"] * len(outcome.steps)
    assert outcome.broken == ""
    assert fleet.running == []
    assert fleet.cuts == {}


def test_discovery_counts_both_ways_from_the_trigger_and_favours_the_new_device() -> None:
    outcome, _, world = measured("discovery")
    assert [step.group_size for step in outcome.steps] == [10, 30]
    assert values(outcome, "detected_ms") == [DETECT_MS] * (9 + 29)
    assert values(outcome, "answered_ms") == [ANSWER_MS] * (9 + 29)
    assert set(values(outcome, "rtt_ms")) == {RTT_MS}
    assert world.turns == [("d10",), None, ("d30",), None]


def test_discovery_that_misses_a_device_is_a_failed_step() -> None:
    outcome, _, _ = measured("discovery", blind="d4")
    assert [step.status for step in outcome.steps] == ["failed", "failed"]
    assert "8 and 9 of 9" in outcome.steps[0].reason


def test_cost_is_the_processes_own_time_per_second() -> None:
    outcome, _, _ = measured("hello-cost")
    # Between two looks at one process come looks at all others.
    assert values(outcome, "cpu_percent")[:10] == [pytest.approx(10 * 7 / 8000 * 100)] * 10
    assert values(outcome, "light_per_s")[0] == pytest.approx(15.0)


def test_detection_and_bytes() -> None:
    outcome, fleet, _ = measured("hello-interval")
    assert values(outcome, "detection_ms") == [DEAD_MS] * (len(fleet.devices) - 1)
    assert len(values(outcome, "bytes_per_s")) == len(fleet.devices)


def test_flapping_counts_rekeys_by_the_epochs_number() -> None:
    outcome, _, _ = measured("flapping")
    assert values(outcome, "period_intervals") == [1.0, 4.0, 12.0]
    rekeys = values(outcome, "rekeys")
    assert rekeys[:1] == [0.0]
    assert rekeys[2] == 2 * 2


def test_leave_by_each_method_and_the_return() -> None:
    outcome, _, _ = measured("idp-leave")
    methods = [step.method for step in outcome.steps]
    assert methods == ["shutdown", "cut", "restore"]
    assert values(outcome, "rekeys") == [1.0, 1.0, 2.0]


def test_flapping_and_leave_are_what_the_kinds_name() -> None:
    assert KINDS["flapping"].load() is flapping.flap
    assert KINDS["idp-leave"].load() is flapping.leave


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_summary_and_figure(name: str, tmp_path: Path) -> None:
    plan = load(name, Overrides(quick=True))
    directory = RunDirectory.create(tmp_path / "run", plan, {})
    world = World()
    fleet = IdpFleet(world, plan.devices)
    runner = Runner(directory, lambda *_: fleet, fake_sa_writes, NullDisplay(), world.clock())
    runner.execute(SESSION)
    directory.close()
    found = summary.write(directory.path)["idp"]
    assert set(found) == {name}
    lines = idpsummary.text(found)
    assert all(line.startswith(f"{name}, ") for line in lines)
    assert idpsummary.markdown(found)[1] == "## IDP"
    files = {path.name for path in draw_all(directory.path)}
    assert f"{name.replace('-', '_')}_memory-no-kernel-sa.png" in files


def test_failed_steps_are_not_in_the_figures(tmp_path: Path) -> None:
    plan = load("discovery", Overrides(quick=True))
    directory = RunDirectory.create(tmp_path / "run", plan, {})
    world = World()
    fleet = IdpFleet(world, plan.devices)
    fleet.blind = "d4"
    runner = Runner(directory, lambda *_: fleet, fake_sa_writes, NullDisplay(), world.clock())
    runner.execute(SESSION)
    directory.close()
    assert idpsummary.summarise(read_run(directory.path)) == {}
    assert draw_all(directory.path) == []

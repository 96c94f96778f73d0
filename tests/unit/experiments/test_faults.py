"""The fault campaign: what is done to whom, and that what does not recover fails its step."""

from __future__ import annotations

import signal
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import faults, summary
from experiments.campaign import FAULTS
from experiments.errors import PlanError
from experiments.outcome import Context, Outcome
from experiments.plan import Overrides, _validate, load
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.runner import Runner
from testbed.errors import DeadlineError
from testbed.fleet import Event
from tests.unit.experiments.fake_fleet import NullDisplay, World
from tests.unit.experiments.support import SESSION, fake_sa_writes

WELL_NS = 1_500_000_000


class Processes(dict[str, Any]):
    def __init__(self, fleet: FaultyFleet) -> None:
        super().__init__()
        self.fleet = fleet

    def kill(self, name: str) -> None:
        del self[name]
        self.fleet.done.append(f"kill {name}")


class FaultyFleet:
    """Devices to which faults are done; all is well after `WELL_NS`, or never after one kind."""

    def __init__(self, world: World, devices: int, never_after: str = "") -> None:
        self.world = world
        self.devices = tuple(f"d{n}" for n in range(1, devices + 1))
        self.addresses = {name: f"2001:db8:b::{name[1:]}" for name in self.devices}
        self.facts: dict[str, Any] = {"timings_ms": {"daemons": 1.0}}
        self.never_after = never_after
        self.done: list[str] = []
        self.processes = Processes(self)
        self.network = SimpleNamespace(
            part=lambda links: self.done.append(f"part {' '.join(links)}"),
            join_again=lambda: self.done.append("join again"),
            set_link=lambda link, **values: self.done.append(f"link {link} {values}"),
        )
        for name in self.devices:
            self.revive(name)

    def __enter__(self) -> FaultyFleet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def revive(self, node: str) -> None:
        for daemon in faults.BOTH:
            self.processes.setdefault(f"{node}/{daemon}", SimpleNamespace(pid=ord(node[1])))

    def start(self, device: str) -> None:
        self.done.append(f"start {device}")

    def stop(self, device: str) -> None:
        self.done.append(f"stop {device}")

    def start_daemon(self, device: str, daemon: str) -> None:
        self.done.append(f"start {device}/{daemon}")

    def cut(self, device: str) -> int:
        self.done.append(f"cut {device}")
        return self.world.now

    def heal(self, device: str) -> int:
        self.done.append(f"heal {device}")
        return self.world.now

    def status(self, device: str, _daemon: str = "idpd") -> dict[str, Any]:
        return {"role": "tm" if device == "d2" else "member", "epoch": "7-00"}

    def await_members(self, devices: Any, *, deadline_s: float) -> str:
        if self.never_after and any(self.never_after in what for what in self.done):
            self.done.clear()
            raise DeadlineError("d3 is alone")
        self.world.now += WELL_NS
        return "7-00"

    def sad_check(self, devices: Any, deadline_s: float) -> Any:
        return SimpleNamespace(applicable=False, ok=False, reason="")

    packet_check = sad_check

    def flush(self) -> None: ...

    def events(self) -> list[Event]:
        return []

    def all_events(self) -> list[Event]:
        now = self.world.now
        return [Event(now, now, "d1", "miked", "t_key", {"epoch": "8-00"})]


def measured(
    monkeypatch: pytest.MonkeyPatch, *kinds: str, never_after: str = ""
) -> tuple[Outcome, FaultyFleet]:
    world = World()
    fleet = FaultyFleet(world, 6, never_after)
    monkeypatch.setattr(
        faults.os,
        "kill",
        lambda pid, which: fleet.done.append(f"{signal.Signals(which).name} {pid}"),
    )
    repetition = load("faults", Overrides(quick=True)).repetitions()[0]
    campaign = replace(repetition.campaign, faults=kinds or FAULTS, events=len(kinds or FAULTS))
    steps = tuple(
        replace(step, method=kind, subject=3)
        for step, kind in zip(repetition.steps, kinds or FAULTS, strict=False)
    )
    repetition = replace(repetition, campaign=campaign, steps=steps)
    return faults.run(fleet, repetition, Context(world.clock())), fleet  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("kill-miked", ["kill d3/miked", "start d3/miked"]),
        ("kill-tm", ["kill d2/idpd", "kill d2/miked", "start d2/idpd", "start d2/miked"]),
        ("pause-both", ["SIGSTOP 51", "SIGSTOP 51", "SIGCONT 51", "SIGCONT 51"]),
        ("restart", ["stop d3", "start d3"]),
        ("cut", ["cut d3", "heal d3"]),
        ("partition", ["part d1 d2 d3", "join again"]),
        ("loss", ["link d3 {'loss_percent': 30.0}", "link d3 {'loss_percent': 0.0}"]),
    ],
)
def test_each_fault_is_brought_and_ended(
    monkeypatch: pytest.MonkeyPatch, kind: str, done: list[str]
) -> None:
    outcome, fleet = measured(monkeypatch, kind)
    formed = [f"start d{n}" for n in range(1, 7)]
    assert fleet.done[: 6 + len(done)] == formed + done
    assert outcome.steps[0].status == "ok"
    values = {row["measure"]: row["value"] for row in outcome.tables["hellos.csv"]}
    assert values["recovered_ms"] == pytest.approx(WELL_NS / 1e6)
    assert ("new_key_ms" in values) == (kind == "kill-tm")


def test_all_kinds_run_on_one_network_and_every_one_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome, fleet = measured(monkeypatch)
    assert [step.status for step in outcome.steps] == ["ok"] * len(FAULTS)
    assert fleet.done.count("start d1") == 1, "formed once"
    assert sum("'loss_percent': 0.0" in what for what in fleet.done) == 7
    assert len(fleet.processes) == 12


def test_what_does_not_recover_fails_and_the_group_is_formed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome, fleet = measured(monkeypatch, "cut", "partition", "restart", never_after="part ")
    assert [step.status for step in outcome.steps] == ["ok", "failed", "ok"]
    assert "d3 is alone" in outcome.steps[1].reason
    assert fleet.done.count("start d1") == 1, "once more, after the record of the first was dropped"


def test_an_unknown_fault_is_refused() -> None:
    plan = load("faults")
    campaign = replace(plan.campaigns[0], faults=("flood",))
    with pytest.raises(PlanError, match="unknown faults flood"):
        _validate(replace(plan, campaigns=(campaign,)))


def test_summary_and_figure_come_from_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults.os, "kill", lambda *_: None)
    plan = load("faults", Overrides(quick=True, sa_backend="memory"))
    directory = RunDirectory.create(tmp_path, plan, {})
    world = World()
    fleet = FaultyFleet(world, 6)
    runner = Runner(directory, lambda *_: fleet, fake_sa_writes, NullDisplay(), world.clock())  # type: ignore[arg-type, return-value]
    runner.execute(SESSION)
    directory.close()
    summary.write(directory.path)
    lines = (directory.path / "summary.md").read_text()
    assert "kill-tm: all well 1.5 s after it ended" in lines
    files = {path.name for path in draw_all(directory.path)}
    assert "faults_memory-no-kernel-sa.png" in files

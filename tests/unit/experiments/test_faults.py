"""The fault campaign: what is done to whom, and that what does not recover fails its step."""

from __future__ import annotations

import itertools
import signal
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import SimpleNamespace
from typing import Any

import pytest

from experiments import faultkinds, faults, summary
from experiments.campaign import FAULTS, KERNEL_FAULTS
from experiments.errors import PlanError
from experiments.faultkinds import BOTH
from experiments.outcome import Context, Outcome
from experiments.plan import Overrides, _validate, load
from experiments.plots import draw_all
from experiments.record import RunDirectory
from experiments.runner import Runner
from testbed.errors import DeadlineError, ProcessGoneError
from testbed.fleet import Event
from tests.unit.experiments.fake_fleet import NullDisplay, World
from tests.unit.experiments.support import SESSION, fake_sa_writes

WELL_NS = 1_500_000_000
HERE = tuple(kind for kind in FAULTS if kind not in KERNEL_FAULTS)
PAUSE = ("SIGSTOP", "SIGCONT")
BOTH_WAYS = {"towards": True, "away": True}
TOWARDS = {"towards": True, "away": False}


class Processes(dict[str, Any]):
    def __init__(self, fleet: FaultyFleet) -> None:
        super().__init__()
        self.fleet = fleet

    def kill(self, name: str) -> None:
        del self[name]
        self.fleet.done.append(f"kill {name}")
        self.fleet.killed_ns = self.fleet.world.now


class FaultyFleet:
    """Devices to which faults are done; all is well after `WELL_NS`, or never after one kind."""

    key_ns = killed_ns = 0
    gone = ""

    def __init__(self, world: World, devices: int, folder: Path, never_after: str = "") -> None:
        self.world = world
        self.devices = tuple(f"d{n}" for n in range(1, devices + 1))
        self.addresses = {name: f"2001:db8:b::{name[1:]}" for name in self.devices}
        self.facts: dict[str, Any] = {"timings_ms": {"daemons": 1.0}}
        self.never_after = never_after
        self.done: list[str] = []
        self.processes = Processes(self)
        said = self.done.append
        cables = SimpleNamespace(
            part=lambda links: said(f"part {' '.join(links)}"),
            join_again=lambda: said("join again"),
            disturb=lambda link, what="", **ends: said(f"link {link} {what or 'as before'} {ends}"),
            move=lambda link: said(f"move {link}"),
            set_mtu=lambda link, mtu: said(f"mtu {link} {mtu}"),
        )
        self.network = SimpleNamespace(cables=cables, link_up=lambda link: said(f"plug {link}"))
        self.options = SimpleNamespace(capture=False, kernel=False)
        self.refusals = itertools.count()
        self.folder = folder
        (folder / "state").mkdir()
        for name in self.devices:
            self.revive(name)

    def __enter__(self) -> FaultyFleet:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def revive(self, node: str) -> None:
        for daemon in faults.BOTH:
            name = f"{node}/{daemon}"
            self.processes.setdefault(name, SimpleNamespace(signal=partial(self.signal, name)))

    def signal(self, name: str, which: signal.Signals) -> None:
        self.done.append(f"{which.name} {name}")
        if name == self.gone:
            raise ProcessGoneError(name)

    def device(self, name: str) -> Any:
        def ask(daemon: str, command: str, **values: int) -> None:
            self.done.append(f"{command} {name}/{daemon} {values}")

        return SimpleNamespace(directory=self.folder, ask=ask)

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
        return {
            "role": "tm" if device == "d2" else "member",
            "epoch": "7-00",
            "state_written": True,
            "counters": {"state.write_failed": next(self.refusals)},
        }

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
        now = self.killed_ns
        tm = self.addresses["d1"]
        keys = {"epoch": "8-00", "tm": tm}
        return [
            Event(now + self.key_ns, now, name, "miked", "t_key", keys) for name in self.devices
        ]


def measured(
    monkeypatch: pytest.MonkeyPatch, *kinds: str, never_after: str = "", key_ns: int = 0
) -> tuple[Outcome, FaultyFleet]:
    world = World()
    folder = TemporaryDirectory()
    fleet = FaultyFleet(world, 6, Path(folder.name), never_after)
    monkeypatch.setattr(
        faultkinds, "fill_disk", lambda state, undo, written: fleet.done.append("fill the disk")
    )
    fleet.key_ns = key_ns
    repetition = load("faults", Overrides(quick=True)).repetitions()[0]
    kinds = kinds or HERE
    campaign = replace(repetition.campaign, faults=kinds, events=len(kinds))
    steps = tuple(
        replace(step, method=kind, subject=3)
        for step, kind in zip(repetition.steps, kinds, strict=False)
    )
    repetition = replace(repetition, campaign=campaign, steps=steps)
    with folder:
        return faults.run(fleet, repetition, Context(world.clock())), fleet  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "done"),
    [
        ("kill-miked", ["kill d3/miked", "start d3/miked"]),
        ("kill-tm", ["kill d2/idpd", "kill d2/miked", "start d2/idpd", "start d2/miked"]),
        ("pause-both", [f"{which} d3/{daemon}" for which in PAUSE for daemon in BOTH]),
        ("restart", ["stop d3", "start d3"]),
        ("cut", ["cut d3", "heal d3"]),
        ("partition", ["part d1 d2 d3", "join again"]),
        ("loss", [f"link d3 loss 30% {BOTH_WAYS}", f"link d3 as before {BOTH_WAYS}"]),
        ("deaf", [f"link d3 loss 100% {TOWARDS}", f"link d3 as before {TOWARDS}"]),
        ("move", ["move d3", "plug d3"]),
        ("mtu", ["mtu d3 1280", "mtu d3 None"]),
        ("disk-full", ["fill the disk", "stop d3", "start d3"]),
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
    assert [step.status for step in outcome.steps] == ["ok"] * len(HERE)
    assert fleet.done.count("start d1") == 1, "formed once"
    assert sum("as before" in what for what in fleet.done) == 3 + 3 * 6
    assert len(fleet.processes) == 12


def test_what_does_not_recover_fails_and_the_group_is_formed_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcome, fleet = measured(monkeypatch, "cut", "partition", "restart", never_after="part ")
    assert [step.status for step in outcome.steps] == ["ok", "failed", "ok"]
    assert "d3 is alone" in outcome.steps[1].reason
    assert fleet.done.count("start d1") == 1, "once more, after the record of the first was dropped"


def test_a_daemon_that_is_gone_when_it_is_paused_fails_its_step_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FaultyFleet, "gone", "d3/idpd")
    outcome, fleet = measured(monkeypatch, "cut", "pause-both", "restart")
    assert [step.status for step in outcome.steps] == ["ok", "failed", "ok"]
    assert outcome.steps[1].reason == "d3/idpd is gone"
    woken = fleet.done.index("SIGCONT d3/miked")
    assert fleet.done.index("SIGSTOP d3/miked") < woken, "the other one is not left asleep"


@pytest.mark.parametrize("call", ["cut", "start", "await_members", "revive"])
def test_a_bare_error_of_the_system_fails_one_step_and_says_where(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """A race that nobody has thought of must not end a campaign of 525 faults."""
    once = iter([True])
    honest = getattr(FaultyFleet, call)

    def racing(self: FaultyFleet, *arguments: Any, **more: Any) -> Any:
        if self.done and "plug d3" in self.done and next(once, False):
            raise ProcessLookupError(3, "No such process")
        return honest(self, *arguments, **more)

    monkeypatch.setattr(FaultyFleet, call, racing)
    outcome, _ = measured(monkeypatch, "move", "cut", "kill-both", "restart")
    statuses = [step.status for step in outcome.steps]
    assert statuses.count("failed") == 1
    assert statuses.count("ok") == 3
    reason = next(step.reason for step in outcome.steps if step.status == "failed")
    assert reason.startswith("No such process (raised in ")


def test_a_device_that_cannot_be_revived_after_its_step_has_the_fleet_loaded_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def revive(self: FaultyFleet, node: str) -> None:
        if self.done:
            raise ProcessLookupError(3, "No such process")
        honest(self, node)

    honest = FaultyFleet.revive
    monkeypatch.setattr(FaultyFleet, "revive", revive)
    outcome, _ = measured(monkeypatch, "kill-both", "cut")
    assert [step.status for step in outcome.steps] == ["failed", "not-run"]
    assert outcome.broken.startswith("reviving: No such process")


def test_each_clock_is_set_and_corrected(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fleet = measured(monkeypatch, "clock-years")
    steps = [what for what in fleet.done if what.startswith("clock")]
    assert fleet.done[8:10] == ["stop d3", "start d3"]
    years = int(steps[0].split()[-1].strip("}"))
    assert abs(years) == 3 * 365 * 86_400_000
    assert steps == [
        f"clock d3/{daemon} {{'offset_ms': {value}}}"
        for daemon, value in (("idpd", years), ("miked", years), ("miked", 0), ("idpd", 0))
    ]


def test_a_new_key_that_comes_too_late_fails_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome, _ = measured(monkeypatch, "kill-tm", key_ns=6_000_000_000)
    assert outcome.steps[0].status == "failed"
    assert "ms after the TM died: more than 5100" in outcome.steps[0].reason


def test_a_disk_that_refused_nothing_was_not_full(monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = FaultyFleet.status

    def status(self: FaultyFleet, device: str, daemon: str = "idpd") -> dict[str, Any]:
        return {**refusing(self, device, daemon), "counters": {}}

    monkeypatch.setattr(FaultyFleet, "status", status)
    outcome, _ = measured(monkeypatch, "disk-full")
    assert "the fault did not come about: no disk_refusals" in outcome.steps[0].reason


def test_without_kernel_sas_their_faults_are_left_out_and_all_others_come_once() -> None:
    plan = load("faults", Overrides(quick=True, sa_backend="memory"))
    steps = plan.repetitions()[0].steps
    assert sorted(step.method for step in steps) == sorted(HERE)
    whole = load("faults")
    methods = [step.method for r in whole.repetitions() for step in r.steps]
    assert len(methods) >= 500
    assert {methods.count(kind) for kind in FAULTS} == {15}


def test_an_unknown_fault_is_refused() -> None:
    plan = load("faults")
    campaign = replace(plan.campaigns[0], faults=("flood",))
    with pytest.raises(PlanError, match="unknown faults flood"):
        _validate(replace(plan, campaigns=(campaign,)))


def test_summary_and_figure_come_from_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faultkinds, "fill_disk", lambda *_: None)
    plan = load("faults", Overrides(quick=True, sa_backend="memory"))
    directory = RunDirectory.create(tmp_path, plan, {})
    world = World()
    fleet = FaultyFleet(world, 6, tmp_path)
    runner = Runner(directory, lambda *_: fleet, fake_sa_writes, NullDisplay(), world.clock())  # type: ignore[arg-type, return-value]
    runner.execute(SESSION)
    directory.close()
    summary.write(directory.path)
    lines = (directory.path / "summary.md").read_text()
    assert "kill-tm: all well 1.5 s after it ended" in lines
    files = {path.name for path in draw_all(directory.path)}
    assert "faults_memory-no-kernel-sa.png" in files

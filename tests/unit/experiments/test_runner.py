from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from experiments.errors import ExperimentError, RecordError
from experiments.kinds import KINDS, Kind
from experiments.outcome import Outcome
from experiments.record import RunDirectory
from experiments.runner import failed_steps, missing_parts, step_count
from testbed.errors import TestbedError
from tests.unit.experiments.fake_fleet import FakeFleet, NullDisplay, World
from tests.unit.experiments.support import SESSION, make_run, runner, small_plan


def table(path: Path, name: str) -> list[dict[str, str]]:
    with (path / name).open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_ten_devices_ten_repetitions_give_eighty_rows_for_the_joiners(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(devices=10, repetitions=10))
    rows = table(run.path, "latencies.csv")
    joiners = [row for row in rows if row["role"] == "joiner"]
    monitors = [row for row in rows if row["role"] == "monitor"]
    assert len(joiners) == len(monitors) == 80
    assert all(row["ok"] == "1" for row in rows)
    assert len(table(run.path, "steps.csv")) == 80
    assert failed_steps(run) == missing_parts(run) == 0


def test_phases_of_a_join_are_the_ones_that_were_put_in(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan())
    row = next(r for r in table(run.path, "latencies.csv") if r["role"] == "monitor")
    # d2 founds the group, so the monitor is the second member: one lag of 0.1 ms.
    expected = {
        "idp_startup_ms": 20.0,
        "idp_to_mike_ms": 2.0,
        "mike_ms": 5.0 + 0.5 * 3 + 0.1,
        "mike_to_idp_ms": 3.0,
        "delete_ms": 0.0,
        "write_ms": 8.0,
        "total_ms": 39.6,
        "kernel_written_difference_ms": 0.05,
    }
    for name, value in expected.items():
        assert float(row[name]) == pytest.approx(value, abs=1e-3), name


def test_paper_mode_has_a_delete_phase(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(sa_backend="command", sa_mode="paper"))
    row = next(r for r in table(run.path, "latencies.csv") if r["role"] == "monitor")
    assert float(row["delete_ms"]) == pytest.approx(10.0, abs=1e-3)
    assert row["variant"] == "command+paper"


def test_an_injected_clock_offset_is_corrected(tmp_path: Path) -> None:
    shifted = World(offsets_ns={"d2": 40_000_000, "d3": -250_000_000, "d4": 7_000_000})
    make_run(tmp_path / "true", small_plan())
    make_run(tmp_path / "shifted", small_plan(), shifted)
    columns = ["total_ms", "mike_ms", "idp_startup_ms", "detect_ms", "join_to_key_ms"]
    for one, other in zip(
        table(tmp_path / "true", "latencies.csv"),
        table(tmp_path / "shifted", "latencies.csv"),
        strict=True,
    ):
        for name in columns:
            assert bool(one[name]) == bool(other[name])
            assert float(one[name] or 0) == pytest.approx(float(other[name] or 0), abs=1e-3)
    offsets = {
        row["device"]: float(row["offset_ms"])
        for row in table(tmp_path / "shifted", "latencies.csv")
    }
    assert offsets["d3"] == pytest.approx(-250.0)


def test_a_large_clock_bound_is_flagged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(), World(bound_ns=600_000))
    flags = {r["role"]: r["flags"] for r in table(run.path, "latencies.csv")}
    assert "clock-bound" in flags["monitor"]
    assert "clock-bound" not in flags["joiner"]


def test_leave_measures_from_trigger_and_from_detection(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan("leave", devices=5))
    rows = [r for r in table(run.path, "latencies.csv") if r["role"] == "monitor"]
    assert {r["method"] for r in rows} == {"shutdown", "cut"}
    by_size: dict[str, set[str]] = {}
    for row in rows:
        by_size.setdefault(row["group_size"], set()).add(row["method"])
        assert float(row["detect_ms"]) == pytest.approx(2000.0, abs=0.01)
        rest = float(row["total_ms"]) - float(row["from_detection_ms"])
        assert rest == pytest.approx(2000.0, abs=0.01)
    assert all(methods == {"shutdown", "cut"} for methods in by_size.values())


def test_a_cut_device_is_stopped_before_it_is_healed(tmp_path: Path) -> None:
    world = World()
    make_run(tmp_path / "run", small_plan("leave", devices=4), world)
    cuts = [c.split()[1] for c in world.calls if c.startswith("cut")]
    assert cuts
    for device in cuts:
        after = world.calls[world.calls.index(f"cut {device}") :]
        assert after.index(f"stop {device}") < after.index(f"heal {device}")


def test_the_tm_role_goes_back_to_the_second_device(tmp_path: Path) -> None:
    world = World(faults={"tm_drifts": True})
    run = make_run(tmp_path / "run", small_plan(repetitions=1), world)
    assert "handover d2" in world.calls
    steps = table(run.path, "steps.csv")
    assert [s["handover"] for s in steps] == ["0", "1"]
    assert "handover" in table(run.path, "latencies.csv")[-1]["flags"]


def test_the_packet_sender_rotates(tmp_path: Path) -> None:
    world = World()
    make_run(tmp_path / "run", small_plan(devices=8, repetitions=3), world)
    senders = {c for c in world.calls if c.startswith("packet")}
    assert len(senders) >= 4


@pytest.mark.parametrize("fault", ["sad_fail_at", "packet_fail_at"])
def test_a_failed_check_is_recorded_and_the_repetition_goes_on(tmp_path: Path, fault: str) -> None:
    display = NullDisplay()
    run = RunDirectory.create(tmp_path / "run", small_plan(), {})
    runner(run, World(faults={fault: 1}), display).execute(SESSION)
    steps = table(run.path, "steps.csv")
    assert [s["status"] for s in steps] == ["failed", "ok", "ok", "ok"]
    assert "check" in steps[0]["reason"]
    assert failed_steps(run) == 1
    assert any("failed" in note for note in display.notes)
    rows = [r for r in table(run.path, "latencies.csv") if r["step"] == "1"]
    assert [r["ok"] for r in rows if r["repetition"] == "1"] == ["0"] * 3
    assert all(r["total_ms"] for r in rows)  # measured, but not counted as such


def test_an_epoch_that_never_comes_ends_the_repetition_but_is_in_the_data(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(devices=5), World(faults={"lose_at": 2}))
    steps = table(run.path, "steps.csv")
    assert [s["status"] for s in steps] == ["ok", "failed", "not-run", "ok", "ok", "ok"]
    assert "no common new epoch" in steps[1]["reason"]
    assert steps[2]["reason"]
    lost = [r for r in table(run.path, "latencies.csv") if r["step"] == "2"][:4]
    assert all(r["total_ms"] == "" and "missing:epoch" in r["flags"] for r in lost)


def test_a_dead_daemon_means_a_new_fleet(tmp_path: Path) -> None:
    world = World(faults={"dies": "once"})
    run = make_run(tmp_path / "run", small_plan(), world)
    assert world.loads == 2
    assert "signal 9" in table(run.path, "steps.csv")[0]["reason"]
    assert missing_parts(run) == 0


@pytest.mark.parametrize("kind", ["join", "leave"])
def test_a_process_that_ends_while_it_is_looked_at_fails_one_step_only(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest, calls = FakeFleet.sad_check, []

    def racing(self: FakeFleet, *arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise ProcessLookupError(3, "No such process")
        return honest(self, *arguments, **more)

    monkeypatch.setattr(FakeFleet, "sad_check", racing)
    run = make_run(tmp_path / "run", small_plan(kind, devices=5))
    failed = [s["reason"] for s in table(run.path, "steps.csv") if s["status"] == "failed"]
    assert len(failed) == 1
    assert failed[0].startswith("No such process (raised in ")
    assert missing_parts(run) == 0


def test_a_fleet_that_does_not_end_well_costs_a_note_and_a_new_fleet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, display, once = World(), NullDisplay(), iter([True])

    def leave(self: FakeFleet, *_: object) -> None:
        if next(once, False):
            raise ProcessLookupError(3, "No such process")

    monkeypatch.setattr(FakeFleet, "__exit__", leave)
    run = RunDirectory.create(tmp_path / "run", small_plan("experiment"), {})
    runner(run, world, display).execute(SESSION)
    assert missing_parts(run) == failed_steps(run) == 0
    assert any("ending the daemons and the network: No such" in note for note in display.notes)


@pytest.mark.parametrize("call", ["load", "measure"])
def test_what_fails_once_before_anything_is_recorded_is_done_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    calls = []

    def fails() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise ProcessLookupError(3, "No such process")

    honest_enter, honest_measure = FakeFleet.__enter__, KINDS["join"].load()

    def enter(self: FakeFleet) -> FakeFleet:
        fails()
        return honest_enter(self)

    def measure(*arguments: Any) -> Any:
        fails()
        return honest_measure(*arguments)

    if call == "load":
        monkeypatch.setattr(FakeFleet, "__enter__", enter)
    else:
        monkeypatch.setattr(Kind, "load", lambda _self: measure)
    display, world = NullDisplay(), World(faults={"dies": "once"})
    run = RunDirectory.create(tmp_path / "run", small_plan(repetitions=3), {})
    runner(run, world, display).execute(SESSION)
    assert missing_parts(run) == 0
    assert len(list(run.rows("steps.csv"))) == 3 * 2
    assert any("loading or measuring: No such process" in note for note in display.notes)


def test_a_fleet_that_never_loads_ends_the_run_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def enter(self: FakeFleet) -> FakeFleet:
        raise TestbedError("no ESP here")

    monkeypatch.setattr(FakeFleet, "__enter__", enter)
    run = RunDirectory.create(tmp_path / "run", small_plan(), {})
    with pytest.raises(ExperimentError, match="no ESP here"):
        runner(run, World()).execute(SESSION)


@pytest.mark.parametrize("where", ["ending the daemons and the network", "judging what was"])
def test_what_cannot_be_judged_fails_the_last_step_and_is_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def gone(*_: object) -> None:
        raise ProcessLookupError(3, "No such process")

    def measure(*arguments: Any) -> Outcome:
        outcome: Outcome = honest(*arguments)
        outcome.after = gone if where.startswith("judging") else lambda: None
        return outcome

    honest = KINDS["join"].load()
    monkeypatch.setattr(Kind, "load", lambda _self: measure)
    if not where.startswith("judging"):
        monkeypatch.setattr(FakeFleet, "__exit__", gone)
    run = make_run(tmp_path / "run", small_plan(devices=4))
    steps = table(run.path, "steps.csv")
    assert [step["status"] for step in steps] == ["ok", "failed"] * 2
    assert all(step["reason"].startswith(where) for step in steps[1::2])
    assert missing_parts(run) == 0


def test_daemons_that_always_break_end_the_run(tmp_path: Path) -> None:
    run = RunDirectory.create(tmp_path / "run", small_plan(repetitions=8), {})
    with pytest.raises(ExperimentError, match="3 times in a row"):
        runner(run, World(faults={"dies": "always"})).execute(SESSION)
    assert run.manifest["state"] == "failed"
    assert len(run.parts()) == 3


def test_a_preparation_that_fails_is_recorded(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(), World(faults={"no_group": True}))
    steps = table(run.path, "steps.csv")
    assert [s["status"] for s in steps] == ["failed", "not-run"] * 2
    assert "preparation" in steps[0]["reason"]


def test_a_starved_step_is_flagged(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan(), World(idle_percent=1.0))
    assert {s["starved"] for s in table(run.path, "steps.csv")} == {"1"}
    assert "starved" in table(run.path, "latencies.csv")[0]["flags"]


def test_interruption_keeps_finished_repetitions_and_resume_does_the_rest(tmp_path: Path) -> None:
    plan = small_plan(repetitions=4)
    run = RunDirectory.create(tmp_path / "run", plan, {})
    probe = World()
    make_run(tmp_path / "probe", plan, probe)
    world = World(faults={"interrupt_at_poll": probe.polls * 5 // 8})
    with pytest.raises(KeyboardInterrupt):
        runner(run, world).execute(SESSION)
    run.close()
    assert run.manifest["state"] == "interrupted"
    assert [p.name[-3:] for p in run.parts()] == ["001", "002"]
    assert len(table(run.path, "steps.csv")) == 4  # merged in spite of the interruption
    before = {p: (p / "events.csv").read_bytes() for p in run.parts()}

    again = RunDirectory.open(tmp_path / "run")
    display = NullDisplay()
    assert step_count(again) == 4
    runner(again, World(), display).execute(SESSION)
    assert display.steps == 4
    assert again.manifest["state"] == "complete"
    assert len(again.manifest["sessions"]) == 2
    assert missing_parts(again) == 0
    assert {p: (p / "events.csv").read_bytes() for p in before} == before


def test_resuming_on_another_platform_is_refused(tmp_path: Path) -> None:
    make_run(tmp_path / "run", small_plan()).close()
    run = RunDirectory.open(tmp_path / "run")
    elsewhere = {"environment": {**SESSION["environment"], "environment": "vm"}}
    with pytest.raises(RecordError, match="start a new run"):
        runner(run, World()).execute(elsewhere)


def test_the_main_experiment_runs_both_variants_leaves_and_sa_writes(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", small_plan("experiment", devices=4, repetitions=2))
    steps = table(run.path, "steps.csv")
    assert {(s["campaign"], s["variant"]) for s in steps} == {
        ("join", "command+paper"),
        ("join", "netlink+per-sender"),
        ("leave", "command+paper"),
        ("leave", "netlink+per-sender"),
    }
    assert len(table(run.path, "sa_writes.csv")) == 2 * 6 * 50
    assert run.manifest["sessions"][0]["loads"][0]["facts"]

"""The commands end to end on fakes: where they run, what they return, what they leave behind."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import testbed.environment
import testbed.session
from experiments import commands
from experiments.record import MEMORY_SUFFIX, RunDirectory
from testbed.environment import Choice, EnvironmentKind
from testbed.spec import TopologyError
from tests.unit.experiments.fake_fleet import FakeFleet, World
from tests.unit.experiments.support import SESSION, make_run, runner, small_plan


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Let the native path run on a fake fleet, in this process."""
    made = World()

    def choose(kind: EnvironmentKind, *, needs_esp: bool) -> Choice:
        return Choice(EnvironmentKind.NATIVE, f"a test; needs ESP: {needs_esp}")

    def fleets(directory: RunDirectory) -> Any:
        devices = directory.plan.devices
        return lambda repetition, logs: FakeFleet(
            made, devices, repetition.variant.sa_mode == "paper"
        )

    monkeypatch.setattr(testbed.environment, "choose", choose)
    monkeypatch.setattr(testbed.environment, "describe", lambda: SESSION["environment"])
    monkeypatch.setattr(testbed.session, "begin", lambda command: None)
    monkeypatch.setattr(commands, "_fleets", fleets)
    monkeypatch.setattr("experiments.runner.Time", made.clock)
    return made


def invoke(*arguments: object) -> Result:
    return CliRunner().invoke(commands.run, [str(a) for a in arguments])


def the_run(folder: Path, name: str = "join") -> Path:
    (path,) = (folder / name).iterdir()
    return path


def test_a_run_ends_with_figures_and_a_summary(tmp_path: Path, world: World) -> None:
    found = invoke("join", "--devices", 4, "--repetitions", 2, "--output", tmp_path)
    assert found.exit_code == 0, found.output
    path = the_run(tmp_path)
    assert (path / "summary.json").exists()
    assert (path / "figures" / "fig6_join_latency.pdf").exists()
    assert "4 of 4 steps ok" in found.output


def test_a_failed_check_is_the_exit_status_but_results_are_kept(
    tmp_path: Path, world: World
) -> None:
    world.faults["packet_fail_at"] = 2
    found = invoke("join", "--devices", 4, "--repetitions", 2, "--output", tmp_path)
    assert found.exit_code == 1
    assert "a step's check failed" in found.output
    assert (the_run(tmp_path) / "figures" / "fig6_join_latency.png").exists()


def test_interrupted_then_resumed(tmp_path: Path, world: World) -> None:
    world.faults["interrupt_at_poll"] = 25
    options = ("--devices", 4, "--repetitions", 6, "--no-figures", "--output", tmp_path)
    found = invoke("join", *options)
    assert found.exit_code == commands.INTERRUPTED
    assert "--resume" in found.output
    done = len(list((the_run(tmp_path) / "parts").iterdir()))
    assert 0 < done < 6
    assert invoke("join", "--resume", "--no-figures", "--output", tmp_path).exit_code == 0
    assert len(list((the_run(tmp_path) / "parts").iterdir())) == 6


def test_memory_needs_no_esp_and_marks_the_run(tmp_path: Path, world: World) -> None:
    world.kernel = False
    found = invoke(
        "join", "--sa-backend", "memory", "--devices", 3, "--quick", "--output", tmp_path
    )
    assert found.exit_code == 0, found.output
    assert "needs ESP: False" in found.output
    path = the_run(tmp_path)
    assert path.name.endswith(MEMORY_SUFFIX)
    assert all(MEMORY_SUFFIX in file.name for file in (path / "figures").iterdir())


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> list[Sequence[str]]:
    """Let a run choose the VM; what would run there is recorded, and done on fakes."""
    seen: list[Sequence[str]] = []

    def choose(kind: EnvironmentKind, *, needs_esp: bool) -> Choice:
        return Choice(EnvironmentKind.VM, "no ESP here")

    def rerun_in_vm(argv: Sequence[str], *, writable: Sequence[Path]) -> int:
        seen.append(argv)
        with RunDirectory.open(writable[0]) as run:
            runner(run, World()).execute(SESSION)
        return 0

    monkeypatch.setattr(testbed.environment, "choose", choose)
    monkeypatch.setattr(testbed.environment, "rerun_in_vm", rerun_in_vm)
    return seen


def test_in_the_vm_the_same_run_is_recorded_and_drawn_on_the_host(
    tmp_path: Path, guest: list[Sequence[str]]
) -> None:
    found = invoke("experiment", "--devices", 3, "--repetitions", 1, "--output", tmp_path)
    assert found.exit_code == 0, found.output
    path = the_run(tmp_path, "experiment")
    assert list(guest[0]) == [
        sys.executable,
        "-m",
        "experiments.commands",
        "experiment",
        "--resume",
        str(path),
        "--env",
        "native",
        "--no-figures",
    ]
    assert (path / "figures" / "fig9_sa_write.png").exists()


def test_a_guest_that_ends_early_is_no_success(
    tmp_path: Path, guest: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testbed.environment, "rerun_in_vm", lambda argv, writable: 0)
    found = invoke("join", "--devices", 3, "--output", tmp_path)
    assert found.exit_code == 1
    assert "0 of 10 parts" in found.output


def test_a_run_of_another_experiment_is_not_resumed(tmp_path: Path, world: World) -> None:
    make_run(tmp_path / "run", small_plan())
    found = invoke("leave", "--resume", tmp_path / "run")
    assert found.exit_code == 1
    assert "is a run of join" in found.output


def test_another_network_by_name_takes_all_its_devices(tmp_path: Path, world: World) -> None:
    found = invoke("join", "--topology", "star(5)", "--repetitions", 1, "--output", tmp_path)
    assert found.exit_code == 0, found.output
    with RunDirectory.open(the_run(tmp_path), write=False) as run:
        assert (run.plan.topology, run.plan.devices) == ("star(5)", 5)
        assert commands._topology(run).name == "star(5)"


def test_another_network_by_file_is_copied_into_the_run(tmp_path: Path, world: World) -> None:
    """A guest sees the run's folder but not where the file was."""
    text = (commands.PROJECT / "topologies" / "coalition" / "topology.toml").read_text()
    file = tmp_path / "mine.toml"
    file.write_text(text)
    found = invoke("join", "--topology", file, "--repetitions", 1, "--output", tmp_path / "out")
    assert found.exit_code == 0, found.output
    file.unlink()
    path = the_run(tmp_path / "out")
    with RunDirectory.open(path, write=False) as run:
        assert len(commands._topology(run).clients) == 8
        assert run.plan.topology == "mine.toml"
    assert str(tmp_path) not in (path / "manifest.json").read_text().split('"command"')[0]


def test_a_network_with_routers_is_not_replaced_by_a_star(tmp_path: Path, world: World) -> None:
    made = make_run(tmp_path / "run", small_plan("wan", devices=9, repetitions=1))
    with pytest.raises(TopologyError, match="9 are asked for"):
        commands._topology(made)


def test_delivery_without_kernel_sas_is_refused(tmp_path: Path, world: World) -> None:
    found = invoke("coalition-multicast", "--sa-backend", "memory", "--output", tmp_path)
    assert found.exit_code == 1
    assert "nothing red crosses the network" in found.output


def test_a_network_of_partitions_is_refused_in_one_line(tmp_path: Path) -> None:
    found = invoke("join", "--topology", "partitions(2)", "--output", tmp_path)
    assert found.exit_code == 1
    assert "experiments measure one group" in found.output

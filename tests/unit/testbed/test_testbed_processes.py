"""Owned processes: named when they die, stopped in bounded time, found by run id alone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.errors import DaemonDiedError, TestbedError
from testbed.processes import ProcessTable, last_line
from testbed.runs import RUN_ID_VARIABLE, Run, all_runs, new_run_id, processes_of
from testbed.wait import wait_until

SLEEP = ["sleep", "600"]
STUBBORN = [
    sys.executable,
    "-S",
    "-c",
    "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True);"
    "signal.pause()",
]


@pytest.fixture(autouse=True)
def private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


@pytest.fixture
def table() -> Iterator[ProcessTable]:
    table = ProcessTable(new_run_id())
    yield table
    table.stop(grace_s=0.1)


def test_a_process_that_dies_is_named_with_its_last_words(
    table: ProcessTable, tmp_path: Path
) -> None:
    table.start("d1/idpd", SLEEP, output=tmp_path / "a")
    command = [sys.executable, "-S", "-c", "print('no such key'); raise SystemExit(3)"]
    process = table.start("d2/miked", command, output=tmp_path / "b")
    process.handle.wait()
    with pytest.raises(DaemonDiedError, match=r"d2/miked ended with exit code 3.*no such key") as e:
        table.check()
    assert (e.value.name, e.value.code) == ("d2/miked", 3)


def test_a_killed_process_is_told_as_killed(table: ProcessTable, tmp_path: Path) -> None:
    process = table.start("d1/idpd", SLEEP, output=tmp_path / "a")
    table.check()
    os.kill(process.pid, signal.SIGKILL)
    process.handle.wait()
    with pytest.raises(DaemonDiedError, match="signal 9"):
        table.check()


def test_one_that_may_end_is_no_fault(table: ProcessTable, tmp_path: Path) -> None:
    process = table.start("capture", ["true"], output=tmp_path / "a", must_live=False)
    process.handle.wait()
    table.check()


def test_stopping_is_bounded(table: ProcessTable, tmp_path: Path) -> None:
    table.start("gentle", SLEEP, output=tmp_path / "a")
    deaf = table.start("deaf", STUBBORN, output=tmp_path / "b")
    wait_until(lambda: last_line(tmp_path / "b") == "deaf", 10, "the deaf one has not begun")
    assert table.stop(grace_s=0.2) == ["deaf"]
    assert deaf.handle.poll() == -signal.SIGKILL
    assert table.names() == []


def test_a_name_is_used_once_and_a_missing_program_is_told(
    table: ProcessTable, tmp_path: Path
) -> None:
    table.start("x", SLEEP, output=tmp_path / "a")
    with pytest.raises(TestbedError, match="x runs already"):
        table.start("x", SLEEP, output=tmp_path / "a")
    with pytest.raises(TestbedError, match=r"cannot start y \(/no/such\)"):
        table.start("y", ["/no/such"], output=tmp_path / "a")


def test_clean_removes_what_a_crashed_run_left_and_nothing_else(tmp_path: Path) -> None:
    crashed = Run(new_run_id())
    crashed.directory.mkdir(parents=True)
    crashed.update(pid=2**22 + 1, start_ticks=1, boot_id="gone")
    (crashed.directory / "secret").write_text("x")
    mine = {**os.environ, RUN_ID_VARIABLE: crashed.run_id}
    other = {**os.environ, RUN_ID_VARIABLE: crashed.run_id + "0"}
    orphans = [subprocess.Popen(SLEEP, env=mine) for _ in range(2)]
    stranger = subprocess.Popen(SLEEP, env=other)
    try:
        wait_until(lambda: len(processes_of(crashed.run_id)) == 2, 10, "the orphans")
        assert not crashed.alive()
        assert [run.run_id for run in all_runs()] == [crashed.run_id]
        reaped = crashed.reap()
        assert (reaped.processes, reaped.directories) == (2, 1)
        assert all(orphan.wait() == -signal.SIGKILL for orphan in orphans)
        assert stranger.poll() is None
        assert not crashed.directory.exists()
        assert all_runs() == []
    finally:
        for process in (*orphans, stranger):
            process.kill()
            process.wait()


def test_a_living_run_is_known_as_alive() -> None:
    run = Run.create(["test"])
    assert run.alive()
    assert run.directory.stat().st_mode & 0o077 == 0
    with pytest.raises(TestbedError, match="exists already"):
        Run.create(["test"], run.run_id)
    run.update(start_ticks=1)  # the same process id, another process
    assert not run.alive()


def test_a_torn_record_is_no_living_run_for_long(tmp_path: Path) -> None:
    run = Run("20200101T000000Z-0000")
    run.directory.mkdir(parents=True)
    (run.directory / "run.json").write_text("{")
    assert run.alive()  # it may be starting this very moment
    os.utime(run.directory, (1, 1))
    assert not run.alive()

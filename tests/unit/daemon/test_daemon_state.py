"""State on disk: the power may go at any system call and any byte, and the disk may refuse."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from protocol.core.engine import Instant
from protocol.daemon import atomicfile, statefile
from protocol.daemon.logfile import LogFile
from protocol.daemon.memory import RESERVE, Memory
from protocol.daemon.statefile import StateError, StateFile
from tests.support.identities import make_identities

NAMES = ("startup_wall_ns", "epoch_mark")
MAIN, COPY = "miked.state", "miked.state.copy"


class Clock:
    mono_ns = 0

    def now(self) -> Instant:
        self.mono_ns += 1
        return Instant(self.mono_ns, 1_800_000_000_000_000_000)


class PowerCutError(BaseException):
    """The process is gone; nobody catches this."""


def state(directory: Path) -> StateFile:
    return StateFile(directory, "miked", NAMES)


def numbers(directory: Path) -> tuple[int, int]:
    found = state(directory)
    return found["startup_wall_ns"], found["epoch_mark"]


def written(directory: Path, startup: int, mark: int) -> StateFile:
    file = state(directory)
    file.raise_to(startup_wall_ns=startup, epoch_mark=mark)
    assert file.write()
    return file


class Disk:
    """Stands between the state file and the system: does something at the n-th call.

    A directory's fsync, like a file's, is one of the calls; `calls` counts all of them.
    """

    NAMES = ("open", "write", "fsync")

    def __init__(
        self, monkeypatch: pytest.MonkeyPatch, at: int, act: Callable[[str], Any] | None
    ) -> None:
        self.calls = 0
        self._at, self._act = at, act
        for name in self.NAMES:
            monkeypatch.setattr(atomicfile.os, name, self._wrap(name, getattr(os, name)))
        monkeypatch.setattr(Path, "replace", self._wrap("rename", Path.replace))

    def _wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            if self.calls == self._at and self._act is not None:
                answer = self._act(name)
                if answer is not None:
                    return real(arguments[0], arguments[1][:answer])
            return real(*arguments, **named)

        return call


def calls_of_a_write(tmp_path: Path) -> int:
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 0, None)
        written(tmp_path / "counted", 1, 1)
        return disk.calls


def test_numbers_are_kept_and_only_grow(tmp_path: Path) -> None:
    written(tmp_path, 5, 7)
    file = state(tmp_path)
    assert not file.pending
    file.raise_to(startup_wall_ns=4, epoch_mark=8)
    assert file.pending
    assert file.write()
    assert numbers(tmp_path) == (5, 8)
    assert {path.name for path in tmp_path.iterdir()} == {MAIN, COPY}
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in tmp_path.iterdir())


def test_a_device_without_files_begins_with_nothing(tmp_path: Path) -> None:
    assert numbers(tmp_path / "new") == (0, 0)


@pytest.mark.parametrize("spoiled", [MAIN, COPY])
def test_one_file_cut_at_every_length_costs_nothing(tmp_path: Path, spoiled: str) -> None:
    written(tmp_path, 5, 7)
    path = tmp_path / spoiled
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        file = state(tmp_path)
        assert (file["startup_wall_ns"], file["epoch_mark"]) == (5, 7)
        assert len(file.repaired) == 1
        assert file.write()
        assert path.read_bytes() == whole


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    written(tmp_path, 5, 7)
    path = tmp_path / MAIN
    whole = path.read_bytes()
    for bit in range(8 * len(whole)):
        changed = bytearray(whole)
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(changed)
        assert state(tmp_path).repaired, f"bit {bit}"


def test_a_file_left_half_written_beside_its_place_is_ignored(tmp_path: Path) -> None:
    written(tmp_path, 5, 7)
    newer = statefile.encode({"startup_wall_ns": 50, "epoch_mark": 70})
    for length in range(len(newer)):
        (tmp_path / f"{MAIN}.new").write_bytes(newer[:length])
        assert numbers(tmp_path) == (5, 7)
    written(tmp_path, 6, 8)
    assert {path.name for path in tmp_path.iterdir()} == {MAIN, COPY}


def test_both_files_spoiled_is_said_and_not_taken_for_a_new_device(tmp_path: Path) -> None:
    written(tmp_path, 5, 7)
    for name in (MAIN, COPY):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(StateError, match="spoiled"):
        state(tmp_path)


def test_the_file_of_another_daemon_is_not_ours(tmp_path: Path) -> None:
    StateFile(tmp_path, "miked", ("startup_wall_ns",)).write()
    with pytest.raises(StateError):
        state(tmp_path)


def test_power_cut_at_every_system_call(tmp_path: Path) -> None:
    """Afterwards: the old numbers or the new ones; the new ones if they were relied upon."""

    def cut(_name: str) -> None:
        raise PowerCutError

    calls = calls_of_a_write(tmp_path)
    assert calls > 8
    for at in range(1, calls + 2):
        directory = tmp_path / str(at)
        written(directory, 5, 7)
        file = state(directory)
        file.raise_to(startup_wall_ns=6, epoch_mark=8)
        relied = False
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, at, cut)
            with suppress(PowerCutError):
                relied = file.write()
        expected = [(6, 8)] if relied else [(5, 7), (6, 8)]
        assert numbers(directory) in expected, f"call {at}"
        written(directory, 9, 9)  # the next process is not in its way
        assert numbers(directory) == (9, 9)
    assert relied


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
def test_a_disk_that_refuses_at_any_call_stops_nothing(tmp_path: Path, number: int) -> None:
    def refuse(_name: str) -> None:
        raise OSError(number, os.strerror(number))

    for at in range(1, calls_of_a_write(tmp_path) + 1):
        directory = tmp_path / f"{number}-{at}"
        written(directory, 5, 7)
        file = state(directory)
        file.raise_to(startup_wall_ns=6)
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, at, refuse)
            assert not file.write()
        assert file.error == os.strerror(number)
        assert file.pending
        assert numbers(directory)[0] in (5, 6)
        assert file.write(), "when the disk is well again"
        assert numbers(directory) == (6, 7)
        assert {path.name for path in directory.iterdir()} == {MAIN, COPY}


def test_short_writes_are_completed(tmp_path: Path) -> None:
    for at in range(1, calls_of_a_write(tmp_path) + 1):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, at, lambda name: 3 if name == "write" else None)
            written(tmp_path / str(at), 5, 7)
        assert numbers(tmp_path / str(at)) == (5, 7)


# What idpd and miked make of it.


def memory(tmp_path: Path, daemon: str = "miked") -> Memory:
    log = LogFile(tmp_path / f"{daemon}.log", Clock())
    try:
        return Memory(tmp_path / "state", daemon, log)
    finally:
        log.close()


def test_a_crash_never_lets_a_used_number_come_back(tmp_path: Path) -> None:
    used = 0
    for step in (1, 3, RESERVE - 1, RESERVE, RESERVE + 1, 10**9):
        found = memory(tmp_path)
        assert found.recall_epochs() >= used
        found.reserve_epochs()
        used = found.recall_epochs() + step
        found.keep_epoch(used)  # and no orderly end


def test_an_orderly_stop_leaves_no_number_out(tmp_path: Path) -> None:
    found = memory(tmp_path)
    found.reserve_epochs()
    found.keep_epoch(3)
    found.settle()
    assert memory(tmp_path).recall_epochs() == 3


def test_numbers_in_reserve_need_no_disk_in_a_join(tmp_path: Path) -> None:
    found = memory(tmp_path)
    found.reserve_epochs()
    with pytest.MonkeyPatch.context() as patch:
        disk = Disk(patch, 0, None)
        for number in range(1, RESERVE + 1):
            found.keep_epoch(number)
        assert disk.calls == 0
        assert found.pending, "an idle moment moves the mark"
        found.keep_epoch(2 * RESERVE + 1)
        assert disk.calls > 0, "a number above the mark waits for the disk"


def test_a_full_disk_is_said_once_and_its_end_too(tmp_path: Path) -> None:
    def refuse(_name: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    log = LogFile(tmp_path / "miked.log", Clock())
    found = Memory(tmp_path / "state", "miked", log)
    for _ in range(5):
        with pytest.MonkeyPatch.context() as patch:
            Disk(patch, 1, refuse)
            found.keep_startup(7)
    found.write()
    log.close()
    assert found.failed_total == 5
    lines = (tmp_path / "miked.log").read_text().splitlines()
    assert [line.split(" ", 2)[1] for line in lines] == ["error", "info"]
    assert "No space left on device" in lines[0]


def test_the_last_start_is_recalled_unless_a_wrong_clock_made_it(tmp_path: Path) -> None:
    now = 1_800_000_000_000_000_000
    for ahead_s, recalled in ((-100, True), (29, True), (31, False), (10**9, False)):
        memory(tmp_path, "idpd").keep_startup(now + ahead_s * 10**9)
        identity = make_identities(1)[0]
        memory(tmp_path, "idpd").recall_startup(identity, now, 30_000)
        expected = max(now, now + ahead_s * 10**9 + 1) if recalled else now
        assert identity.startup_after(now) == expected
        for path in (tmp_path / "state").iterdir():
            path.unlink()


def test_a_start_by_a_wrong_clock_is_forgotten_when_the_clock_is_set(tmp_path: Path) -> None:
    now = 1_800_000_000_000_000_000
    for ahead_s, forgotten in ((29, False), (31, True), (10**8, True)):
        found = memory(tmp_path, "idpd")
        identity = make_identities(1)[0]
        identity.begin(now + ahead_s * 10**9)
        found.keep_startup(now + ahead_s * 10**9)
        found.correct_startup(identity, now, 30_000)
        expected = now if forgotten else now + ahead_s * 10**9 + 1
        assert identity.startup_after(now) == expected
        identity.begin(identity.startup_after(now))
        for path in (tmp_path / "state").iterdir():
            path.unlink()


def test_without_a_directory_the_log_says_so(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "idpd.log", Clock())
    found = Memory(None, "idpd", log)
    found.keep_startup(5)
    found.write()
    log.close()
    assert "no [state] directory" in (tmp_path / "idpd.log").read_text()

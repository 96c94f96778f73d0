"""Trace, log and key files: what the daemons write."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from protocol.core.engine import Instant
from protocol.core.errors import LocalError
from protocol.daemon.keys import KeyDirectory, KeyDirectoryError
from protocol.daemon.logfile import LogFile
from protocol.daemon.trace import TraceWriter


class HandClock:
    """A clock that tests turn."""

    def __init__(self) -> None:
        self.mono_ns = 1_000
        self.wall_ns = 1_700_000_000_000_000_000

    def now(self) -> Instant:
        return Instant(self.mono_ns, self.wall_ns)

    def pass_ms(self, duration_ms: int) -> None:
        self.mono_ns += duration_ms * 1_000_000
        self.wall_ns += duration_ms * 1_000_000


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> dict[str, bool]:
    """Make writes fail while ``state["full"]`` is set."""
    state = {"full": False}
    write = os.write

    def limited(fd: int, data: bytes) -> int:
        if state["full"]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr("protocol.daemon.appendfile.os.write", limited)
    return state


def lines(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_point_is_stamped_when_reported_and_written_at_flush(
    tmp_path: Path, clock: HandClock
) -> None:
    path = tmp_path / "t.jsonl"
    trace = TraceWriter(path, "d1", "idpd", clock)
    trace.report("t_hello", {"a": 1})
    clock.pass_ms(5)
    assert path.read_text() == ""
    assert trace.pending
    assert trace.flush()
    assert not trace.pending
    assert lines(path) == [
        {
            "wall_ns": 1_700_000_000_000_000_000,
            "mono_ns": 1_000,
            "device": "d1",
            "daemon": "idpd",
            "point": "t_hello",
            "a": 1,
        }
    ]
    trace.close()
    trace.close()


def test_bytes_never_reach_the_trace(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "t.jsonl"
    trace = TraceWriter(path, "d1", "idpd", clock)
    trace.report("x", {"key": b"secret key bytes"})
    trace.close()
    assert lines(path)[0]["key"] == "<16 bytes>"


def test_memory_is_bounded_and_the_loss_is_said(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "t.jsonl"
    trace = TraceWriter(path, "d1", "idpd", clock, pending_lines_max=3)
    for number in range(10):
        trace.report("p", {"n": number})
    assert trace.lost_total == 7
    trace.close()
    written = lines(path)
    assert written[0]["point"] == "trace.lost"
    assert written[0]["lines"] == 7
    assert [line["n"] for line in written[1:]] == [0, 1, 2]


def test_a_full_disk_costs_lines_and_is_said_when_there_is_room_again(
    tmp_path: Path, clock: HandClock, full_disk: dict[str, bool]
) -> None:
    path = tmp_path / "t.jsonl"
    trace = TraceWriter(path, "d1", "idpd", clock, buffer_bytes_max=250)
    full_disk["full"] = True
    for number in range(10):
        trace.report("p", {"n": number})
    assert not trace.flush()
    assert trace.error == os.strerror(errno.ENOSPC)
    assert trace.lost_total > 0
    full_disk["full"] = False
    trace.report("after", {})
    assert trace.flush()
    assert trace.error == ""
    points = [line["point"] for line in lines(path)]
    assert points[-2:] == ["trace.lost", "after"]
    assert lines(path)[-2]["lines"] == trace.lost_total
    trace.close()


def test_a_trace_that_cannot_be_a_file_is_refused(tmp_path: Path, clock: HandClock) -> None:
    with pytest.raises(LocalError, match="Is a directory"):
        TraceWriter(tmp_path, "d1", "idpd", clock)
    with pytest.raises(LocalError, match="not a regular file"):
        TraceWriter(Path("/dev/null"), "d1", "idpd", clock)


def test_a_second_daemon_cannot_write_the_same_trace(tmp_path: Path, clock: HandClock) -> None:
    first = TraceWriter(tmp_path / "t", "d1", "idpd", clock)
    with pytest.raises(LocalError, match="another daemon is running here"):
        TraceWriter(tmp_path / "t", "d1", "idpd", clock)
    first.close()
    TraceWriter(tmp_path / "t", "d1", "idpd", clock).close()


def test_log_lines_are_plain_utc_and_one_line_each(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "idpd.log"
    log = LogFile(path, clock)
    log.write("debug", "unseen")
    log.write("error", "two\nlines")
    log.close()
    assert path.read_text() == "2023-11-14T22:13:20.000000Z error two lines\n"


def test_repeated_refusals_are_written_once_a_minute(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "idpd.log"
    log = LogFile(path, clock)
    for _ in range(100):
        log.write("warning", "refused")
        clock.pass_ms(100)
    clock.pass_ms(60_000)
    log.write("warning", "refused")
    log.close()
    assert [line.split(" ", 1)[1] for line in path.read_text().splitlines()] == [
        "warning refused",
        "warning refused (and 99 times before)",
    ]
    assert log.suppressed_total == 99


def test_a_flood_of_different_lines_is_limited_and_said(tmp_path: Path, clock: HandClock) -> None:
    path = tmp_path / "idpd.log"
    log = LogFile(path, clock)
    for number in range(10_000):
        log.write("warning", f"refused {number}")
    clock.pass_ms(1_000)
    log.write("warning", "later")
    log.close()
    text = path.read_text().splitlines()
    assert len(text) < 300
    assert "lines were suppressed" in text[-2]
    assert text[-1].endswith("later")


def test_key_files_are_closed_to_others(tmp_path: Path) -> None:
    os.umask(0o022)
    keys = KeyDirectory(tmp_path / "keys")
    keys.create()
    keys.publish("12-0a1b2c3d4e5f6071", b"k" * 32)
    path = tmp_path / "keys" / "12-0a1b2c3d4e5f6071"
    assert (tmp_path / "keys").stat().st_mode & 0o777 == 0o700
    assert path.stat().st_mode & 0o777 == 0o600
    assert [entry.name for entry in (tmp_path / "keys").iterdir()] == [path.name]
    assert keys.fetch(path.name) == b"k" * 32
    assert keys.retire(path.name)
    assert not keys.retire(path.name)
    assert keys.fetch(path.name) is None


@pytest.mark.parametrize(
    "pointer", ["", "../x", "a/b", ".hidden", "a.new", "x" * 97, "a\0b", "a\n"]
)
def test_a_pointer_is_a_plain_name(tmp_path: Path, pointer: str) -> None:
    (tmp_path / "x").write_bytes(b"outside")
    keys = KeyDirectory(tmp_path / "keys")
    keys.create()
    assert keys.fetch(pointer) is None
    for change in (lambda: keys.publish(pointer, b"k"), lambda: keys.retire(pointer)):
        with pytest.raises(KeyDirectoryError):
            change()


def test_what_others_could_have_written_is_not_a_key(tmp_path: Path) -> None:
    keys = KeyDirectory(tmp_path / "keys")
    keys.create()
    (tmp_path / "outside").write_bytes(b"o" * 32)
    (tmp_path / "outside").chmod(0o600)
    (tmp_path / "keys" / "link").symlink_to(tmp_path / "outside")
    (tmp_path / "keys" / "open").write_bytes(b"o" * 32)
    (tmp_path / "keys" / "open").chmod(0o640)
    (tmp_path / "keys" / "empty").touch(0o600)
    (tmp_path / "keys" / "long").write_bytes(b"o" * 65)
    (tmp_path / "keys" / "long").chmod(0o600)
    os.mkfifo(tmp_path / "keys" / "fifo", 0o600)
    for name in ("link", "open", "empty", "long", "fifo"):
        assert keys.fetch(name) is None, name
    assert keys.clean() == 5


def test_a_key_directory_of_someone_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "keys").symlink_to(tmp_path / "real")
    with pytest.raises(KeyDirectoryError, match="not a directory of this user"):
        KeyDirectory(tmp_path / "keys").create()

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.daemon.nursery import Nursery, NurseryError
from tests.support.waiting import wait_until


@pytest.fixture
def nursery(tmp_path: Path) -> Iterator[Nursery]:
    with Nursery(tmp_path / "nursery.stderr") as running:
        yield running


def test_a_daemon_that_cannot_start_ends_with_its_line(nursery: Nursery, tmp_path: Path) -> None:
    output = tmp_path / "idpd.stderr"
    pid = nursery.spawn("idpd", tmp_path / "none.toml", output=output)
    assert nursery.wait(pid, 20) == 1
    assert nursery.status(pid) == 1
    assert (
        output.read_text()
        == f"idpd: {tmp_path}/none.toml: cannot read: No such file or directory\n"
    )


def test_a_namespace_that_is_not_there(nursery: Nursery, tmp_path: Path) -> None:
    output = tmp_path / "idpd.stderr"
    gone = str(tmp_path / "gone")
    pid = nursery.spawn("idpd", tmp_path / "none.toml", namespace=gone, output=output)
    assert nursery.wait(pid, 20) == 1
    assert "network namespace" in output.read_text()


def test_an_output_that_cannot_be_written(nursery: Nursery, tmp_path: Path) -> None:
    with pytest.raises(NurseryError, match="No such file"):
        nursery.spawn("idpd", tmp_path / "none.toml", output=tmp_path / "no" / "file")
    pid = nursery.spawn("miked", tmp_path / "none.toml", output=tmp_path / "out")
    assert nursery.wait(pid, 20) == 1


def test_a_nursery_that_was_killed_is_one_line(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path / "nursery.stderr")
    nursery.process.send_signal(signal.SIGKILL)
    nursery.process.wait(10)
    with pytest.raises(NurseryError, match="the nursery has ended"):
        nursery.spawn("idpd", tmp_path / "none.toml", output=tmp_path / "out")
    nursery.close()
    nursery.close()


def test_the_nursery_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    nursery = Nursery(tmp_path / "nursery.stderr")
    pid = nursery.spawn("idpd", tmp_path / "none.toml", output=tmp_path / "out")
    assert nursery.wait(pid, 20) == 1
    assert nursery.process.stdin is not None
    nursery.process.stdin.close()
    wait_until(lambda: nursery.process.poll() == 0, 20, "the nursery has ended")
    nursery.close()

"""What ended between look-up and use is named; the kernel's bare "No such process" goes nowhere."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from experiments.idpsteps import transmitted_bytes
from protocol.daemon.nursery import Nursery, NurseryError
from testbed.attacker.evidence import kernel_state, resident_kib, usage
from testbed.cpu import processor_ns
from testbed.device import NurseryChild
from testbed.errors import ProcessGoneError, TestbedError, naming_the_gone, one_line
from testbed.moments import MomentWatch
from testbed.namespaces import NetNamespace
from testbed.network import Network
from testbed.processes import OwnedProcess, ProcessTable
from testbed.redstreams import Part
from testbed.runs import new_run_id
from testbed.sabotage import Sabotage

SLEEP = ["sleep", "600"]


@pytest.fixture
def gone() -> int:
    """Return the id of a process that has ended and was reaped."""
    with subprocess.Popen(["true"]) as process:
        process.wait()
        return process.pid


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ProcessTable]:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))
    table = ProcessTable(new_run_id())
    yield table
    table.stop(grace_s=0.1)


class Late:
    """A nursery that has reaped its daemon and has not said so yet; `knows`: it will."""

    def __init__(self, *, knows: bool = True) -> None:
        self.knows = knows
        self.told = False

    def status(self, _pid: int) -> int | None:
        return -signal.SIGKILL if self.told else None

    def wait(self, _pid: int, _timeout_s: float) -> int:
        if not self.knows:
            raise NurseryError("the nursery gave no answer in time")
        self.told = True
        return -signal.SIGKILL


def child(pid: int, **options: bool) -> NurseryChild:
    return NurseryChild(cast("Nursery", Late(**options)), pid)


def test_a_daemon_that_the_nursery_has_reaped_but_not_reported_is_killed_without_a_word(
    table: ProcessTable, tmp_path: Path, gone: int
) -> None:
    # The fault campaign kills a TM at a moment of an epoch, then has the table forget it.
    table.adopt("d1/idpd", child(gone), output=tmp_path / "a")
    table.kill("d1/idpd")
    assert "d1/idpd" not in table
    table.adopt("d1/idpd", child(gone), output=tmp_path / "a")
    assert table.stop(["d1/idpd"]) == []


def test_a_real_nursery_reaps_before_it_reports_and_nothing_is_raised(tmp_path: Path) -> None:
    """Signalled until its end is told, each of these meets that moment nearly always."""
    with Nursery(tmp_path / "errors") as nursery:
        for _ in range(10):
            pid = nursery.spawn("idpd", tmp_path / "none.toml", output=tmp_path / "out")
            daemon = NurseryChild(nursery, pid)
            while daemon.poll() is None:
                daemon.terminate()
            daemon.kill_all()


def test_a_daemon_that_was_killed_and_does_not_end_is_an_error_of_ours(gone: int) -> None:
    with pytest.raises(TestbedError, match=f"process {gone} was killed and has not ended"):
        child(gone, knows=False).kill_all()


def test_a_signal_to_what_has_ended_names_it(
    table: ProcessTable, tmp_path: Path, gone: int
) -> None:
    process = table.start("d3/miked", SLEEP, output=tmp_path / "a")
    process.signal(signal.SIGSTOP)
    process.signal(signal.SIGKILL)
    process.handle.wait(10)
    with pytest.raises(ProcessGoneError, match=r"d3/miked is gone: cannot send it SIGCONT.*-9"):
        process.signal(signal.SIGCONT)
    unreported = OwnedProcess("d4/idpd", child(gone), tmp_path / "b")
    with pytest.raises(ProcessGoneError, match="d4/idpd is gone: cannot send it SIGSTOP"):
        unreported.signal(signal.SIGSTOP)


def test_a_process_that_is_not_in_the_table_is_named(table: ProcessTable) -> None:
    for use in (table.__getitem__, table.kill):
        with pytest.raises(ProcessGoneError, match="d3/miked is gone"):
            use("d3/miked")


def test_a_stream_that_has_ended_is_named(table: ProcessTable, tmp_path: Path, gone: int) -> None:
    part = Part("c1", OwnedProcess("c1/receive1", child(gone), tmp_path / "out"), table)
    for use in (part.ask, lambda: part.pin(0)):
        with pytest.raises(ProcessGoneError, match="c1/receive1 is gone"):
            use()


def test_what_is_read_of_a_process_that_has_ended_names_it(gone: int) -> None:
    for read in (
        lambda: processor_ns(gone),
        lambda: resident_kib(gone),
        lambda: usage({"idpd": gone}),
        lambda: transmitted_bytes(gone, "lo"),
        lambda: NetNamespace.of("d1", gone),
    ):
        with pytest.raises(ProcessGoneError, match=f"process {gone}.* is gone"):
            read()


def test_a_process_that_waits_to_be_reaped_has_no_memory() -> None:
    with subprocess.Popen(["true"]) as process:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        with pytest.raises(ProcessGoneError, match="its memory cannot be read"):
            resident_kib(process.pid)


def test_who_ends_while_its_file_is_read_is_named() -> None:
    # /proc/PID/... was opened in time; the read then says ESRCH.
    with pytest.raises(ProcessGoneError, match="d1/idpd is gone"), naming_the_gone("d1/idpd"):
        raise ProcessLookupError(3, "No such process")


def test_the_kernel_of_a_device_that_is_gone_is_an_error_of_ours(gone: int) -> None:
    network = cast("Network", SimpleNamespace(pid=lambda _: gone))
    for use in (
        lambda: kernel_state(gone),
        lambda: MomentWatch("lo", gone, "2001:db8:b::1"),
        lambda: Sabotage(network, None).remove_sa("d1"),  # type: ignore[arg-type]
    ):
        with pytest.raises(TestbedError, match=r"is it gone|Operation not permitted"):
            use()


def test_an_error_of_the_system_says_what_raised_it() -> None:
    def fail(_pid: int) -> None:
        raise bare

    bare = ProcessLookupError(3, "No such process")
    assert one_line(bare) == "No such process"
    with pytest.raises(ProcessLookupError) as caught:
        NurseryChild(cast("Nursery", SimpleNamespace(status=fail)), 1).poll()
    assert one_line(caught.value) == "No such process (raised in device.py, poll)"
    assert (
        one_line(OSError(2, "No such file or directory", "/x")) == "No such file or directory: /x"
    )
    assert one_line(TestbedError("two\nlines")) == "two lines"

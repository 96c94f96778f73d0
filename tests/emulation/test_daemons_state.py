"""What real daemons remember: kill -9, a full disk, spoiled files, a clock set back."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.devices import JOIN_S, Device, Lan
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    lan = Lan(tmp_path, 1)
    (device,) = lan.devices
    state = tmp_path / "state"
    state.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(state)], check=True)
    device.write_config(lan.coalition, {"state": {"directory": str(state / "d1")}})
    try:
        with lan:
            yield device
    finally:
        subprocess.run(["umount", "--lazy", str(state)], check=True)


def number_of_the_epoch(device: Device) -> int:
    epoch = wait_until(
        lambda: device.ask("miked", "status")["epoch"], JOIN_S, "an epoch", accept=bool
    )
    return int(str(epoch).partition("-")[0])


def kill_both(device: Device) -> None:
    for process in device.processes.values():
        process.kill()
        process.wait(10)


def processor_s(device: Device) -> float:
    """Return the processor time that both daemons have used."""
    total = 0.0
    for daemon in ("idpd", "miked"):
        pid = device.ask(daemon, "status")["pid"]
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def test_numbers_and_start_up_time_stamps_grow_over_kill_and_stop(device: Device) -> None:
    numbers, startups = [0], [0]
    for crash in (True, False, True):
        device.launch_both()
        device.start()
        numbers.append(number_of_the_epoch(device))
        startups.append(device.ask("idpd", "status")["startup_wall_ns"])
        if crash:
            kill_both(device)
        else:
            device.stop()
            device.end()
    assert numbers == [0, 1, 1001, 1002], "a crash leaves a thousand out, an orderly stop none"
    assert startups == sorted(startups)


def test_a_full_disk_stops_nothing_and_costs_no_processor_time(device: Device) -> None:
    full = device.directory.parent / "state" / "filler"
    full.write_bytes(b"")
    with full.open("wb", buffering=0) as file:
        while True:
            try:
                file.write(bytes(4096))
            except OSError:
                break
    device.launch_both()
    device.start()
    assert number_of_the_epoch(device) == 1
    assert "state cannot be written" in wait_until(
        lambda: device.log("miked"), JOIN_S, "the log says so", accept=bool
    )
    before_s = processor_s(device)
    pauses = [device.ask("idpd", "status")["ok"] for _ in range(3)]
    quiet = subprocess.run(["sleep", "2"], check=True)  # two seconds in which nothing happens
    assert quiet.returncode == 0
    assert all(pauses)
    assert processor_s(device) - before_s < 1.0
    full.unlink()
    wait_until(
        lambda: device.log("miked"),
        JOIN_S,
        "the state is written after all",
        accept=lambda log: "the state is written again" in log,
    )
    kill_both(device)
    device.launch_both()
    device.start()
    assert number_of_the_epoch(device) > 1
    assert device.log("miked").count("state cannot be written") == 1


def test_one_spoiled_file_is_made_good_two_stop_the_daemon_with_one_line(device: Device) -> None:
    device.launch_both()
    device.start()
    number_of_the_epoch(device)
    kill_both(device)
    state = device.directory.parent / "state" / "d1"
    (state / "miked.state").write_bytes(b"")
    device.launch_both()
    device.start()
    assert number_of_the_epoch(device) == 1001
    assert "its copy is whole" in device.log("miked")
    kill_both(device)
    for name in ("miked.state", "miked.state.copy"):
        (state / name).write_bytes(b"junk")
    process = device.launch("miked")
    assert process.wait(JOIN_S) == 1
    (line,) = device.stderr("miked").splitlines()
    assert "spoiled" in line

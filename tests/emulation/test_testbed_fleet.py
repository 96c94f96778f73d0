"""The whole bench natively, real daemons and the memory backend; and the command line on it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.errors import DaemonDiedError, TestbedError
from testbed.fleet import Fleet, FleetOptions
from testbed.processes import last_line
from testbed.wait import wait_until
from topologies.families import star

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

FAST = {"hello_interval_ms": 300, "triggered_hello_spread_ms": 50}
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "runs"
    monkeypatch.setenv("TESTBED_RUN_BASE", str(base))
    return base


def options(**more: Any) -> FleetOptions:
    return FleetOptions(sa_backend="memory", idp=FAST, **more)


def test_join_leave_cut_and_handover(tmp_path: Path, private_registry: Path) -> None:
    keep = tmp_path / "kept"

    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with Fleet(star(3), options(keep=keep)) as fleet:
            fleet.start("d2")
            fleet.await_members(["d2"], deadline_s=WAIT_S)
            fleet.start("d1")
            fleet.await_members(["d1", "d2"], deadline_s=WAIT_S)
            fleet.handover("d1", deadline_s=WAIT_S)
            fleet.handover("d2", deadline_s=WAIT_S)
            fleet.events()
            trigger = time.time_ns() + 300_000_000
            fleet.start("d3", at_wall_ns=trigger)
            written = fleet.await_event(
                "t_written", fleet.devices, since_wall_ns=trigger, deadline_s=WAIT_S
            )
            seen["epochs"] = {event.fields["epoch"] for event in written.values()}
            epoch = fleet.await_members(fleet.devices, deadline_s=WAIT_S, tm="d2")
            seen["sad"] = fleet.sad_check(fleet.devices)
            seen["packet"] = fleet.packet_check(fleet.devices)
            started = fleet.await_event("t_hello", ["d3"], since_wall_ns=trigger, deadline_s=WAIT_S)
            seen["late_ms"] = (started["d3"].wall_ns - trigger) / 1e6
            seen["points"] = {event.point for event in fleet.events()}
            fleet.cut("d3")
            rest = ["d1", "d2"]
            assert fleet.await_members(rest, deadline_s=WAIT_S) != epoch
            fleet.heal("d3")
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            fleet.stop("d3")
            fleet.await_members(rest, deadline_s=WAIT_S)
            seen["parked"] = fleet.status("d3")["state"]
            seen["idle"] = fleet.idle()
            seen["kernel"] = fleet.kernel_events()
            seen["facts"] = fleet.facts
        return seen

    seen = session.call(inside)
    assert len(seen["epochs"]) == 1
    assert (seen["sad"].ok, seen["sad"].applicable) == (False, False)
    assert seen["sad"].epoch in seen["epochs"]
    assert seen["packet"].reason == "not applicable: memory backend"
    assert seen["late_ms"] >= 0
    assert {"t_hello", "t_detect", "t_mike_in", "t_key", "t_written"} <= seen["points"]
    assert seen["parked"] == "parked"
    assert 0 <= seen["idle"].minimum_percent <= 100
    assert seen["kernel"] == []
    assert seen["facts"]["network"]["xfrm_interface"] is False
    kept = {path.name for path in (keep / "d3").iterdir()}
    assert {"d3.toml", "idpd.trace.jsonl", "miked.trace.jsonl", "idpd.log"} <= kept
    secrets = [path for path in keep.rglob("*") if path.suffix in {".key", ".secret", ".sock"}]
    assert secrets == []
    assert list(private_registry.iterdir()) == []


def test_an_injected_offset_is_seen_and_its_sign_is_right() -> None:
    def inside() -> dict[str, Any]:
        shift = {"d2": 7_000, "d3": -3_000}
        with Fleet(star(3), options(injected_offset_us=shift)) as fleet:
            return dict(fleet.clock_offsets(samples=12))

    found = session.call(inside)
    for device, wanted_us in {"d1": 0, "d2": 7_000, "d3": -3_000}.items():
        offset = found[device]
        assert abs(offset.offset_ns - wanted_us * 1000) <= offset.bound_ns + 2000, device


def test_a_shifted_monitor_does_not_shift_the_others() -> None:
    def inside() -> dict[str, Any]:
        with Fleet(star(2), options(injected_offset_us={"d1": 4_000})) as fleet:
            return dict(fleet.clock_offsets(samples=12))

    found = session.call(inside)
    assert abs(found["d2"].offset_ns + 4_000_000) <= found["d2"].bound_ns + 2000
    assert abs(found["d1"].offset_ns) <= found["d1"].bound_ns + 2000


def test_a_daemon_that_dies_is_noticed_at_once_and_named() -> None:
    def inside() -> tuple[str, str, float]:
        with Fleet(star(2), options()) as fleet:
            fleet.start("d1")
            os.kill(fleet.processes["d2/miked"].pid, signal.SIGKILL)
            begin = time.monotonic()
            try:
                fleet.await_members(["d1", "d2"], deadline_s=WAIT_S)
            except DaemonDiedError as error:
                return error.name, str(error), time.monotonic() - begin
        return "", "", 0.0

    name, text, seconds = session.call(inside)
    assert name == "d2/miked"
    assert "killed by signal 9" in text
    assert seconds < 5


def test_kernel_sas_are_refused_where_there_are_none() -> None:
    def inside() -> str:
        try:
            with Fleet(star(1), FleetOptions()) as fleet:
                return f"xfrm interface: {fleet.network.has_xfrm}"
        except TestbedError as error:
            return str(error)

    text = session.call(inside)
    assert text == "xfrm interface: True" or "use --env vm, or --sa-backend memory" in text


def command(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "testbed.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=120)


def test_a_network_goes_up_is_asked_and_goes_down(private_registry: Path) -> None:
    try:
        up = command("up", "star(3)", "--devices", "2", "--sa-backend", "memory")
        assert up.returncode == 0, up.stderr

        def together() -> bool:
            answer = json.loads(command("status", "--json").stdout)
            members = [device["miked"]["members"] for device in answer["devices"].values()]
            return all(len(of_one) == 2 for of_one in members)

        wait_until(together, WAIT_S, "the two devices do not find each other")
        table = command("status").stdout
        assert "running/tm" in table
        assert "running/member" in table
        done = command("exec", "d2", "sh", "-c", "echo red; echo black >&2; exit 4")
        assert (done.returncode, done.stdout, done.stderr) == (4, "red\n", "black\n")
        assert "no node 'd9'" in command("exec", "d9", "true").stderr
        assert command("do", "cut", "d2").returncode == 0
        assert command("do", "heal", "d2").returncode == 0
        assert "still running" in command("clean").stdout
    finally:
        down = command("down")
    assert down.returncode == 0
    assert down.stdout.rstrip().endswith(": down")
    assert list(private_registry.iterdir()) == []


def test_ctrl_c_in_the_foreground_cleans_up(tmp_path: Path, private_registry: Path) -> None:
    log = tmp_path / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "testbed.cli", "up", "star(2)"),
                *("--sa-backend", "memory", "--foreground"),
            ],
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    wait_until(
        lambda: list(private_registry.glob("*/mailbox/ready")),
        WAIT_S,
        lambda: f"it does not come up: {last_line(log)}",
    )
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    assert process.wait(30) == 130
    assert list(private_registry.iterdir()) == []
    assert "Traceback" not in log.read_text()


def test_devices_that_learn_each_others_certificates() -> None:
    def inside() -> dict[str, Any]:
        with Fleet(star(4), options(pre_deployed=False)) as fleet:
            for device in fleet.devices:
                fleet.start(device)
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)

            def learned() -> list[int]:
                return [fleet.status(name)["trust"]["learned"] for name in fleet.devices]

            wait_until(lambda: learned() == [3] * 4, WAIT_S, lambda: f"learned: {learned()}")
            return {}

    session.call(inside)

"""What a real idpd or miked recorded, its engine says again in the simulator."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed.sim.recorded import replay
from tests.support.devices import JOIN_S, Device, Lan
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

FAST = {"idp": {"hello_interval_ms": 300, "triggered_hello_spread_ms": 100}}


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    with Lan(tmp_path, 3) as made:
        for device in made.devices:
            device.write_config(made.coalition, FAST)
        yield made


def members_at(device: Device, count: int) -> None:
    """Wait until idpd of this device sends with an epoch of so many members."""
    wait_until(
        lambda: [device.ask("miked", "status"), device.ask("idpd", "status")],
        JOIN_S,
        f"{device.name} is in a group of {count}",
        accept=lambda seen: (
            len(seen[0]["members"]) == count
            and seen[0]["pending"] is None
            and seen[0]["epoch"] == seen[1]["active_epoch"]
        ),
    )


def check_mike(device: Device) -> None:
    """MIKE's recording gives the same epochs with the same secrets, and others with others."""
    (trace,) = device.run_directory.glob("*miked*.jsonl")
    secrets = trace.with_name("miked.secrets")
    assert secrets.stat().st_mode & 0o777 == 0o600
    said = [json.loads(line) for line in trace.read_text().splitlines()]
    assert len([line for line in said if line["point"] == "t_key"]) >= 3

    played = replay(device.config, trace)

    assert (played.difference, played.skipped) == (None, ())
    assert played.points > 10
    # No secret is in the trace, and with others it is another one.
    drawn = [line.removeprefix("draw ") for line in secrets.read_text().splitlines()]
    text = trace.read_text()
    assert not any(draw in text for draw in drawn if len(draw) == 64)
    others = ["11" * 32 if len(draw) == 64 else draw for draw in drawn]
    secrets.write_text("".join(f"draw {draw}\n" for draw in others))
    assert replay(device.config, trace).difference is not None


def test_a_recording_replays_to_the_same_points(lan: Lan) -> None:
    first = lan.devices[0]
    for daemon in ("idpd", "miked"):
        first.launch(daemon, "--record-datagrams", "--record-secrets")
    for daemon in ("idpd", "miked"):
        first.wait_ready(daemon)
    for device in lan.devices[1:]:
        device.launch_both()
    for device in lan.devices:
        device.start()
    members_at(first, 3)
    for daemon in ("idpd", "miked"):
        lan.devices[2].processes[daemon].send_signal(signal.SIGKILL)
    members_at(first, 2)
    for daemon in ("idpd", "miked"):
        first.ask(daemon, "stop")
        first.ask(daemon, "flush")
    (trace,) = first.run_directory.glob("*idpd*.jsonl")
    check_mike(first)

    played = replay(first.config, trace)

    assert played.difference is None
    assert played.skipped == ()
    assert played.events > 30
    points = [json.loads(line) for line in trace.read_text().splitlines()]
    seen = {(line["point"], line.get("kind")) for line in points}
    assert {("t_detect", "join"), ("t_detect", "leave"), ("t_active", None)} <= seen
    assert played.points >= 10

    # A recording that was changed does not.
    lines = [{**line, "name": "dx"} if line["point"] == "t_detect" else line for line in points]
    changed = trace.with_name("changed.jsonl")
    changed.write_text("".join(json.dumps(line) + "\n" for line in lines))
    text = replay(first.config, changed).difference
    assert text is not None
    assert "name=dx" in text
    lost = [line for line in points if line.get("type") != "TimerExpired"]
    changed.write_text("".join(json.dumps(line) + "\n" for line in lost))
    assert replay(first.config, changed).difference is not None

"""Real daemons, memory backend: five devices that start at once share epochs (MIKE-10)."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.support.devices import JOIN_S, Device, Lan
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

IDP = {"hello_interval_ms": 300, "triggered_hello_spread_ms": 100}

PATIENT = {"founding_delay_ms": 20_000, "tm_silence_ms": 20_000}
"""Nobody founds a group, or elects a TM, while the TM is not scheduled."""


def wait_for_group(devices: list[Device]) -> str:
    """Wait until all these devices are one group; return its epoch."""
    addresses = sorted(str(device.address) for device in devices)

    def accept(told: list[dict[str, Any]]) -> bool:
        return (
            told[0]["epoch"] is not None
            and len({one["epoch"] for one in told}) == 1
            and all(sorted(one["members"]) == addresses for one in told)
        )

    told = wait_until(
        lambda: [device.ask("miked", "status") for device in devices],
        JOIN_S,
        f"{len(devices)} devices are one group",
        accept=accept,
    )
    return str(told[0]["epoch"])


def number(epoch: str) -> int:
    return int(epoch.partition("-")[0])


@pytest.mark.parametrize("mode", ["ka", "kd"])
def test_five_devices_whose_joins_wait_for_the_tm_take_one_epoch(tmp_path: Path, mode: str) -> None:
    """The TM's process is stopped until all have asked: that many JOINs are in its socket."""
    lan = Lan(tmp_path, 7)
    for device in lan.devices:
        device.write_config(lan.coalition, {"idp": IDP, "mike": {"mode": mode, **PATIENT}})
    old, new = lan.devices[:2], lan.devices[2:]
    with lan:
        for device in lan.devices:
            device.launch_both()
        old[0].ask("miked", "start", at_wall_ns=None)
        old[0].ask("idpd", "start", at_wall_ns=None)
        old[1].start()
        before = wait_for_group(old)
        (tm,) = [d for d in old if d.ask("miked", "status")["role"] == "tm"]
        process = tm.processes["miked"]
        os.kill(process.pid, signal.SIGSTOP)
        try:
            for device in new:
                device.start()
            for device in new:
                wait_until(
                    lambda device=device: device.ask("miked", "status")["joining"],
                    JOIN_S,
                    f"{device.name} asks for admission",
                )
        finally:
            os.kill(process.pid, signal.SIGCONT)
        assert number(wait_for_group(lan.devices)) == number(before) + 1

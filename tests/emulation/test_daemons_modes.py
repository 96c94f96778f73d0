"""Real daemons, memory backend: key distribution mode, and the switch to it and back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.devices import JOIN_S, Device, Lan
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

SETTINGS: dict[str, dict[str, Any]] = {
    "idp": {"hello_interval_ms": 300, "triggered_hello_spread_ms": 100},
    "mike": {"mode": "auto", "kd_members_min": 4, "ka_members_max": 2},
}


def wait_for_mode(devices: list[Device], mode: str) -> str:
    """Wait until all these devices are one group in this mode and IDP sends with its key."""
    addresses = sorted(str(device.address) for device in devices)

    def seen() -> list[dict[str, Any]]:
        told = []
        for device in devices:
            idp, mike = device.ask("idpd", "status"), device.ask("miked", "status")
            active = idp["active_epoch"]
            told.append({name: mike[name] for name in ("epoch", "mode", "members", "tm")})
            told[-1]["active"] = active
        return told

    def accept(told: list[dict[str, Any]]) -> bool:
        return (
            len({(one["epoch"], one["active"], one["tm"]) for one in told}) == 1
            and told[0]["epoch"] is not None
            and told[0]["epoch"] == told[0]["active"]
            and all(one["mode"] == mode for one in told)
            and all(sorted(one["members"]) == addresses for one in told)
        )

    found = wait_until(seen, JOIN_S, f"all are one group in mode {mode}", accept=accept)
    return str(found[0]["epoch"])


def test_a_group_is_switched_as_it_grows_and_shrinks(tmp_path: Path) -> None:
    lan = Lan(tmp_path, 5)
    for device in lan.devices:
        device.write_config(lan.coalition, SETTINGS)
    with lan:
        for device in lan.devices:
            device.launch_both()
        for count, device in enumerate(lan.devices[:4], 1):
            device.start()
            wait_for_mode(lan.devices[:count], "ka" if count < 4 else "kd")
        lan.devices[4].start()
        wait_for_mode(lan.devices, "kd")
        # The TM goes: its successor distributes keys of its own.
        tm = next(d for d in lan.devices if d.ask("miked", "status")["role"] == "tm")
        tm.stop()
        rest = [device for device in lan.devices if device is not tm]
        wait_for_mode(rest, "kd")
        while len(rest) > 2:
            rest.pop().stop()
            wait_for_mode(rest, "kd" if len(rest) > 2 else "ka")
        for device in rest:
            counters = device.ask("miked", "status")["counters"]
            assert "daemon.internal_error" not in counters

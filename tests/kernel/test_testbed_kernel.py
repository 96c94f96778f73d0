"""The bench on a kernel with ESP: SADs read back, red packets through IPsec, notifications."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.errors import TestbedError
from testbed.fleet import Fleet, FleetOptions
from testbed.network import XFRM
from testbed.preflight import State, check_esp, check_xfrm_interface
from topologies.families import star

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

WAIT_S = 120.0
DELAYS = {"activation_delay_ms": 200, "deactivation_delay_ms": 500}


@pytest.fixture(autouse=True, scope="module")
def kernel_with_esp() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    for check in (check_esp(), check_xfrm_interface()):
        if check.state is not State.OK:
            pytest.skip(f"{check.name}: {check.detail}")


@pytest.fixture(autouse=True)
def private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


@pytest.mark.parametrize(("backend", "mode"), [("netlink", "per-sender"), ("command", "paper")])
def test_three_devices_share_sas_and_hear_each_other(backend: str, mode: str) -> None:
    def inside() -> dict[str, Any]:
        options = FleetOptions(sa_backend=backend, sa_mode=mode, ipsec=DELAYS)
        seen: dict[str, Any] = {}
        with Fleet(star(3), options) as fleet:
            for count, device in enumerate(fleet.devices, 1):
                fleet.start(device)
                epoch = fleet.await_members(fleet.devices[:count], deadline_s=WAIT_S)
            seen["epoch"] = epoch
            seen["sad"] = fleet.sad_check(fleet.devices, WAIT_S)
            seen["packet"] = fleet.packet_check(fleet.devices, deadline_s=10)
            seen["kernel"] = fleet.kernel_events()
            fleet.cut("d3")
            seen["after cut"] = fleet.packet_check(fleet.devices, ["d1"], deadline_s=1)
            for device in fleet.devices:
                fleet.stop(device)
            seen["left"] = [fleet.sa_count(device) for device in fleet.devices]
        return seen

    seen = session.call(inside)
    sad, packet = seen["sad"], seen["packet"]
    assert sad.ok, sad.reason
    assert sad.epoch == seen["epoch"]
    assert len(set(sad.digests.values())) == 1
    assert len(set(sad.spis.values())) == 1
    assert packet.ok, packet.reason
    assert packet.applicable
    assert all(time is not None for times in packet.delivered.values() for time in times.values())
    new = {(event.device, event.spi) for event in seen["kernel"] if event.kind == "new"}
    assert {(device, spi) for device, spis in sad.spis.items() for spi in spis} <= new
    assert not any(event.kind == "lost" for event in seen["kernel"])
    assert seen["after cut"].delivered["d1"]["d2"] is not None
    assert seen["after cut"].delivered["d1"]["d3"] is None
    assert seen["left"] == [0, 0, 0]


def test_a_foreign_sa_makes_the_check_fail() -> None:
    def inside() -> Any:
        with Fleet(star(2), FleetOptions(ipsec=DELAYS)) as fleet:
            for count, device in enumerate(fleet.devices, 1):
                fleet.start(device)
                fleet.await_members(fleet.devices[:count], deadline_s=WAIT_S)
            if not fleet.sad_check(fleet.devices, WAIT_S).ok:
                raise TestbedError("the SADs do not agree to begin with")
            import subprocess

            key = "0x" + "11" * 20
            with fleet.network.namespace("d2").entered():
                subprocess.run(
                    [
                        *("ip", "xfrm", "state", "add", "src", "2001:db8:b::9", "dst", "ff0e::1"),
                        *("proto", "esp", "spi", "0x4711", "mode", "tunnel"),
                        *("aead", "rfc4106(gcm(aes))", key, "128"),
                    ],
                    check=True,
                )
            return fleet.sad_check(fleet.devices, 0.5)

    found = session.call(inside)
    assert not found.ok
    assert found.applicable
    assert "d2 and d1 differ in SPIs: 0x4711" in found.reason


def test_every_device_has_its_xfrm_interface() -> None:
    def inside() -> tuple[bool, str]:
        import subprocess

        with Fleet(star(1), FleetOptions()) as fleet, fleet.network.namespace("d1").entered():
            show = ["ip", "-d", "link", "show", XFRM]
            text = subprocess.run(show, capture_output=True, text=True, check=True).stdout
            return fleet.network.has_xfrm, text

    has, text = session.call(inside)
    assert has
    assert "mtu 1380" in text
    assert "MULTICAST" in text
    assert "if_id 0x42" in text

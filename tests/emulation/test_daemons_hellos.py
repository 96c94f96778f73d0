"""Real idpd processes in namespaces, settled: their hellos are light, and nobody is missed."""

from __future__ import annotations

import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.idp.lighthello import HEADER, LightHello
from tests.support.devices import Device, Lan
from tests.support.waiting import wait_until

pytestmark = pytest.mark.emulation

INTERVAL_MS = 200
SETTINGS: dict[str, dict[str, Any]] = {
    "idp": {
        "hello_interval_ms": INTERVAL_MS,
        "dead_factor": 10,  # on a busy machine nobody is silent for two seconds
        "jitter_ms": 10,
        "triggered_hello_spread_ms": 50,
        "full_hello_every": 16,
    }
}


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    made = Lan(tmp_path, 3)
    for device in made.devices:
        device.write_config(made.coalition, SETTINGS)
    with made:
        for device in made.devices:
            device.launch_both()
            device.ask("idpd", "start", at_wall_ns=None)
        yield made


def counters(device: Device) -> dict[str, int]:
    found: dict[str, int] = device.ask("idpd", "status")["counters"]
    return found


def light_heard(device: Device) -> int:
    return counters(device).get("idp.hello_light", 0)


def up(device: Device) -> list[str]:
    peers = device.ask("idpd", "status")["peers"]
    return sorted(peer["name"] for peer in peers if peer["state"] == "up")


def settle(lan: Lan, hellos: int = 40) -> None:
    for device in lan.devices:
        before = light_heard(device)
        wait_until(
            lambda device=device, before=before: light_heard(device) >= before + hellos,
            30.0,
            f"{device.name} has heard light hellos",
        )


def test_settled_devices_say_light_hellos_and_stay_up(lan: Lan) -> None:
    settle(lan)
    for device in lan.devices:
        found = counters(device)
        assert found["idp.hello_light"] > 2 * found["idp.hello_signed"]
        assert not [rule for rule in found if rule.startswith(("AUTH-", "IDP-34"))], found
        assert len(up(device)) == 2
        kinds = [line["kind"] for line in device.trace("idpd") if line["point"] == "t_detect"]
        assert kinds == ["join", "join"]


def test_a_killed_device_is_lost_and_one_that_stood_still_signs_again(lan: Lan) -> None:
    settle(lan, 10)
    first, second, third = lan.devices
    third.processes["idpd"].send_signal(signal.SIGKILL)
    third.processes["idpd"].wait(10)
    wait_until(lambda: up(first) == ["d2"], 10.0, "d1 has lost d3")
    second.processes["idpd"].send_signal(signal.SIGSTOP)
    wait_until(lambda: up(first) == [], 10.0, "d1 has lost d2")
    second.processes["idpd"].send_signal(signal.SIGCONT)
    wait_until(lambda: up(first) == ["d2"], 10.0, "d1 has d2 again")
    kinds = [line["kind"] for line in first.trace("idpd") if line["point"] == "t_detect"]
    assert kinds[-1] == "restore"


def test_forged_light_hellos_change_nothing(lan: Lan) -> None:
    settle(lan, 10)
    first, second, third = lan.devices
    before = counters(first).get("IDP-34", 0)
    genuine = _overhear(third, second)
    forger = second.inside(lambda: socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
    with forger:
        # From its own address in its own name: only the value is invented.
        for ahead in range(1, 6):
            forged = LightHello(
                genuine.fingerprint,
                genuine.startup_wall_ns,
                genuine.chain,
                genuine.index + ahead,
                bytes(32),
            )
            forger.sendto(forged.encode(), (str(first.address), 47500))
    wait_until(lambda: counters(first).get("IDP-34", 0) > before, 10.0, "forgeries are counted")
    settle(lan, 10)
    assert up(first) == ["d2", "d3"]


def _overhear(device: Device, of: Device) -> LightHello:
    """Return the next light hello of a device, heard in another device's namespace."""
    sniffer = device.inside(
        lambda: socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(0x86DD))
    )
    found: list[LightHello] = []

    def heard() -> bool:
        frame = sniffer.recv(2048)
        place = frame.find(HEADER)
        if place >= 0 and frame[8:24] == of.address.packed and len(frame) == place + 68:
            found.append(LightHello.decode(frame[place:]))
        return bool(found)

    with sniffer:
        sniffer.settimeout(5.0)
        wait_until(heard, 15.0, "a light hello is on the wire")
    return found[0]

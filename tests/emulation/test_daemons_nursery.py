"""Daemons from a nursery behave as those started one by one, and end with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from protocol.daemon.control import ControlError
from protocol.daemon.nursery import Nursery
from tests.support.devices import Device, Lan
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    with Lan(tmp_path, 2) as made:
        yield made


def spawn(nursery: Nursery, device: Device, daemon: str) -> int:
    return nursery.spawn(
        daemon,
        device.config,
        namespace=f"/run/netns/{device.namespace}",
        output=device.directory / f"{daemon}.stderr",
    )


def test_devices_from_a_nursery_agree_and_end_with_it(lan: Lan, tmp_path: Path) -> None:
    with Nursery(tmp_path / "nursery.stderr") as nursery:
        pids = {
            (device.name, daemon): spawn(nursery, device, daemon)
            for device in lan.devices
            for daemon in ("miked", "idpd")
        }
        for device in lan.devices:
            for daemon in ("miked", "idpd"):
                wait_until(
                    lambda device=device, daemon=daemon: device.ask(daemon, "status")["ok"],
                    20.0,
                    f"{device.name} {daemon} answers",
                    tolerate=(ControlError,),
                )
            device.start()
        wait_until(
            lambda: {device.ask("idpd", "status")["active_epoch"] for device in lan.devices},
            20.0,
            "one epoch",
            accept=lambda epochs: len(epochs) == 1 and None not in epochs,
        )
        wait_until(
            lambda: [len(device.ask("miked", "status")["members"]) for device in lan.devices],
            20.0,
            "both are members",
            accept=lambda sizes: sizes == [2, 2],
        )
        for device in lan.devices:
            assert device.ask("idpd", "status")["pid"] == pids[(device.name, "idpd")]
        victim = pids[("d2", "idpd")]
        os.kill(victim, signal.SIGKILL)
        assert nursery.wait(victim, 10) == -signal.SIGKILL
        stopped = pids[("d2", "miked")]
        os.kill(stopped, signal.SIGTERM)
        assert nursery.wait(stopped, 10) == 0
        assert nursery.status(pids[("d1", "idpd")]) is None
    for device in lan.devices[:1]:
        assert not list(device.run_directory.glob("*.sock"))
    for pid in pids.values():
        assert not Path(f"/proc/{pid}").exists()


def test_daemons_stop_in_order_when_the_nursery_is_killed(lan: Lan, tmp_path: Path) -> None:
    device = lan.devices[0]
    with Nursery(tmp_path / "nursery.stderr") as nursery:
        spawn(nursery, device, "idpd")
        wait_until(
            lambda: device.ask("idpd", "status")["ok"], 20.0, "it runs", tolerate=(ControlError,)
        )
        nursery.process.send_signal(signal.SIGKILL)
        nursery.process.wait(10)
        socket_file = device.run_directory / "idpd.sock"
        wait_until(lambda: not socket_file.exists(), 10.0, "the daemon stopped in order")

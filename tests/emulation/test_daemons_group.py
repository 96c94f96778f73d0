"""Real daemons in namespaces, memory backend: they meet, agree, lose one another, and leave."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from protocol.daemon.control import ControlError
from tests.support.devices import JOIN_S, Device, Lan
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]

FAST = {"idp": {"hello_interval_ms": 300, "triggered_hello_spread_ms": 100}}


@pytest.fixture
def make_lan(tmp_path: Path) -> Iterator[Callable[[int], Lan]]:
    lans: list[Lan] = []

    def make(count: int) -> Lan:
        lan = Lan(tmp_path, count)
        for device in lan.devices:
            device.write_config(lan.coalition, FAST)
        lans.append(lan)
        return lan.__enter__()

    yield make
    for lan in lans:
        lan.__exit__(None)


def views(devices: list[Device]) -> list[dict[str, Any]]:
    """Return what each device's two daemons say that must be equal on all."""
    result = []
    for device in devices:
        idp, mike = device.ask("idpd", "status"), device.ask("miked", "status")
        result.append(
            {
                "device": device.name,
                "epochs": {idp["epoch"], idp["active_epoch"], mike["epoch"]},
                "tm": mike["tm"],
                "members": mike["members"],
                "peers": sorted(p["address"] for p in idp["peers"] if p["state"] == "up"),
            }
        )
    return result


def agree(devices: list[Device]) -> Callable[[list[dict[str, Any]]], bool]:
    """Return a check: one epoch everywhere, these devices its members, each sees the others."""
    addresses = sorted(str(device.address) for device in devices)

    def check(seen: list[dict[str, Any]]) -> bool:
        epochs = set().union(*(view["epochs"] for view in seen))
        return (
            len(epochs) == 1
            and None not in epochs
            and len({view["tm"] for view in seen}) == 1
            and all(sorted(view["members"]) == addresses for view in seen)
            and all(len(view["peers"]) == len(devices) - 1 for view in seen)
        )

    return check


def wait_for_agreement(devices: list[Device]) -> str:
    """Wait for one epoch on all these devices; return it."""
    seen = wait_until(
        lambda: views(devices), JOIN_S, "all agree on one epoch", accept=agree(devices)
    )
    return str(next(iter(seen[0]["epochs"])))


def launch_and_start(devices: list[Device]) -> str:
    for device in devices:
        device.launch_both()
    for device in devices:
        device.start()
    return wait_for_agreement(devices)


def memberships(device: Device) -> str:
    """Return the multicast groups of the black interface."""
    done = subprocess.run(
        ["ip", "-n", device.namespace, "-6", "maddr", "show", "dev", "black0"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_two_devices_meet_and_a_third_joins(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(3)
    first, second, third = lan.devices
    epoch = launch_and_start([first, second])
    third.launch_both()
    third.start()
    assert wait_for_agreement(lan.devices) != epoch
    for device in lan.devices:
        points = {line["point"] for line in device.trace("idpd")}
        assert {"t_start", "t_hello", "t_detect", "t_signal", "t_status", "t_written"} <= points
        assert "t_active" in points
        assert {"t_mike_in", "t_key"} <= {line["point"] for line in device.trace("miked")}
        status = device.ask("idpd", "status")
        assert status["backend"] == "memory"
        assert "daemon.internal_error" not in status["counters"]


def test_source_specific_groups_are_joined_for_each_device_with_a_certificate(
    tmp_path: Path,
) -> None:
    groups = {"idp": "ff3e::8000:1d0", "mike": "ff3e::8000:319e", "ipsec": "ff3e::8000:1"}
    lan = Lan(tmp_path, 3)
    for device in lan.devices:
        settings: dict[str, dict[str, Any]] = {
            name: {"group": group} for name, group in groups.items()
        }
        settings["idp"].update(FAST["idp"])
        device.write_config(lan.coalition, settings)
    with lan:
        launch_and_start(lan.devices)
        first, *others = lan.devices
        wanted = {
            (IPv6Address(group).exploded.replace(":", ""), other.address.exploded.replace(":", ""))
            for group in groups.values()
            for other in others
        }
        assert source_filters(first) == wanted
        first.stop()
        assert source_filters(first) == set()


def source_filters(device: Device) -> set[tuple[str, str]]:
    """Return group and source of what the black interface takes in source by source."""
    command = ["ip", "netns", "exec", device.namespace, "cat", "/proc/net/mcfilter6"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    rows = [line.split() for line in done.stdout.splitlines()[1:]]
    return {(row[2].removeprefix("0x"), row[3].removeprefix("0x")) for row in rows if row[4] != "0"}


def test_a_killed_device_is_noticed_and_may_come_back(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(3)
    first, second, third = lan.devices
    launch_and_start(lan.devices)
    for process in third.processes.values():
        process.send_signal(signal.SIGKILL)
        process.wait(10)
    wait_for_agreement([first, second])
    leftover = third.run_directory / "keys" / "1-0000000000000000"
    leftover.write_bytes(b"k" * 32)
    third.launch_both()
    assert not leftover.exists()
    assert "keys of a killed daemon" in _flushed_log(third, "miked")
    third.start()
    wait_for_agreement(lan.devices)


def _flushed_log(device: Device, daemon: str) -> str:
    device.ask(daemon, "flush")
    return device.log(daemon)


def test_a_cut_device_is_noticed_and_heals(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(3)
    first, second, third = lan.devices
    launch_and_start(lan.devices)
    lan.cut(third)
    wait_for_agreement([first, second])
    assert not third.ask("idpd", "status")["link_up"]
    lan.cut(third, up=True)
    wait_for_agreement(lan.devices)
    assert third.ask("idpd", "status")["link_up"]


def test_stop_leaves_nothing_behind(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(2)
    first, second = lan.devices
    launch_and_start(lan.devices)
    assert "ff0e::1d0" in memberships(second)
    assert "ff0e::319e" in memberships(second)
    assert "ff0e::1\n" in memberships(second)
    second.stop()
    for daemon in ("idpd", "miked"):
        status = second.ask(daemon, "status")
        assert status["state"] == "parked"
        assert status["epoch"] is None
    assert second.ask("idpd", "status")["sas"] == []
    assert list((second.run_directory / "keys").iterdir()) == []
    assert "ff0e::" not in memberships(second)
    wait_for_agreement([first])
    second.start()
    wait_for_agreement(lan.devices)
    for device in lan.devices:
        assert device.end() == {"idpd": 0, "miked": 0}
        assert not list(device.run_directory.glob("*.sock"))
        assert list((device.run_directory / "keys").iterdir()) == []
        assert device.stderr("idpd") == device.stderr("miked") == ""


def test_a_device_that_dies_while_starting_with_others(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(2)
    first, second = lan.devices
    for device in lan.devices:
        device.launch_both()
    first.start()
    second.ask("miked", "start", at_wall_ns=None)
    second.ask("idpd", "start", at_wall_ns=None)
    second.processes["miked"].send_signal(signal.SIGKILL)
    second.processes["miked"].wait(10)
    second.launch("miked")
    second.wait_ready("miked")
    second.ask("miked", "start", at_wall_ns=None)
    wait_for_agreement(lan.devices)


def test_keys_are_in_no_output(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(2)
    for device in lan.devices:
        for daemon in ("idpd", "miked"):
            device.launch(daemon, "--debug", "--record-datagrams")
        for daemon in ("idpd", "miked"):
            device.wait_ready(daemon)
    for device in lan.devices:
        device.start()
    wait_for_agreement(lan.devices)
    secrets: set[bytes] = set()
    outputs: list[bytes] = []
    for device in lan.devices:
        secrets |= {path.read_bytes() for path in (device.run_directory / "keys").iterdir()}
        local = lan.coalition.files(device.name).local_secret.read_text().strip()
        secrets.add(bytes.fromhex(local))
        for daemon in ("idpd", "miked"):
            outputs.append(repr(device.ask(daemon, "status")).encode())
            outputs.append(repr(device.ask(daemon, "flush")).encode())
    for device in lan.devices:
        device.end()
        outputs += [path.read_bytes() for path in device.run_directory.iterdir() if path.is_file()]
        outputs += [path.read_bytes() for path in device.directory.glob("*.stderr")]
    assert len(secrets) >= 3
    everything = b"\n".join(outputs).lower()
    assert b"datagramreceived" in everything
    for secret in secrets:
        assert len(secret) == 32
        for piece in (secret[:16], secret[16:]):
            shapes = (piece, piece.hex().encode(), repr(piece).encode()[2:-1].lower())
            assert not any(shape in everything for shape in shapes)


def test_a_member_renews_its_share_on_demand(make_lan: Callable[[int], Lan]) -> None:
    lan = make_lan(2)
    first, second = lan.devices
    second.launch_both()
    with pytest.raises(ControlError, match="in no group"):
        second.ask("miked", "rekey")
    first.launch_both()
    first.start()
    second.start()
    epoch = wait_for_agreement(lan.devices)
    before = {device.name: device.ask("miked", "status")["rekey"] for device in lan.devices}
    member = next(d for d in lan.devices if d.ask("miked", "status")["role"] == "member")

    def asked() -> str:
        try:
            member.ask("miked", "rekey")
        except ControlError as error:
            return str(error)
        return ""

    wait_until(asked, JOIN_S, "the rekey is accepted once its bound has passed", accept=is_empty)
    wait_until(
        lambda: views(lan.devices),
        JOIN_S,
        "a new epoch",
        accept=lambda seen: agree(lan.devices)(seen) and epoch not in seen[0]["epochs"],
    )
    for device in lan.devices:
        after = device.ask("miked", "status")["rekey"]
        old = before[device.name]
        assert after["key_since_wall_ns"] > old["key_since_wall_ns"]
        renewed = after["share_since_wall_ns"] > old["share_since_wall_ns"]
        assert renewed == (device is member)
    assert "try again in" in asked()


def is_empty(text: str) -> bool:
    return text == ""

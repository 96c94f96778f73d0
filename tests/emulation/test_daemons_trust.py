"""Real daemons: certificates learned from each other, revocation while running, restarts."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from protocol.identity.policypki import ANCHOR, SIGNED, distribute
from tests.support.coalition import policy
from tests.support.devices import JOIN_S, START_S, Device, Lan
from tests.support.waiting import wait_until

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for network namespaces"),
]


@pytest.fixture
def lan(tmp_path: Path) -> Iterator[Lan]:
    with Lan(tmp_path, 3) as made:
        yield made


def without_certificates(lan: Lan, *devices: Device) -> None:
    """Let these devices start with their own certificate only, and a cache."""
    for device in devices:
        peers = device.directory / "peers"
        peers.mkdir()
        cache = str(device.directory / "cache")
        device.write_config(lan.coalition, {"identity": {"peers": str(peers), "cache": cache}})


def start(*devices: Device) -> None:
    """Start both daemons of these devices, and the protocols."""
    for device in devices:
        device.launch_both()
    for device in devices:
        device.start()


def form(*devices: Device) -> None:
    """Start these devices; wait until they are one group and use one epoch."""
    start(*devices)
    agree(*devices)


def agree(*devices: Device) -> str:
    """Wait until exactly these devices are one group with SAs of one epoch; return the epoch."""
    expected = sorted(str(device.address) for device in devices)

    def state() -> list[Any]:
        found = []
        for device in devices:
            mike, idp = device.ask("miked", "status"), device.ask("idpd", "status")
            found.append((sorted(mike["members"]), mike["epoch"], idp["active_epoch"]))
        return found

    def one_group(found: list[Any]) -> bool:
        epochs = {epoch for _, *both in found for epoch in both}
        return all(seen[0] == expected for seen in found) and len(epochs) == 1

    return str(wait_until(state, JOIN_S, "one group", accept=one_group)[0][1])


def has_learned(device: Device, certificates: int) -> None:
    wait_until(
        lambda: device.ask("idpd", "status")["trust"]["learned"],
        15.0,
        f"{device.name} has learned {certificates} certificates",
        accept=lambda seen: seen == certificates,
    )


def test_devices_without_each_others_certificates_form_a_group_and_remember(lan: Lan) -> None:
    devices = lan.devices
    without_certificates(lan, *devices)
    form(*devices)
    for device in devices:
        # A group may be one before its members have met each other: the TM is enough.
        has_learned(device, 2)
        status = device.ask("idpd", "status")
        assert status["trust"]["operations"]["certificate_parsed"] == 2
        assert "daemon.internal_error" not in status["counters"]
        assert "daemon.internal_error" not in device.ask("miked", "status")["counters"]
        kept = sorted(path.name for path in (device.directory / "cache").iterdir())
        assert len([name for name in kept if name.startswith("certificate-")]) == 2
    # A restarted device knows them still: it asks nobody.
    again = devices[2]
    again.stop()
    again.end()
    start(again)
    agree(*devices)
    has_learned(again, 2)
    status = again.ask("idpd", "status")
    assert "idp.certificate_asked" not in status["counters"]


def test_one_device_without_certificates_joins_a_group_that_has_them(lan: Lan) -> None:
    first, second, new = lan.devices
    without_certificates(lan, new)
    form(first, second)
    start(new)
    agree(first, second, new)
    has_learned(new, 2)
    assert first.ask("idpd", "status")["trust"]["learned"] == 0


@pytest.mark.parametrize("learned", [False, True], ids=["pre-deployed", "learned"])
def test_a_revoked_device_is_excluded_within_seconds(lan: Lan, learned: bool) -> None:
    first, second, bad = lan.devices
    if learned:
        without_certificates(lan, first, second, bad)
    form(first, second, bad)
    epoch = agree(first, second, bad)
    # Only one device's operator hears of it; the others are told by that device.
    lan.coalition.revoke([bad.name], receivers=[first.name])
    begin = time.monotonic()
    answer = first.ask("idpd", "trust_reload")
    assert (answer["certificates"], answer["revocation_lists"]) == (0, 1)
    after = agree(first, second)
    took_s = time.monotonic() - begin
    # A fifth of a second on a machine with nothing else to do.
    assert took_s < 15, f"excluded after {took_s:.1f} s"
    assert after != epoch
    for device in (first, second):
        up = [peer["name"] for peer in device.ask("idpd", "status")["peers"]]
        assert bad.name not in up
        sas = device.ask("idpd", "status")["sas"]
        assert sas[-1]["sas"] == 2
    # The TM hears its attempts to come back; other members do not listen to those.
    tm = next(d for d in (first, second) if d.ask("miked", "status")["role"] == "tm")
    for device, daemon in ((first, "idpd"), (second, "idpd"), (tm, "miked")):
        wait_until(
            lambda device=device, daemon=daemon: device.ask(daemon, "status")["refused"],
            10.0,
            f"{device.name} {daemon} refuses {bad.name} as revoked",
            accept=lambda seen: any("revoked by 'beta CA'" in entry["reason"] for entry in seen),
        )
    assert agree(first, second) == after
    # And it stays out when those who learned the list start anew.
    if learned:
        second.stop()
        second.end()
        start(second)
        agree(first, second)


def test_a_bad_file_at_reload_changes_nothing(lan: Lan) -> None:
    from protocol.daemon.control import ControlError

    device = lan.devices[0]
    device.launch_both()
    path = lan.coalition.files(device.name).revocations / "beta.pem"
    path.write_bytes(b"junk")
    for daemon in ("idpd", "miked"):
        with pytest.raises(ControlError, match=r"beta\.pem: not a well-formed PEM CRL"):
            device.ask(daemon, "trust_reload")
        assert device.ask(daemon, "status")["ok"]


def keep_policy(lan: Lan, device: Device, content: bytes, **ipsec: object) -> None:
    """Give a device a signed policy and a configuration that names it."""
    distribute(lan.coalition.directory, content, [device.name])
    folder = lan.coalition.files(device.name).directory
    files = {"file": str(folder / SIGNED), "authority": str(folder / ANCHOR)}
    device.write_config(lan.coalition, {"policy": files, "ipsec": ipsec})


def test_a_device_with_another_policy_is_refused_with_the_difference(lan: Lan) -> None:
    first, second, other = lan.devices
    for device in (first, second):
        keep_policy(lan, device, policy(unicast=["group", "off"]).encode())
    # A later policy for the third alone, which the others' settings would break.
    keep_policy(lan, other, policy(suites=["aes-gcm-256"], version=7).encode(), suite="aes-gcm-256")
    form(first, second)
    start(other)
    difference = "suites aes-gcm-256, ours aes-gcm-128+aes-gcm-256"

    def reasons() -> list[str]:
        refused = first.ask("idpd", "status")["refused"]
        return [entry["reason"] for entry in refused if entry["peer"] == other.name]

    wait_until(
        reasons, 20.0, difference, accept=lambda seen: any(difference in each for each in seen)
    )
    assert any("we would break it: [ipsec] suite aes-gcm-128" in each for each in reasons())
    assert first.ask("idpd", "status")["policy"]["version"] == 3
    # The group goes on without it, in MIKE, too.
    agree(first, second)
    epoch = first.ask("miked", "status")["epoch"]
    alone = wait_until(
        lambda: other.ask("miked", "status")["members"],
        JOIN_S,
        "the third is alone",
        accept=lambda seen: seen == [str(other.address)],
    )
    assert alone == [str(other.address)]
    agree(first, second)
    assert first.ask("miked", "status")["epoch"] == epoch
    tm = next(d for d in (first, second) if d.ask("miked", "status")["role"] == "tm")
    assert tm.ask("miked", "status")["counters"]["AUTH-11"] >= 1


def test_a_newer_policy_spreads_through_a_running_group(lan: Lan) -> None:
    for device in lan.devices:
        keep_policy(lan, device, policy().encode())
    form(*lan.devices)
    epoch = agree(*lan.devices)
    first = lan.devices[0]
    distribute(lan.coalition.directory, policy(version=4).encode(), [first.name])
    assert first.ask("idpd", "trust_reload")["policy"] == 4
    for device in lan.devices:
        wait_until(
            lambda device=device: device.ask("idpd", "status")["policy"]["version"],
            15.0,
            f"{device.name} keeps to policy 4",
            accept=lambda seen: seen == 4,
        )
    assert agree(*lan.devices) == epoch, "nobody left"


def test_settings_that_the_policy_forbids_are_refused_at_the_start(lan: Lan) -> None:
    device = lan.devices[0]
    keep_policy(lan, device, policy(suites=["aes-gcm-256"]).encode())
    for daemon in ("idpd", "miked"):
        process = device.launch(daemon)
        assert process.wait(START_S) == 1
        assert device.stderr(daemon) == (
            f"{daemon}: domain policy 3 of 'exercise' forbids"
            " [ipsec] suite: aes-gcm-128 is not among aes-gcm-256\n"
        )

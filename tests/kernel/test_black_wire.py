"""The black wire of the whole system: nothing red on it, and tshark reads what only members may."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from protocol.ipsec.model import SecurityAssociation
from testbed import session
from testbed.device import RESPONDER_PORT
from testbed.fleet import Fleet, FleetOptions
from testbed.guard import BlackChannels
from testbed.leaks import LeakRules, check_leaks
from testbed.namespaces import write_sysctl
from testbed.network import RED_STUB
from testbed.pcap import merge
from testbed.recording import Recording
from testbed.spec import Topology
from testbed.wait import wait_until
from testbed.witness import EspFlow, KeyCollector, count_with_profile, decrypt_count
from tests.support import frames as f
from tests.support.mroute import StaticRouter
from tests.support.netns import require_esp
from tests.support.redpath import GROUP, MARK, PORT, RedPath
from topologies.families import star

pytestmark = [pytest.mark.kernel, pytest.mark.slow]

WAIT_S = 120.0
DELAYS = {"activation_delay_ms": 200, "deactivation_delay_ms": 500}
BATCH = 25


@pytest.fixture(autouse=True)
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    require_esp()
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


def red_paths(fleet: Fleet, stack: ExitStack) -> dict[str, RedPath]:
    paths = {}
    for node in fleet.topology.devices:
        assert node.red is not None
        paths[node.name] = RedPath(fleet.network.namespace(node.name), node.red.ip)
        stack.callback(paths[node.name].close)
    return paths


def red_of(topology: Topology, device: str) -> IPv6Address:
    red = topology.node(device).red
    assert red is not None
    return red.ip


def ip(fleet: Fleet, device: str, *words: str) -> None:
    with fleet.network.namespace(device).entered():
        subprocess.run(["ip", *words], check=True)


def join_all(fleet: Fleet) -> None:
    for count, device in enumerate(fleet.devices, 1):
        fleet.start(device)
        fleet.await_members(fleet.devices[:count], deadline_s=WAIT_S)


def hears(fleet: Fleet, path: RedPath) -> None:
    path.received()
    wait_until(path.received, WAIT_S, "the red stream does not arrive")


def mac_of(interface: str) -> bytes:
    show = ["ip", "-j", "link", "show", interface]
    (link,) = json.loads(subprocess.run(show, check=True, capture_output=True).stdout)
    return bytes.fromhex(link["address"].replace(":", ""))


def send_past_ipsec(fleet: Fleet, device: str) -> list[str]:
    """Try by hand to send red packets straight out of black0; return what the kernel said."""
    other = f.RED2 if device == "d1" else f.RED1
    peer = fleet.addresses["d3"]
    ip(fleet, device, "-6", "route", "add", f"{other}/128", "via", peer, "dev", "black0")
    said = []
    with fleet.network.namespace(device).entered():
        write_sysctl("net/ipv6/conf/all/forwarding", 1)
        index = socket.if_nametoindex("black0")
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as local:
            local.bind((str(red_of(fleet.topology, device)), 0))
            local.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            for target in (GROUP, other):
                try:
                    local.sendto(MARK, (target, PORT))
                    said.append("sent")
                except PermissionError:
                    said.append("refused")
        # A client in the red LAN, by unicast that is routed to black and by multicast that the
        # multicast router was told to forward there.
        client = str(red_of(fleet.topology, device) + 9)
        with (
            StaticRouter(["red0", "xfrm0", "black0"]) as router,
            socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x86DD)) as lan,
        ):
            router.forward(client, GROUP, "red0", ["xfrm0", "black0"])
            lan.bind((RED_STUB, 0))
            packed = IPv6Address(GROUP).packed
            for target, mac in ((GROUP, b"\x33\x33" + packed[-4:]), (other, mac_of("red0"))):
                packet = f.ipv6(f.UDP, f.udp(PORT, PORT, MARK), client, target)
                lan.send(mac + f.ethernet(packet)[6:])
    return said


def live_through(fleet: Fleet, keep: Path) -> dict[str, Any]:
    """Joins, a leave, a crash of both daemons, an SAD that is gone, and traffic past IPsec."""
    with ExitStack() as stack:
        paths = red_paths(fleet, stack)
        paths["d1"].stream()
        join_all(fleet)
        hears(fleet, paths["d3"])
        fleet.stop("d3")
        fleet.await_members(["d1", "d2"], deadline_s=WAIT_S)
        fleet.start("d3")
        fleet.await_members(fleet.devices, deadline_s=WAIT_S)
        hears(fleet, paths["d3"])
        for daemon in ("idpd", "miked"):
            fleet.processes.kill(f"d1/{daemon}")
        fleet.await_members(["d2", "d3"], deadline_s=WAIT_S)
        ip(fleet, "d1", "xfrm", "state", "flush")
        paths["d3"].received()
        sent = paths["d1"].sent
        wait_until(lambda: paths["d1"].sent > sent + 20, WAIT_S, "the red stream has ended")
        ip(fleet, "d1", "xfrm", "policy", "flush")
        sent = paths["d1"].sent
        wait_until(lambda: paths["d1"].sent > sent + 20, WAIT_S, "the red stream has ended")
        after = paths["d3"].received()
        said = send_past_ipsec(fleet, "d2")
    drops = fleet.drops("d2") if fleet.options.guard else {}
    return {"said": said, "drops": drops, "after": after}


@pytest.mark.parametrize("guard", [True, False])
def test_nothing_red_is_on_the_black_wire_in_a_whole_life(tmp_path: Path, guard: bool) -> None:
    topology = star(3)

    def inside() -> dict[str, Any]:
        options = FleetOptions(ipsec=DELAYS, keep=tmp_path, capture=True, guard=guard)
        with Fleet(topology, options) as fleet:
            seen = live_through(fleet, tmp_path)
        return seen | {"captured": fleet.captured}

    seen = session.call(inside)
    rules = LeakRules.of(topology, BlackChannels.of({}, {}), RESPONDER_PORT, (MARK,))
    report = check_leaks(seen["captured"], rules)
    assert seen["after"] == 0
    assert {"ESP", "IDP", "MIKE"} <= set(report.counts)
    if guard:
        assert report.ok, report.text()
        assert seen["said"] == ["refused", "refused"]
        assert seen["drops"]["output_source"] == 2
        assert seen["drops"]["forward_to_black"] == 2
    else:  # the same without the guard: so the guard is what held, and the detector sees
        assert seen["said"] == ["sent", "sent"]
        assert report.leak_count >= 4, report.text()


def keys_of(collector: KeyCollector) -> list[SecurityAssociation]:
    collector.poll()
    return collector.sas()


def test_tshark_decrypts_with_the_keys_of_the_epoch_and_sender_only(tmp_path: Path) -> None:
    topology = star(3)

    def inside() -> dict[str, Any]:
        sent: dict[str, int] = {}
        options = FleetOptions(ipsec=DELAYS, keep=tmp_path, capture=True)
        with ExitStack() as stack:
            fleet = stack.enter_context(Fleet(topology, options))
            paths = red_paths(fleet, stack)
            nodes = {name: fleet.network.pid(name) for name in fleet.devices}
            collector = KeyCollector(nodes)
            stack.callback(collector.close)
            join_all(fleet)

            def all_send(devices: tuple[str, ...]) -> None:
                for name in devices:
                    paths[name].send(BATCH)
                for name in devices:
                    left = [BATCH * (len(devices) - 1)]

                    def arrived(path: RedPath = paths[name], left: list[int] = left) -> bool:
                        left[0] -= path.received()
                        return left[0] <= 0

                    wait_until(arrived, WAIT_S, lambda left=left: f"{left[0]} packets lack")

            all_send(fleet.devices)
            before = keys_of(collector)
            fleet.stop("d3")
            fleet.await_members(["d1", "d2"], deadline_s=WAIT_S)
            all_send(("d1", "d2"))
            after = keys_of(collector)
            sent |= {name: path.sent for name, path in paths.items()}
        return {"captured": fleet.captured, "before": before, "all": after, "sent": sent}

    seen = session.call(inside)
    pcap = tmp_path / "black.pcap"
    merge([one.path for one in seen["captured"]], pcap)
    assert not any(one.dropped for one in seen["captured"])

    counted = decrypt_count(pcap, seen["all"])
    assert {flow: c.packets for flow, c in counted.items()} == {
        flow: c.decrypted for flow, c in counted.items()
    }
    black = {name: str(topology.node(name).black.ip) for name in seen["sent"]}  # type: ignore[union-attr]
    for name, sent in seen["sent"].items():
        ours = (str(red_of(topology, name)), GROUP)
        theirs = sum(c.inner[ours] for flow, c in counted.items() if flow.source == black[name])
        assert theirs == sent == (2 * BATCH if name != "d3" else BATCH)

    known = {(sa.source, sa.spi) for sa in seen["before"]}
    new = [sa for sa in seen["all"] if (sa.source, sa.spi) not in known]
    assert {str(sa.source) for sa in new} == {black["d1"], black["d2"]}
    new_flows = {EspFlow(str(sa.source), sa.spi) for sa in new}
    leaver = decrypt_count(pcap, seen["before"])
    assert sum(leaver[flow].packets for flow in new_flows) >= 2 * BATCH
    assert all(leaver[flow].decrypted == 0 for flow in new_flows)
    assert all(c.packets == c.decrypted for flow, c in leaver.items() if flow not in new_flows)

    one, other = new
    swapped = [replace(one, key=other.key), replace(other, key=one.key)]
    assert all(decrypt_count(pcap, swapped)[flow].decrypted == 0 for flow in new_flows)


@pytest.mark.parametrize("mode", ["per-sender", "paper"])
def test_a_recording_has_the_keys_of_epochs_that_came_while_it_ran(
    tmp_path: Path, mode: str
) -> None:
    folder = tmp_path / "wire"
    folder.mkdir()

    def inside() -> dict[str, Any]:
        with ExitStack() as stack:
            fleet = stack.enter_context(Fleet(star(2), FleetOptions(sa_mode=mode, ipsec=DELAYS)))
            paths = red_paths(fleet, stack)
            fleet.start("d1")
            fleet.await_members(["d1"], deadline_s=WAIT_S)
            recording = Recording(fleet, folder, seconds=WAIT_S, decrypt=True)
            stack.callback(recording.close)
            fleet.start("d2")
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            paths["d1"].send(BATCH)
            wait_until(paths["d2"].received, WAIT_S, "nothing arrives")
            recording.stop_now()
            return (recording.tick() or {}) | {"sent": paths["d1"].sent}

    answer = session.call(inside)
    assert stat.S_IMODE((folder / "esp_sa").stat().st_mode) == 0o600
    lines = (folder / "esp_sa").read_text().splitlines()
    # An SA for each sender and epoch, or one for each epoch, which each device holds as its own.
    assert (answer["sas"], len(lines)) == ((3, 3) if mode == "per-sender" else (3, 2))
    counted = count_with_profile(folder / "black.pcap", folder)
    ours = (str(red_of(star(2), "d1")), GROUP)
    assert sum(count.inner[ours] for count in counted.values()) == answer["sent"] > 0
    assert all(count.packets == count.decrypted for count in counted.values())

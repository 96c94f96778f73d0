"""Delay and loss of links, on a kernel that has netem: packets really are late, and really go."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from typing import Any

import pytest

import topologies
from testbed.errors import TestbedError
from testbed.isolation import call_isolated
from testbed.network import XFRM, Network
from testbed.preflight import State, check_netem
from testbed.spec import Topology
from testbed.wait import wait_until
from topologies.families import star

pytestmark = [pytest.mark.kernel]

PEER = "2001:db8:b::2"
_RTT_MS = re.compile(r"time=([0-9.]+) ms")


@pytest.fixture(autouse=True, scope="module")
def kernel_with_netem() -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    check = check_netem()
    if check.state is not State.OK:
        pytest.skip(f"{check.name}: {check.detail}")


def rtts_ms(network: Network, node: str, address: str, count: int = 5) -> list[float]:
    command = ["ping", "-n", "-c", str(count), "-i", "0.2", "-W", "2", address]
    with network.namespace(node).entered():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    return [float(found) for found in _RTT_MS.findall(done.stdout)]


def first_link(topology: Topology, **values: Any) -> Topology:
    first, *others = topology.links
    return replace(topology, links=(replace(first, **values), *others))


@pytest.mark.parametrize("bandwidth_mbit", [100.0, None])
def test_a_delay_is_added_in_both_directions_and_changed_at_run_time(
    bandwidth_mbit: float | None,
) -> None:
    topology = first_link(star(2), delay_ms=60, bandwidth_mbit=bandwidth_mbit)

    def inside() -> dict[str, Any]:
        network = Network(topology, with_xfrm=False)
        network.build()
        try:
            wait_until(lambda: rtts_ms(network, "d1", PEER, 1), 30, "the first answer")
            seen: dict[str, Any] = {"60 ms": rtts_ms(network, "d1", PEER)}
            network.set_link("d1-s1", delay_ms=0)
            seen["0 ms"] = rtts_ms(network, "d1", PEER)
            network.set_link("d1", loss_percent=100)
            seen["100 %"] = rtts_ms(network, "d1", PEER, 2)
            network.set_link("d1", delay_ms=30, loss_percent=0)
            seen["30 ms"] = rtts_ms(network, "d1", PEER)
            network.set_link("d2", delay_ms=30)  # had no delay when it was built
            seen["30 ms twice"] = rtts_ms(network, "d1", PEER)
            return seen
        finally:
            network.stop()

    seen = call_isolated(inside)
    assert 120 <= min(seen["60 ms"]) < 180, seen
    assert min(seen["0 ms"]) < 60, seen
    assert seen["100 %"] == [], seen
    assert 60 <= min(seen["30 ms"]) < 120, seen
    assert 120 <= min(seen["30 ms twice"]) < 180, seen


def test_the_wide_area_network_is_built_with_all_its_impairments() -> None:
    topology = topologies.find("coalition-wan")
    impaired = [link for link in topology.links if "r1" in link.ends and link.delay_ms]

    def inside() -> dict[str, Any]:
        network = Network(topology, with_xfrm=False)
        network.build()
        try:
            with network.namespace("r1").entered():
                queues = subprocess.run(
                    ["tc", "qdisc", "show"], capture_output=True, text=True, check=True
                ).stdout
            wait_until(
                lambda: rtts_ms(network, "r1", "2001:db8:a:12::2", 1), 30, "r1 to r2 across the WAN"
            )
            rtt = rtts_ms(network, "r1", "2001:db8:a:12::2")
            return {"queues": queues, "rtt": rtt, "timings": network.timings_ms}
        finally:
            network.stop()

    seen = call_isolated(inside)
    print(seen["timings"])
    assert len(re.findall(r"qdisc netem 10: dev eth\d parent 5:1", seen["queues"])) == len(impaired)
    assert re.search(r"delay 20ms +1ms loss 0.1%", seen["queues"]), seen["queues"]
    assert min(seen["rtt"]) >= 38, seen


def test_devices_keep_their_xfrm_interface_when_their_link_was_cut() -> None:
    def inside() -> dict[str, Any]:
        network = Network(topologies.find("coalition"))
        network.build()
        try:
            address = "2001:db8:f::2"  # of r1, beyond the link: needs the default route
            seen: dict[str, Any] = {"xfrm": network.has_xfrm, "timings": network.timings_ms}
            wait_until(lambda: rtts_ms(network, "d1", address, 1), 30, "d1 to its router")
            network.link_down("d1")
            seen["cut"] = rtts_ms(network, "d1", address, 1)
            network.link_up("d1")
            wait_until(lambda: rtts_ms(network, "d1", address, 1), 30, "d1 to its router, again")
            with network.namespace("d1").entered():
                command = ["ip", "-o", "link", "show", "up", "dev", XFRM]
                seen["up"] = subprocess.run(
                    command, capture_output=True, text=True, check=True
                ).stdout
            return seen
        finally:
            network.stop()

    seen = call_isolated(inside)
    print(seen["timings"])
    assert seen["xfrm"]
    assert seen["cut"] == []
    assert "mtu 1380" in seen["up"]


def test_a_queue_the_kernel_did_not_change_is_an_error() -> None:
    def inside() -> str:
        from testbed import network_batch

        network = Network(first_link(star(2), delay_ms=10), with_xfrm=False)
        network.build()
        real = network_batch.batch
        network_batch.batch = lambda program, lines, where: real(program, lines[1:], where)
        try:
            network.set_link("d1", delay_ms=20)
        except TestbedError as error:
            return str(error)
        finally:
            network_batch.batch = real
            network.stop()
        return "changed"

    assert "should have delay, jitter (ms) and loss (%) of (20" in call_isolated(inside)

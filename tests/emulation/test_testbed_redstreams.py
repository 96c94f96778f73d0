"""Streams between real clients of one red LAN: every packet is accounted for."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv6Interface
from pathlib import Path
from typing import Any

import pytest

from testbed.errors import TestbedError
from testbed.isolation import call_isolated
from testbed.network import Network
from testbed.processes import ProcessTable
from testbed.redstreams import RedStreams, StreamSpec, streams_by_source
from testbed.wait import wait_until
from topologies.families import coalition

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

TOPOLOGY = coalition(1)
SENDER, RECEIVER = TOPOLOGY.clients


def on_a_lan(directory: Path, use: Callable[[Network, RedStreams], dict[str, Any]]) -> Any:
    """Return what ``use`` returns with a network of two clients on a switch."""

    def inside() -> dict[str, Any]:
        network = Network(TOPOLOGY, with_xfrm=False)
        network.build()
        processes = ProcessTable("run-redstreams")
        streams = RedStreams(network, processes, directory)
        try:
            return use(network, streams)
        finally:
            streams.close()
            left = processes.names()
            network.stop()
            assert left == []

    return call_isolated(inside)


@pytest.mark.parametrize("version", [4, 6])
def test_every_packet_of_a_stream_arrives_once_and_in_order(version: int, tmp_path: Path) -> None:
    def use(_network: Network, streams: RedStreams) -> dict[str, Any]:
        receiver = streams.receive(RECEIVER, version=version)
        receiver.wait_ready()
        sender = streams.send(SENDER, StreamSpec(9, 500, 1300, count=250), version=version)
        sender.wait_ready()
        sent = sender.finish(20)
        return {"sent": sent, "received": receiver.stop()}

    seen = on_a_lan(tmp_path, use)
    assert seen["sent"]["sent"] == 250
    assert seen["sent"]["refused"] == {}
    ((number, stream),) = streams_by_source(seen["received"])
    assert number == 9
    assert (stream["received"], stream["lost"]) == (250, 0)
    assert (stream["duplicated"], stream["reordered"]) == (0, 0)
    assert seen["received"]["overflow"] == 0
    first, last = seen["sent"]["first_sent_wall_ns"], stream["last_arrival_wall_ns"]
    assert first <= stream["first_arrival_wall_ns"] < last
    assert (last - first) / 1e6 >= 249 * 2, "500 packets a second are 2 ms apart"


def test_a_receiver_that_reads_late_has_the_kernels_stamps(tmp_path: Path) -> None:
    def use(_network: Network, streams: RedStreams) -> dict[str, Any]:
        prompt, late = streams.receive(RECEIVER), streams.receive(RECEIVER, pause_ms=60_000)
        for part in (prompt, late):
            part.wait_ready()
        sender = streams.send(SENDER, StreamSpec(1, 1000, count=200))
        sender.wait_ready()
        sender.finish(20)
        return {"prompt": prompt.ask(), "late": late.ask(), "again": late.ask()}

    seen = on_a_lan(tmp_path, use)
    ((_, prompt),), ((_, late),) = (list(streams_by_source(seen[k])) for k in ("prompt", "late"))
    assert late["received"] == prompt["received"] == 200
    # The same packet reaches both sockets in one softirq.
    assert abs(late["first_arrival_wall_ns"] - prompt["first_arrival_wall_ns"]) < 1_000_000
    assert seen["again"]["streams"] == [], "a report begins anew"


def test_what_a_cut_cable_swallows_is_one_gap(tmp_path: Path) -> None:
    every_ms = 5

    def use(network: Network, streams: RedStreams) -> dict[str, Any]:
        whole, probe = streams.receive(RECEIVER), streams.receive(RECEIVER)
        for part in (whole, probe):
            part.wait_ready()
        sender = streams.send(SENDER, StreamSpec(1, 1000 / every_ms))
        sender.wait_ready()

        def heard(expected: bool, times: int) -> None:
            """Wait for so many reports in a row of a stream, or of silence."""
            wait_until(
                lambda: all(bool(probe.ask()["streams"]) is expected for _ in range(times)),
                10,
                "the stream's state",
                pause_s=0.05,
            )

        heard(True, 1)
        network.link_down(SENDER.name)
        # One silent report may only mean that the sender was not scheduled.
        for _ in range(3):
            heard(False, 2)
        network.link_up(SENDER.name)
        heard(True, 1)
        return {"sent": sender.stop(), "heard": whole.stop()}

    seen = on_a_lan(tmp_path, use)
    ((_, stream),) = streams_by_source(seen["heard"])
    (gap,) = stream["gaps"]
    assert gap["missing"] == stream["lost"] > 0
    assert stream["received"] + stream["lost"] <= seen["sent"]["numbers"]
    # Between the last packet before and the first after it lie one interval more than are missing.
    assert gap["silent_ms"] == pytest.approx((gap["missing"] + 1) * every_ms, abs=50)


def test_a_sender_can_be_faster_than_the_network_only_if_that_has_its_own_processor(
    tmp_path: Path,
) -> None:
    def use(network: Network, streams: RedStreams) -> dict[str, Any]:
        interface = network.port(SENDER.name).interface
        streams.steer(SENDER, 1)
        mask = Path("/sys/class/net", interface, "queues/rx-0/rps_cpus").read_text().strip()
        receiver = streams.receive(RECEIVER)
        receiver.wait_ready()
        sender = streams.send(SENDER, StreamSpec(1, 500, count=50))
        sender.pin(0)
        sender.finish(20)
        heard = 0

        def all_heard() -> bool:  # the other processor may have had other things to do
            nonlocal heard
            heard += sum(stream["received"] for _, stream in streams_by_source(receiver.ask()))
            return heard >= 50

        wait_until(all_heard, 10, lambda: f"{heard} of 50 packets have come")
        return {"mask": int(mask.replace(",", ""), 16), "heard": heard}

    seen = on_a_lan(tmp_path, use)
    assert seen == {"mask": 0b10, "heard": 50}


def test_a_client_on_no_switch_cannot_be_steered(tmp_path: Path) -> None:
    alone = coalition(1, 1, 1)

    def inside() -> None:
        network = Network(alone, with_xfrm=False)
        network.build()
        try:
            streams = RedStreams(network, ProcessTable("run-alone"), tmp_path)
            with pytest.raises(TestbedError, match="c1a is on no switch"):
                streams.steer(alone.clients[0], 1)
        finally:
            network.stop()

    call_isolated(inside)


def test_a_sender_that_cannot_start_is_named(tmp_path: Path) -> None:
    stranger = replace(SENDER, red=IPv6Interface("fd00:99::1/64"))

    def use(_network: Network, streams: RedStreams) -> dict[str, Any]:
        with pytest.raises(TestbedError, match=r"c1a/send\d+ has not .* Cannot assign requested"):
            streams.send(stranger, StreamSpec(1, 100, count=1)).wait_ready()
        return {}

    on_a_lan(tmp_path, use)

"""Three partitions with real ESP: clients reach each other, also when a gateway dies."""

from __future__ import annotations

import os
import subprocess
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.device import RESPONDER_PORT
from testbed.fleet import Fleet, FleetOptions
from testbed.guard import BlackChannels, red_drops
from testbed.leaks import LeakRules, check_leaks
from testbed.packets import RedEndpoint, check
from testbed.wait import wait_until
from tests.support.gatewayfleet import (
    ALL,
    LAST,
    NONE,
    accepted,
    await_spoken,
    kill_gateway,
    start_all,
)
from tests.support.netns import require_esp
from topologies.families import partitions

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

START_S = 180.0
"""Eighteen daemons under software emulation."""

WAIT_S = 60.0
STREAM = 20
PACE_S = 0.02


@pytest.fixture(autouse=True)
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root")
    require_esp()
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))


def answers(fleet: Fleet, client: str, other: str) -> bool:
    red = fleet.topology.node(other).red
    assert red is not None
    with fleet.network.namespace(client).entered():
        command = ["ping", "-n", "-c", "1", "-W", "1", str(red.ip)]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


def await_answer(fleet: Fleet, client: str, other: str) -> None:
    wait_until(
        lambda: answers(fleet, client, other),
        WAIT_S,
        lambda: f"{other} does not answer {client}; d1 has {accepted(fleet, 'd1')}",
    )


def copies(points: dict[str, RedEndpoint], sender: str) -> dict[str, list[int]]:
    """Send numbered packets until enough in a row have arrived at all other clients.

    On a starved machine a gateway may lose the other for a moment, and packets with it.

    Returns:
        For each other client, how often each packet arrived there that did.
    """
    others = {name: point for name, point in points.items() if name != sender}
    found: dict[str, Counter[int]] = {name: Counter() for name in others}
    ours, sent = sender.encode(), 0

    def enough_in_a_row() -> bool:
        nonlocal sent
        assert points[sender].send(b"%b number %d" % (ours, sent)) == ""
        sent += 1
        for name, point in others.items():
            numbers = [one.split() for one in point.receive() if one.startswith(ours + b" number ")]
            found[name].update(int(number) for _, _, number in numbers)
        newest = min(max(got, default=-1) for got in found.values())
        row = range(newest - STREAM + 1, newest + 1)
        return newest >= STREAM and all(n in got for n in row for got in found.values())

    wait_until(
        enough_in_a_row,
        WAIT_S,
        lambda: f"of {sent} packets arrived: { {name: len(got) for name, got in found.items()} }",
        pause_s=PACE_S,
    )
    return {name: sorted(got.values()) for name, got in found.items()}


def take_power(fleet: Fleet, gateway: str) -> None:
    """Kill a gateway's daemons and cut its cables: its kernel would go on forwarding."""
    kill_gateway(fleet, gateway)
    for link in fleet.topology.links:
        if gateway in link.ends:
            fleet.network.link_down(link.name)


def test_clients_reach_each_other_through_gateways_and_after_one_has_died(tmp_path: Path) -> None:
    topology = partitions(3)

    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        options = FleetOptions(keep=tmp_path / "kept", capture=True)
        with ExitStack() as stack:
            fleet = stack.enter_context(Fleet(topology, options))
            start_all(fleet, START_S)
            for gateway, wanted in (("g1", ALL), ("g2", NONE), ("g3", LAST)):
                await_spoken(fleet, gateway, wanted, WAIT_S)
            points = {}
            for client in topology.clients:
                points[client.name] = fleet.surroundings.endpoint(client)
                stack.callback(points[client.name].close)
            seen["multicast"] = check(points, list(points), WAIT_S)
            seen["copies"] = {sender: copies(points, sender) for sender in ("c1", "c3")}
            for client, other in (("c1", "c3"), ("c3", "c1"), ("c2", "c1")):
                await_answer(fleet, client, other)
            killed = time.monotonic()
            take_power(fleet, "g1")
            await_answer(fleet, "c1", "c3")
            seen["unicast_s"] = time.monotonic() - killed
            await_spoken(fleet, "g2", ALL, WAIT_S)
            seen["multicast after"] = check(points, list(points), WAIT_S)
            seen["copies after"] = {sender: copies(points, sender) for sender in ("c1", "c3")}
            seen["red drops"] = {
                name: red_drops(fleet.network.namespace(name)) for name in ("g1", "g2", "g3", "d1")
            }
        rules = LeakRules.of(
            topology, BlackChannels.of({}, {}), RESPONDER_PORT, markers=(b" number ",)
        )
        seen["leaks"] = check_leaks(fleet.captured, rules)
        return seen

    seen = session.call(inside)
    print(f"unicast answered {seen['unicast_s']:.1f} s after the gateway died")
    print(seen["leaks"].text())
    for when in ("multicast", "multicast after"):
        assert seen[when].ok, seen[when].reason
    for when in ("copies", "copies after"):
        for sender, received in seen[when].items():
            assert all(set(counts) == {1} for counts in received.values()), (when, sender, received)
    assert seen["red drops"] == dict.fromkeys(("g1", "g2", "g3", "d1"), 0)
    assert seen["leaks"].ok, seen["leaks"].text()
    assert set(seen["leaks"].counts) <= {"ESP", "IDP", "MIKE", "ND", "MLD", "clock"}
    assert len(seen["leaks"].links) == 9

"""Faults of the coalition network while red multicast flows: what recovers, what is refused.

One network lives through all of them, one after the other; each test looks at what one showed.
Links lead clear text nowhere in all of this: the last test looks at every frame.
"""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from ipaddress import IPv6Address
from typing import Any

import pytest

from testbed import session
from testbed.device import RESPONDER_PORT
from testbed.errors import DaemonDiedError
from testbed.fleet import Fleet, FleetOptions
from testbed.guard import BlackChannels
from testbed.leaks import LeakReport, LeakRules, check_leaks
from testbed.packets import RED_GROUP
from testbed.routing.frr import FrrRouting
from testbed.routing.programs import find_frr
from testbed.spec import Topology
from testbed.wait import wait_until
from tests.support.netns import require_esp
from tests.support.redlife import MARK, WAIT_S, RedLife, seconds
from topologies.families import coalition

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.skipif(find_frr() is None, reason="FRR is not built: run 'make setup'"),
]

SMALL_MTU = 1400
LARGE_BYTES = 1400
DELAYS = {"activation_delay_ms": 200, "deactivation_delay_ms": 500}
FLOOD_GROUPS, FLOOD_S, FLOOD_PPS = 200, 3.0, 300


def three_nations() -> Topology:
    """Return three nations, the third behind a link of which the tunnel's MTU must take account."""
    topology = coalition(3)
    links = tuple(
        replace(link, mtu=SMALL_MTU) if link.name == "r3-d3" else link for link in topology.links
    )
    return replace(topology, links=links)


class Life:
    """The faults in order; `seen` is what each showed."""

    def __init__(self, fleet: Fleet, red: RedLife) -> None:
        self.fleet = fleet
        self.red = red
        self.seen: dict[str, Any] = {}
        routing = fleet.surroundings.routing
        assert isinstance(routing, FrrRouting)
        self.routing = routing

    def run(self) -> None:
        """Go through all of it; the time of each is printed."""
        for fault in (
            self.proxy_killed,
            self.link_cut,
            self.large_packets,
            self.rendezvous_point_lost,
            self.client_floods,
            self.daemons_killed,
            self.routing_daemon_killed,
            self.router_killed,
        ):
            begun = time.monotonic()
            self.seen[fault.__name__] = found = fault()
            took = time.monotonic() - begun
            sys.stderr.write(f"fault {fault.__name__}: {found} (step took {took:.1f} s)\n")

    def _stops(self, sender: str, ear: str) -> int:
        """Return how many packets sent from now on arrive."""
        now = time.time_ns()
        self.red.await_sent(sender, 15)
        return sum(self.red.sent[sender][number] > now for number, _ in self.red.heard(sender, ear))

    def proxy_killed(self) -> dict[str, Any]:
        """The multicast proxy of the sending nation's device dies, and is started again."""
        self.fleet.processes.kill("d1/mproxyd")
        killed = time.time_ns()
        after = self._stops("c1a", "c2b")
        self.fleet.revive("d1")
        revived = time.time_ns()
        heard = self.red.await_heard("c1a", "c2b", revived)
        others = self.red.share("c3a", "c2b", killed, heard)
        return {"heard": after, "recovered_s": seconds(revived, heard), "others": others}

    def link_cut(self) -> dict[str, Any]:
        """The cable between a border router and the black switch is cut and plugged in again."""
        cut = self.fleet.network.link_down("r2-s1")
        self.fleet.await_members(["d1", "d3"], deadline_s=WAIT_S)
        excluded = time.time_ns()
        after = self._stops("c1a", "c2b")
        healed = self.fleet.network.link_up("r2-s1")
        heard = self.red.await_heard("c1a", "c2b", healed)
        self.fleet.await_members(self.fleet.devices, deadline_s=WAIT_S)
        return {
            "excluded_s": seconds(cut, excluded),
            "heard": after,
            "recovered_s": seconds(healed, heard),
            "one group_s": seconds(healed, time.time_ns()),
            "others": self.red.share("c1a", "c3b", cut, healed),
        }

    def large_packets(self) -> dict[str, Any]:
        """A client sends more than the tunnel takes: it is told, and fragments."""
        large = self.red.stream("c1b", LARGE_BYTES)
        heard = [self.red.await_heard("c1b", ear, 0) for ear in ("c2b", "c3b")]
        with self.fleet.network.namespace("c1b").entered():
            command = ["ip", "-6", "route", "get", str(RED_GROUP)]
            route = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        large.set()
        lost = min(number for ear in ("c2b", "c3b") for number, _ in self.red.heard("c1b", ear))
        return {
            "route": route,
            "lost": lost,
            "after_s": seconds(self.red.sent["c1b"][0], max(heard)),
        }

    def rendezvous_point_lost(self) -> dict[str, Any]:
        """The rendezvous point loses its power; then somebody sends who never did before."""
        self.routing.kill_router("r0")
        killed = time.time_ns()
        self.red.stream("c2a")
        new = [self.red.await_heard("c2a", ear, 0) for ear in ("c1b", "c3b")]
        report = self.routing.wait_ready([self.fleet.topology.group.black_group])
        known = self.red.silence_s("c1a", "c3b", killed)
        return {
            "new source_s": seconds(killed, max(new)),
            "known source silent_s": round(known, 2),
            "routers_s": report.groups_s,
            "acting": self.routing.acting_rp("r1"),
        }

    def client_floods(self) -> dict[str, Any]:
        """A client joins and sends to hundreds of groups."""
        begun = time.time_ns()
        with ExitStack() as stack, self.fleet.network.namespace("c2a").entered():
            joined, refused = self._join_many(stack)
            sender = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_HOPS, 8)
            index = socket.if_nametoindex("eth0")
            sender.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_MULTICAST_IF, index)
            count, start = 0, time.monotonic()
            tick = threading.Event()
            while (elapsed := time.monotonic() - start) < FLOOD_S:
                while count < elapsed * FLOOD_PPS:
                    sender.sendto(MARK, (_group(count % FLOOD_GROUPS), 9))
                    count += 1
                tick.wait(0.02)
        ended = time.time_ns()
        self.fleet.check_alive()
        shares = {
            f"{sender} to {ear}": round(self.red.share(sender, ear, begun, ended), 2)
            for sender, ear in (("c1a", "c2b"), ("c1a", "c3b"), ("c3a", "c1b"))
        }
        held = {name: len(self._groups(name)) for name in ("l2", "d2")}
        return {"joined": joined, "refused": refused, "sent": count, "held": held, **shares}

    def _join_many(self, stack: ExitStack) -> tuple[int, int]:
        index, joined, refused = socket.if_nametoindex("eth0"), 0, 0
        for base in range(0, FLOOD_GROUPS, 50):
            sock = stack.enter_context(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            for number in range(base, base + 50):
                membership = IPv6Address(_group(number)).packed + struct.pack("@I", index)
                try:
                    sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_JOIN_GROUP, membership)
                    joined += 1
                except OSError:
                    refused += 1
        return joined, refused

    def _groups(self, node: str) -> list[Any]:
        status = self.fleet.surroundings.proxy(node).status()
        return [group for lan in status["downstream"] for group in lan["groups"]]

    def daemons_killed(self) -> dict[str, Any]:
        """Both daemons of a device are killed, and later started again."""
        for daemon in ("idpd", "miked"):
            self.fleet.processes.kill(f"d1/{daemon}")
        killed = time.time_ns()
        self.fleet.await_members(["d2", "d3"], deadline_s=WAIT_S)
        excluded = time.time_ns()
        wait_until(lambda: not self._stops("c1a", "c2b"), WAIT_S, "c1a is still heard")
        last = max(at for _, at in self.red.heard("c1a", "c2b"))
        self.fleet.revive("d1")
        self.fleet.start("d1")
        started = time.time_ns()
        heard = self.red.await_heard("c1a", "c2b", started)
        self.fleet.await_members(self.fleet.devices, deadline_s=WAIT_S)
        return {
            "excluded_s": seconds(killed, excluded),
            "own stream ended_s": seconds(killed, last),
            "others": round(self.red.share("c3a", "c2b", killed, started), 2),
            "recovered_s": seconds(started, heard),
        }

    def routing_daemon_killed(self) -> dict[str, Any]:
        """One process of FRR is killed alone: it is named, every one of them."""
        said = []
        for daemon in ("ospf6d", "pim6d"):
            name = f"r3/{daemon}"
            os.kill(self.fleet.processes[name].pid, 9)
            with pytest.raises(DaemonDiedError) as caught:
                wait_until(self.fleet.check_alive, WAIT_S, f"nobody misses {name}")
            said.append(str(caught.value))
            # One fault at a time: it shall not be what the next wait ends with.
            self.fleet.processes[name].must_live = False
        return {"said": said}

    def router_killed(self) -> dict[str, Any]:
        """A border router loses its power: its nation is cut off, the others are not."""
        self.routing.kill_router("r3")
        killed = time.time_ns()
        self.fleet.await_members(["d1", "d2"], deadline_s=WAIT_S)
        excluded = time.time_ns()
        report = self.routing.wait_ready([self.fleet.topology.group.black_group])
        return {
            "excluded_s": seconds(killed, excluded),
            "routers_s": report.groups_s,
            "cut off": [self._stops("c3a", "c1b"), self._stops("c1a", "c3b")],
            "others": round(self.red.share("c1a", "c2b", killed, time.time_ns() - 10**9), 2),
        }


def _group(number: int) -> str:
    return f"ff0e::f100:{number:x}"


@pytest.fixture(scope="module")
def life(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    require_esp()
    keep = tmp_path_factory.mktemp("faults")

    def inside() -> dict[str, Any]:
        with ExitStack() as stack:
            options = FleetOptions(ipsec=DELAYS, keep=keep, capture=True)
            fleet = stack.enter_context(Fleet(three_nations(), options))
            for device in fleet.devices:
                fleet.start(device)
            fleet.await_members(fleet.devices, deadline_s=WAIT_S)
            fleet.surroundings.wait_group(fleet.topology.group.black_group)
            red = RedLife(fleet, ("c1b", "c2b", "c3b"), interval_s=0.2)
            stack.callback(red.close)
            for sender, ears in (("c1a", ("c2b", "c3b")), ("c3a", ("c1b", "c2b"))):
                red.stream(sender)
                for ear in ears:
                    red.await_heard(sender, ear, 0)
            told = Life(fleet, red)
            told.seen["mtu"] = fleet.facts["network"]["topology"]["group"]["mtu"]
            told.run()
            drops = {name: fleet.drops(name) for name in fleet.devices}
        return told.seen | {"captured": fleet.captured, "drops": drops}

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TESTBED_RUN_BASE", str(keep / "runs"))
        yield session.call(inside)


@pytest.fixture(scope="module")
def report(life: dict[str, Any]) -> LeakReport:
    begun = time.monotonic()
    rules = LeakRules.of(three_nations(), BlackChannels.of({}, {}), RESPONDER_PORT, (MARK,))
    found = check_leaks(life["captured"], rules)
    took = time.monotonic() - begun
    sys.stderr.write(f"{found.text()} (looked at in {took:.1f} s)\n")
    return found


def test_a_killed_proxy_forwards_nothing_and_one_started_again_everything(
    life: dict[str, Any],
) -> None:
    seen = life["proxy_killed"]
    assert seen["heard"] == 0
    assert seen["others"] > 0.9
    assert seen["recovered_s"] < 20


def test_behind_a_cut_black_link_nobody_hears_until_it_is_healed(life: dict[str, Any]) -> None:
    seen = life["link_cut"]
    assert seen["heard"] == 0
    assert seen["others"] > 0.9
    assert seen["recovered_s"] < 60


def test_large_packets_get_an_icmpv6_error_and_then_through(life: dict[str, Any]) -> None:
    seen = life["large_packets"]
    assert life["mtu"] == 1280
    assert "mtu 1280" in seen["route"]
    assert seen["lost"] <= 2


def test_the_backup_takes_over_from_the_rendezvous_point(life: dict[str, Any]) -> None:
    seen = life["rendezvous_point_lost"]
    assert seen["acting"] == "rb"
    assert seen["known source silent_s"] < 2
    assert seen["new source_s"] < 60


def test_a_client_that_floods_does_not_silence_the_others(life: dict[str, Any]) -> None:
    seen = life["client_floods"]
    assert seen["joined"] == FLOOD_GROUPS
    assert seen["sent"] > FLOOD_S * FLOOD_PPS / 2
    assert seen["held"]["l2"] <= 64 + 10
    for pair in ("c1a to c2b", "c1a to c3b", "c3a to c1b"):
        assert seen[pair] > 0.8, pair


def test_without_its_daemons_a_device_is_excluded_and_comes_back(life: dict[str, Any]) -> None:
    seen = life["daemons_killed"]
    assert seen["others"] > 0.8
    assert seen["own stream ended_s"] < seen["excluded_s"] + 10
    assert seen["recovered_s"] < 60


def test_each_dead_routing_daemon_is_named(life: dict[str, Any]) -> None:
    first, second = life["routing_daemon_killed"]["said"]
    assert first.startswith("r3/ospf6d was killed by signal 9 unasked")
    assert second.startswith("r3/pim6d was killed by signal 9 unasked")


def test_a_dead_router_cuts_off_its_own_nation_only(life: dict[str, Any]) -> None:
    seen = life["router_killed"]
    assert seen["cut off"] == [0, 0]
    assert seen["others"] > 0.8


def test_nothing_red_was_on_any_black_link(life: dict[str, Any], report: LeakReport) -> None:
    assert report.ok, report.text()
    assert {"ESP", "IDP", "MIKE"} <= set(report.counts)
    assert all(report.links.values())
    assert sum(count["forward_to_black"] for count in life["drops"].values()) == 0

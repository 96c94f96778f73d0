"""Networks without FRR: static routes deliver, in order, once, and say that they are static."""

from __future__ import annotations

import os
import subprocess
from contextlib import ExitStack
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.fleet import Fleet, FleetOptions
from testbed.processes import ProcessTable
from testbed.routing import choose
from testbed.routing.base import RoutingOptions
from testbed.routing.choose import make_routing
from testbed.routing.kernel import RoutingError
from tests.support import netlink
from tests.support.netlink import STATIC
from tests.support.routers import GROUP, RoutedNetwork, read_all, wires
from topologies.families import coalition

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]


def test_multicast_reaches_every_wire_with_hosts_once(tmp_path: Path) -> None:
    # A ring, a switch and a shared edge: flooding along anything but a tree would circle.
    layout = wires("r1 r2 r3 r4", "r1 r2", "r2 r3", "r1 h1", "r2 r3 h2", "r3 h3")

    def inside() -> dict[str, Any]:
        network = RoutedNetwork(layout, "r4")
        processes = ProcessTable("20200101T000000Z-beef")
        options = RoutingOptions(kind="static")
        routing = make_routing(
            network.plans, network.namespaces, network.pid, processes, tmp_path, options=options
        )
        routing.start()
        seen: dict[str, Any] = {"report": routing.wait_ready([IPv6Address(GROUP)])}
        seen["joined"] = routing.group_joined(IPv6Address(GROUP))
        with ExitStack() as stack:
            hosts = ("h1", "h2", "h3")
            one, two, three = (stack.enter_context(network.listener(host)) for host in hosts)
            seen["from h1"] = network.stream("h1", [two, three], 50)
            read_all(one)
            seen["from h3"] = network.stream("h3", [one, two], 50)
        with network.namespaces["h1"].entered():
            ping = ["ping", "-6", "-c", "1", "-W", "2", "2001:db8:6::103"]
            seen["ping"] = subprocess.run(ping, capture_output=True, check=False).returncode
        routing.kill_router("r3")
        with pytest.raises(RoutingError, match="static routes find no way around the dead r3"):
            routing.wait_ready()
        routing.stop()
        with network.namespaces["r1"].entered():
            seen["left"] = netlink.routes(protocol=STATIC)
        seen["names"] = processes.names()
        network.close()
        return seen

    seen = session.call(inside)
    assert seen["report"].kind == "static"
    assert seen["report"].adjacencies_s is None
    assert seen["joined"]["r1"] == ("eth2",)
    # Only one of the two routers serves the wire that they share.
    assert sum("eth" in name for ports in seen["joined"].values() for name in ports) == 3
    assert seen["from h1"] == seen["from h3"] == [list(range(50))] * 2
    assert seen["ping"] == 0
    assert seen["left"] == {}
    assert seen["names"] == []


@pytest.mark.slow
def test_a_coalition_without_frr_becomes_one_group_and_says_how(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(choose, "find_frr", lambda: None)
    monkeypatch.setenv("TESTBED_RUN_BASE", str(tmp_path / "runs"))

    def inside() -> dict[str, Any]:
        with Fleet(coalition(3, 1, 1), FleetOptions(sa_backend="memory")) as fleet:
            for device in fleet.devices:
                fleet.start(device)
            fleet.await_members(fleet.devices, deadline_s=60)
            return dict(fleet.facts["routing"])

    facts = session.call(inside)
    assert facts["multicast"] == "static multicast routes"
    assert facts["because"] == "FRR is not built; 'make setup' builds it"
    assert "static multicast routes: FRR is not built" in capfd.readouterr().err

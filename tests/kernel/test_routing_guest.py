"""FRR and smcroute on the kernel that has ESP: in the guest's image where it runs in the guest."""

from __future__ import annotations

import os
import sys
import time
from ipaddress import IPv6Address
from pathlib import Path

import pytest

from testbed import session
from testbed.processes import ProcessTable
from testbed.routing.base import RoutingOptions, RoutingReport
from testbed.routing.choose import make_routing
from testbed.routing.programs import find_frr, find_smcroute
from tests.support.routers import GROUP, RoutedNetwork, wires

pytestmark = [
    pytest.mark.kernel,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

READY_S = 60.0


@pytest.mark.parametrize("kind", ["frr", "static"])
def test_four_routers_converge_and_deliver(kind: str, tmp_path: Path) -> None:
    if (find_frr() if kind == "frr" else find_smcroute()) is None:
        pytest.skip(f"the programs for {kind} routing are not there: run 'make setup'")

    def inside() -> tuple[RoutingReport, list[list[int]], float]:
        network = RoutedNetwork(wires("r1 r2 r3 r4", "r1 h1", "r2 h2", "r3 h3"), "r4")
        processes = ProcessTable("20200101T000000Z-beef")
        options = RoutingOptions(kind=kind, deadline_s=READY_S)
        routing = make_routing(
            network.plans, network.namespaces, network.pid, processes, tmp_path, options=options
        )
        routing.start()
        routing.wait_ready()
        with (
            network.listener("h1"),
            network.listener("h2") as two,
            network.listener("h3") as three,
        ):
            report = routing.wait_ready([IPv6Address(GROUP)])
            network.stream("h1", [two, three], 20, interval_ms=100)
            heard = network.stream("h1", [two, three], 20, interval_ms=100)
        begun = time.monotonic()
        routing.stop()
        stopping_s = time.monotonic() - begun
        network.close()
        return report, heard, stopping_s

    report, heard, stopping_s = session.call(inside)
    sys.stderr.write(f"routing: {report.as_json()} stop {stopping_s:.2f} s\n")
    assert report.pim_s < READY_S
    for numbers in heard:
        assert len(numbers) >= 18
        assert len(numbers) == len(set(numbers))

"""The rendezvous point dies: its backup takes over, or it is said that nothing can."""

from __future__ import annotations

import os
import struct
import sys
import time
from ipaddress import IPv6Address
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.routing.frr import FrrRouting
from testbed.routing.kernel import RoutingError
from testbed.routing.programs import find_frr
from testbed.wait import wait_until
from tests.support.routers import GROUP, read_all, routed, wires

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
    pytest.mark.skipif(find_frr() is None, reason="FRR is not built: run 'make setup'"),
]

ADDRESS = IPv6Address(GROUP)
# r4 is the rendezvous point, r5 its backup: on a switch, or joined to every other router.
SWITCH = wires("r1 r2 r3 r4 r5", "r1 h1", "r2 h2", "r3 h3")
MESH = wires(
    *("r1 r2", "r2 r3", "r1 r3"),
    *("r1 r4", "r2 r4", "r3 r4", "r1 r5", "r2 r5", "r3 r5"),
    *("r1 h1", "r2 h2", "r3 h3"),
)
DEAD_S, WAIT_S = 4, 20.0


def rp_distance(routing: FrrRouting, router: str) -> list[int]:
    """Return the OSPF metrics of a router's ways to the rendezvous point, the best one first."""
    text = routing.vty(router, "ospf6d")("show ipv6 ospf6 route detail")
    entries = text.split("Destination: ")
    own = [entry for entry in entries if entry.startswith("2001:db8:ff::4/128")]
    return [int(entry.partition("Metric: ")[2].split()[0]) for entry in own]


@pytest.mark.parametrize("layout", [SWITCH, MESH], ids=["switch", "mesh"])
def test_the_backup_serves_when_the_rendezvous_point_has_died(layout: Any, tmp_path: Path) -> None:
    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with routed(layout, "r4", tmp_path, backup="r5") as (network, routing, _):
            routing.wait_ready()
            seen["facts"] = routing.facts()["rendezvous_points"]
            with network.listener("h2") as two, network.listener("h1"):
                with network.listener("h3"):
                    routing.wait_ready([ADDRESS])
                seen["metrics"] = {name: rp_distance(routing, name) for name in ("r1", "r2", "r3")}
                seen["before"] = [routing.acting_rp("r1"), GROUP in routing.mroutes("r5")]

                def arrives(source: str, payload: bytes = b"\0\0\0\7") -> bool:
                    network.send(source, payload)
                    return bool(read_all(two))

                wait_until(lambda: arrives("h1"), WAIT_S, "nothing from h1 arrives")
                routing.kill_router("r4")
                begun = time.monotonic()
                (heard,) = network.stream("h1", [two], 100, interval_ms=50)
                seen["known source"] = len(set(heard))
                read_all(two)
                wait_until(lambda: arrives("h3"), WAIT_S, "nothing from the new source arrives")
                seen["new source_s"] = time.monotonic() - begun
                with network.listener("h3") as three:
                    numbers = iter(range(10_000))

                    def reaches_three() -> bool:
                        network.send("h1", struct.pack("!I", next(numbers)))
                        return bool(read_all(three))

                    wait_until(reaches_three, WAIT_S, "the new listener hears no old source")
                    seen["new listener_s"] = time.monotonic() - begun
                    seen["report"] = routing.wait_ready([ADDRESS])
                seen["after"] = [routing.acting_rp("r1"), GROUP in routing.mroutes("r5")]
                routing.kill_router("r5")
                with pytest.raises(RoutingError, match="r4 is dead and its backup r5 too: no gr"):
                    routing.wait_ready()
        return seen

    seen = session.call(inside)
    sys.stderr.write(f"rendezvous point lost: {seen}\n")
    assert seen["facts"] == ["r4", "r5"]
    for metrics in seen["metrics"].values():
        assert metrics[0] < 100
        assert all(metric > 10_000 for metric in metrics[1:])
    assert seen["before"] == ["r4", False]
    assert seen["after"] == ["r5", True]
    assert seen["known source"] >= 99, "a stream that flows needs no rendezvous point"
    assert seen["new source_s"] < DEAD_S + 10
    assert seen["new listener_s"] < DEAD_S + 15

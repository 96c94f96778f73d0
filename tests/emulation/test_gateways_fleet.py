"""Gateways natively: real daemons, memory backend; what each partition knows of the others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from protocol.identity.pki import Coalition
from testbed import session
from testbed.fleet import Fleet, FleetOptions
from testbed.guard import red_drops
from testbed.wait import wait_until
from tests.support.gatewayfleet import (
    ALL,
    LAST,
    NONE,
    accepted,
    await_spoken,
    kill_gateway,
    known,
    start_all,
)
from topologies.families import partitions

pytestmark = [
    pytest.mark.emulation,
    pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root for namespaces"),
]

FAST = {"hello_interval_ms": 300, "triggered_hello_spread_ms": 50}
DEAD_S = 4 * 0.3
POLL_S = 0.5
WAIT_S = 60.0


@pytest.fixture(autouse=True)
def private_registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path / "runs"
    monkeypatch.setenv("TESTBED_RUN_BASE", str(base))
    return base


def await_accepted(fleet: Fleet, device: str, wanted: dict[str, str]) -> None:
    wait_until(
        lambda: accepted(fleet, device) == wanted,
        WAIT_S,
        lambda: f"{device} has {accepted(fleet, device)}, not {wanted}",
        pause_s=0.02,
    )


def test_members_of_one_end_are_known_at_the_other_and_the_second_gateway_takes_over() -> None:
    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with Fleet(partitions(3), FleetOptions(sa_backend="memory", idp=FAST)) as fleet:
            start_all(fleet, WAIT_S)
            await_spoken(fleet, "g1", ALL, WAIT_S)
            await_spoken(fleet, "g2", NONE, WAIT_S)
            await_spoken(fleet, "g3", LAST, WAIT_S)
            seen["a at g3"] = known(fleet, "g3", "a")
            seen["c at g1"] = known(fleet, "g1", "c")
            await_accepted(fleet, "d1", {f"fd00:{n}::/64": "g1-a" for n in "bc"})
            await_accepted(fleet, "d3", {f"fd00:{n}::/64": "g3-c" for n in "ab"})
            seen["drops"] = [
                red_drops(fleet.network.namespace(name)) for name in ("d1", "g1", "g2", "g3")
            ]
            seen["status"] = fleet.surroundings.status()["gateways"]
            killed = time.monotonic()
            kill_gateway(fleet, "g1")
            await_spoken(fleet, "g2", ALL, WAIT_S)
            seen["takeover_s"] = time.monotonic() - killed
            await_accepted(fleet, "d1", {f"fd00:{n}::/64": "g2-a" for n in "bc"})
            seen["routes_s"] = time.monotonic() - killed
            wait_until(
                lambda: known(fleet, "g3", "a").get("gateway") == "g2-b", WAIT_S, "g3 hears g2"
            )
            fleet.revive("g1")
            for leg in ("g1-a", "g1-b"):
                fleet.start(leg)
            await_spoken(fleet, "g1", ALL, WAIT_S)
            await_spoken(fleet, "g2", NONE, WAIT_S)
            await_accepted(fleet, "d1", {f"fd00:{n}::/64": "g1-a" for n in "bc"})
        return seen

    seen = session.call(inside)
    assert seen["a at g3"]["path"] == ["a", "b"]
    assert seen["a at g3"]["gateway"] == "g1-b"
    assert [one["name"] for one in seen["a at g3"]["members"]] == ["d1"]
    assert seen["c at g1"]["path"] == ["c", "b"]
    assert [one["name"] for one in seen["c at g1"]["members"]] == ["d3"]
    assert seen["drops"] == [0, 0, 0, 0]
    assert seen["status"] == {"g1": ALL, "g2": NONE, "g3": LAST}
    print(f"take-over after {seen['takeover_s']:.2f} s, routes {seen['routes_s']:.2f} s")
    assert DEAD_S * 0.75 < seen["takeover_s"] < DEAD_S + POLL_S + 1.0


def test_a_killed_gatewayd_is_replaced_too_and_takes_its_place_again() -> None:
    both = {"a": ["b"], "b": ["a"]}
    own = {"fd00:a:0:1::/64": "d2"}  # and of b the summary of its two devices' prefixes

    def inside() -> float:
        with Fleet(partitions(2, 2), FleetOptions(sa_backend="memory", idp=FAST)) as fleet:
            start_all(fleet, WAIT_S)
            await_spoken(fleet, "g1", both, WAIT_S)
            await_accepted(fleet, "d1", own | {"fd00:b::/63": "g1-a"})
            fleet.processes.kill("g1/gatewayd")
            # Its idpds withdraw at once what it had them announce.
            await_accepted(fleet, "d1", own)
            await_spoken(fleet, "g2", both, WAIT_S)
            await_accepted(fleet, "d1", own | {"fd00:b::/63": "g2-a"})
            fleet.revive("g1")
            await_spoken(fleet, "g1", both, WAIT_S)
            await_spoken(fleet, "g2", NONE, WAIT_S)
            await_accepted(fleet, "d1", own | {"fd00:b::/63": "g1-a"})
            await_accepted(fleet, "d3", {"fd00:a::/63": "g1-b", "fd00:b:0:1::/64": "d4"})
            told = time.monotonic()
            fleet.processes.stop(["g1/gatewayd"])
            await_spoken(fleet, "g2", both, WAIT_S)
            handed_over_s = time.monotonic() - told
            await_accepted(fleet, "d1", own | {"fd00:b::/63": "g2-a"})
        return handed_over_s

    # A gatewayd that is stopped says so: nobody waits for its silence.
    assert session.call(inside) < DEAD_S


def test_a_device_that_is_revoked_in_one_partition_is_excluded_in_the_other() -> None:
    """GATE-19."""

    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with Fleet(partitions(2, 2), FleetOptions(sa_backend="memory")) as fleet:
            start_all(fleet, WAIT_S)
            await_spoken(fleet, "g1", {"a": ["b"], "b": ["a"]}, WAIT_S)
            # Only the operator of d1, in partition a, hears of it; d4 is in partition b.
            Coalition(fleet.directory / "pki").revoke(["d4"], receivers=["d1"])
            told = time.monotonic()
            fleet.device("d1").ask("idpd", "trust_reload")
            rest = [name for name in fleet.partitions["b"] if name != "d4"]
            fleet.await_members(rest, deadline_s=WAIT_S)
            seen["excluded_s"] = time.monotonic() - told
            seen["lists"] = [
                [one["revoked"] for one in fleet.status(name)["trust"]["revocation_lists"]]
                for name in ("d1", "d2", "d3", "g2-a", "g2-b")
            ]
        return seen

    seen = session.call(inside)
    print(f"excluded after {seen['excluded_s']:.2f} s")
    assert all(sum(revoked) == 1 for revoked in seen["lists"]), seen["lists"]

"""Gateways natively: real daemons, memory backend; what each partition knows of the others."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

from testbed import session
from testbed.fleet import Fleet, FleetOptions
from testbed.wait import wait_until
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


def start_all(fleet: Fleet) -> None:
    for device in fleet.devices:
        fleet.start(device)
    for members in fleet.partitions.values():
        fleet.await_members(members, deadline_s=WAIT_S)


def known(fleet: Fleet, gateway: str, partition: str) -> dict[str, Any]:
    status = fleet.surroundings.gateway(gateway).status()
    found = [entry for entry in status["partitions"] if entry["partition"] == partition]
    return found[0] if found else {}


def spoken(fleet: Fleet, gateway: str) -> dict[str, list[str]]:
    status = fleet.surroundings.gateway(gateway).status()
    return {leg["partition"]: leg["speaks_for"] for leg in status["legs"]}


def await_spoken(fleet: Fleet, gateway: str, wanted: dict[str, list[str]]) -> None:
    wait_until(
        lambda: spoken(fleet, gateway) == wanted,
        WAIT_S,
        lambda: f"{gateway} speaks for {spoken(fleet, gateway)}, not {wanted}",
        pause_s=0.02,
    )


def kill_gateway(fleet: Fleet, gateway: str) -> None:
    for name in fleet.processes.names():
        if name.split("/")[0].split("-")[0] == gateway:
            fleet.processes.kill(name)


ALL = {"a": ["b", "c"], "b": ["a"]}
NONE: dict[str, list[str]] = {"a": [], "b": []}


def test_members_of_one_end_are_known_at_the_other_and_the_second_gateway_takes_over() -> None:
    def inside() -> dict[str, Any]:
        seen: dict[str, Any] = {}
        with Fleet(partitions(3), FleetOptions(sa_backend="memory", idp=FAST)) as fleet:
            start_all(fleet)
            await_spoken(fleet, "g1", ALL)
            await_spoken(fleet, "g2", NONE)
            await_spoken(fleet, "g3", {"b": ["c"], "c": ["a", "b"]})
            seen["a at g3"] = known(fleet, "g3", "a")
            seen["c at g1"] = known(fleet, "g1", "c")
            seen["status"] = fleet.surroundings.status()["gateways"]
            killed = time.monotonic()
            kill_gateway(fleet, "g1")
            await_spoken(fleet, "g2", ALL)
            seen["takeover_s"] = time.monotonic() - killed
            wait_until(
                lambda: known(fleet, "g3", "a").get("gateway") == "g2-b", WAIT_S, "g3 hears g2"
            )
            for name in ("g1-a", "g1-b", "g1"):
                fleet.revive(name)
            for leg in ("g1-a", "g1-b"):
                fleet.start(leg)
            await_spoken(fleet, "g1", ALL)
            await_spoken(fleet, "g2", NONE)
        return seen

    seen = session.call(inside)
    assert seen["a at g3"]["path"] == ["a", "b"]
    assert seen["a at g3"]["gateway"] == "g1-b"
    assert [one["name"] for one in seen["a at g3"]["members"]] == ["d1"]
    assert seen["c at g1"]["path"] == ["c", "b"]
    assert [one["name"] for one in seen["c at g1"]["members"]] == ["d3"]
    assert seen["status"] == {"g1": ALL, "g2": NONE, "g3": {"b": ["c"], "c": ["a", "b"]}}
    print(f"take-over after {seen['takeover_s']:.2f} s")
    assert DEAD_S * 0.75 < seen["takeover_s"] < DEAD_S + POLL_S + 1.0


def test_a_killed_gatewayd_is_replaced_too_and_takes_its_place_again() -> None:
    def inside() -> None:
        with Fleet(partitions(2), FleetOptions(sa_backend="memory", idp=FAST)) as fleet:
            start_all(fleet)
            await_spoken(fleet, "g1", {"a": ["b"], "b": ["a"]})
            fleet.processes.kill("g1/gatewayd")
            await_spoken(fleet, "g2", {"a": ["b"], "b": ["a"]})
            fleet.revive("g1")
            await_spoken(fleet, "g1", {"a": ["b"], "b": ["a"]})
            await_spoken(fleet, "g2", NONE)

    session.call(inside)

"""Fleets with gateways: who speaks for whom, and what is there to kill."""

from __future__ import annotations

from typing import Any

from testbed.fleet import Fleet
from testbed.wait import wait_until

ALL = {"a": ["b", "c"], "b": ["a"]}
"""For whom the first of two gateways between a and b speaks, in a row of three partitions."""

NONE: dict[str, list[str]] = {"a": [], "b": []}
LAST = {"b": ["c"], "c": ["a", "b"]}


def start_all(fleet: Fleet, deadline_s: float) -> None:
    """Start every device and leg; return when each partition is one group."""
    for device in fleet.devices:
        fleet.start(device)
    for members in fleet.partitions.values():
        fleet.await_members(members, deadline_s=deadline_s)


def known(fleet: Fleet, gateway: str, partition: str) -> dict[str, Any]:
    """Return what a gateway knows of a partition."""
    status = fleet.surroundings.gateway(gateway).status()
    found = [entry for entry in status["partitions"] if entry["partition"] == partition]
    return found[0] if found else {}


def spoken(fleet: Fleet, gateway: str) -> dict[str, list[str]]:
    """Return for which partitions a gateway speaks, by the partition in which it does."""
    status = fleet.surroundings.gateway(gateway).status()
    return {leg["partition"]: leg["speaks_for"] for leg in status["legs"]}


def await_spoken(
    fleet: Fleet, gateway: str, wanted: dict[str, list[str]], deadline_s: float
) -> None:
    """Wait until a gateway speaks for these partitions."""
    wait_until(
        lambda: spoken(fleet, gateway) == wanted,
        deadline_s,
        lambda: f"{gateway} speaks for {spoken(fleet, gateway)}, not {wanted}",
        pause_s=0.02,
    )


def kill_gateway(fleet: Fleet, gateway: str) -> None:
    """Kill every daemon of a gateway."""
    for name in fleet.processes.names():
        if name.split("/")[0].split("-")[0] == gateway:
            fleet.processes.kill(name)


def accepted(fleet: Fleet, device: str) -> dict[str, str]:
    """Return the prefixes that a device's idpd routes, each with the name of who announced it."""
    names = {address: name for name, address in fleet.addresses.items()}
    status = fleet.status(device)
    return {item["prefix"]: names[item["peer"]] for item in status["prefixes"]}

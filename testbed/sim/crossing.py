"""Where key distribution begins to cost less than key agreement: found in measured rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from protocol.mike.config import Mode
from testbed.sim.costing import EVENTS

MEASURES = (
    "bytes",
    "datagrams",
    "member_operations",
    "all_operations",
    "path_cpu_ms",
    "all_cpu_ms",
)
"""What the modes are compared by; ``path_cpu_ms``: the TM's time and then the busiest other's."""


def measure(row: Mapping[str, Any], name: str) -> float:
    """Return one of `MEASURES` of a row as of `Cost.as_json`; what a newcomer gets counts too."""
    if name == "bytes":
        return float(row["bytes"] + row["newcomer_bytes"])
    if name == "path_cpu_ms":
        return float(row["tm_cpu_ms"] + max(row["member_cpu_ms"], row["newcomer_cpu_ms"]))
    return float(row[name])


@dataclass(frozen=True, slots=True)
class Crossover:
    """Where key distribution begins to cost less.

    Attributes:
        event: as in `Cost`.
        measure: one of `MEASURES`.
        members: the smallest measured size from which on KD costs less at every measured size;
            None: there is none.
        compared: sizes that both modes were measured at.
    """

    event: str
    measure: str
    members: int | None
    compared: tuple[int, ...]


def crossovers(rows: Sequence[Mapping[str, Any]]) -> list[Crossover]:
    """Compare the modes at the sizes that both have."""
    found = []
    for event in EVENTS:
        for name in MEASURES:
            agreed, distributed = (
                {
                    row["members"]: measure(row, name)
                    for row in rows
                    if row["mode"] == mode.value and row["event"] == event
                }
                for mode in (Mode.KA, Mode.KD)
            )
            sizes = tuple(sorted(agreed.keys() & distributed.keys()))
            first = None
            for size in reversed(sizes):
                if distributed[size] >= agreed[size]:
                    break
                first = size
            found.append(Crossover(event, name, first, sizes))
    return found

"""The part of a summary about when red multicast began to get through to and from joiners."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run

DIRECTIONS = {
    "to-joiner": "from the monitor's LAN to the joiner's",
    "from-joiner": "from the joiner's LAN to the others'",
}


def per_step(rows: pd.DataFrame) -> pd.DataFrame:
    """Return one row per join and direction: the last LAN counts, all of them must have heard."""
    keys = ["variant", "direction", "repetition", "step", "group_size"]
    if rows.empty:
        return pd.DataFrame(columns=[*keys, "first_ms", "ok"])
    marked = rows.assign(ok=rows["ok"].astype(float))
    return marked.groupby(keys, as_index=False, sort=False).agg(
        first_ms=("first_ms", "max"), ok=("ok", "min")
    )


def summarise(run: Run) -> dict[str, Any]:
    """Return the median per variant and direction; empty if there were no streams."""
    steps = per_step(analysis.read_table(run.path, "first_packets.csv"))
    found: dict[str, Any] = {}
    for (variant, direction), group in steps.groupby(["variant", "direction"], sort=False):
        values = analysis.censored(group["first_ms"], group["ok"] == 1)
        found.setdefault(str(variant), {})[str(direction)] = analysis.median_interval(
            values, run.seed
        )
    return found


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    lines = []
    for variant, directions in found.items():
        parts = []
        for direction, estimate in directions.items():
            value = estimate["median_ms"]
            shown = "nothing" if value is None else f"{value:.0f} ms"
            failed = f", {estimate['failed']} never" if estimate["failed"] else ""
            parts.append(f"{DIRECTIONS[direction]} {shown} (n={estimate['n']}{failed})")
        lines.append(f"{variant}: first red packet after the trigger {'; '.join(parts)}")
    return lines


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    return ["", "## First red multicast packet", "", *(f"* {line}" for line in text(found))]

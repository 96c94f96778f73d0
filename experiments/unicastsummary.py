"""The part of a summary about unicast: how much longer than the multicast SAs all of it takes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run

FACTOR = 1.5
"""The paper: 400 ms for the multicast SA, about 200 ms more with the unicast ones."""


def joiners(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the joiners' rows: who joins has all pairs to make, everybody else one new one."""
    return rows[rows["role"] == "joiner"]


def summarise(run: Run) -> dict[str, Any]:
    """Return medians per variant and group size; empty if no unicast SAs were made."""
    rows = analysis.read_table(run.path, "unicast.csv")
    found: dict[str, Any] = {}
    for variant, of_variant in joiners(rows).groupby("variant", sort=False):
        sizes = {
            str(int(size)): _size(run, group) for size, group in of_variant.groupby("group_size")
        }
        found[str(variant)] = {"by_size": sizes, "largest": max(sizes, key=int)}
    return found


def _size(run: Run, rows: pd.DataFrame) -> dict[str, Any]:
    ok = rows["ok"].astype(float) == 1
    ratio = rows["complete_ms"] / rows["multicast_ms"]
    return {
        "multicast": _median(run, rows["multicast_ms"], ok),
        "sas": _median(run, rows["sas_ms"], ok),
        "complete": _median(run, rows["complete_ms"], ok),
        "ratio": analysis.plain(ratio[ok].median()),
        "multicast_batch_ms": analysis.plain(rows.loc[ok, "multicast_batch_ms"].median()),
        "pair_batch_ms": analysis.plain(rows.loc[ok, "pair_batch_ms"].median()),
        "route_batch_ms": analysis.plain(rows.loc[ok, "route_batch_ms"].median()),
        "pair_operations": analysis.plain(rows.loc[ok, "pair_operations"].median()),
    }


def _median(run: Run, values: pd.Series, ok: pd.Series) -> dict[str, Any]:
    return analysis.median_interval(analysis.censored(values, ok), run.seed)


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    lines = []
    for variant, data in found.items():
        size = data["largest"]
        there = data["by_size"][size]
        values = [there[name]["median_ms"] for name in ("multicast", "complete")]
        if None in values or there["ratio"] is None:
            lines.append(f"{variant}: unicast incomplete at {size} members")
            continue
        verdict = "within" if there["ratio"] <= FACTOR else "ABOVE"
        lines.append(
            f"{variant}: at {size} members the joiner has its multicast SAs after "
            f"{values[0]:.0f} ms, all unicast SAs, policies and routes after {values[1]:.0f} ms "
            f"(n={there['complete']['n']}): {there['ratio']:.2f} times, {verdict} the paper's "
            f"{FACTOR:g}; batches: multicast {there['multicast_batch_ms']:.1f} ms, pairs "
            f"{there['pair_batch_ms']:.1f} ms, routes {there['route_batch_ms']:.1f} ms"
        )
    return lines


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    return ["", "## Unicast", "", *(f"* {line}" for line in text(found))]

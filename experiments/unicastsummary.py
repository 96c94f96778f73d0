"""The part of a summary about unicast: how much longer than the multicast SAs all of it takes."""

from __future__ import annotations

from typing import Any

import pandas as pd

from experiments import analysis
from experiments.analysis import Run

FACTOR = 1.5
"""The paper: 400 ms for the multicast SA, about 200 ms more with the unicast ones."""


PLACES = {"joiner": "at the joiner", "last": "at the last device"}
"""Who joins has all pairs to make. The last device: all pairs of the join are there."""


def of_place(rows: pd.DataFrame, place: str) -> pd.DataFrame:
    """Return one row per join: the joiner's, or the latest of all devices for each column."""
    if place == "joiner":
        return rows[rows["role"] == "joiner"]
    keys = ["variant", "repetition", "step", "group_size"]
    marked = rows.assign(ok=rows["ok"].astype(float))
    return marked.groupby(keys, as_index=False, sort=False).agg(
        multicast_ms=("multicast_ms", "max"), complete_ms=("complete_ms", "max"), ok=("ok", "min")
    )


def summarise(run: Run) -> dict[str, Any]:
    """Return medians per variant, place and group size; empty if no unicast SAs were made."""
    rows = analysis.read_table(run.path, "unicast.csv")
    found: dict[str, Any] = {}
    for variant, of_variant in rows.groupby("variant", sort=False):
        sizes = sorted(int(size) for size in of_variant["group_size"].unique())
        found[str(variant)] = {
            "largest": str(sizes[-1]),
            "batches": _batches(of_variant),
            **{
                place: {str(size): _size(run, of_place(of_variant, place), size) for size in sizes}
                for place in PLACES
            },
        }
    return found


def _size(run: Run, rows: pd.DataFrame, size: int) -> dict[str, Any]:
    there = rows[rows["group_size"] == size]
    ok = there["ok"].astype(float) == 1
    ratio = there["complete_ms"] / there["multicast_ms"]
    return {
        "multicast": _median(run, there["multicast_ms"], ok),
        "complete": _median(run, there["complete_ms"], ok),
        "ratio": analysis.plain(ratio[ok].median()),
    }


def _batches(rows: pd.DataFrame) -> dict[str, Any]:
    """Return the kernel's part at the joiner of the largest group."""
    mine = of_place(rows, "joiner")
    there = mine[(mine["group_size"] == rows["group_size"].max()) & (mine["ok"].astype(float) == 1)]
    names = ("multicast_batch_ms", "pair_batch_ms", "route_batch_ms", "pair_operations")
    return {name: analysis.plain(there[name].median()) for name in names}


def _median(run: Run, values: pd.Series, ok: pd.Series) -> dict[str, Any]:
    return analysis.median_interval(analysis.censored(values, ok), run.seed)


def text(found: dict[str, Any]) -> list[str]:
    """Return lines for a terminal, none if there is nothing."""
    lines = []
    for variant, data in found.items():
        size, batches = data["largest"], data["batches"]
        parts = [_place(data[place][size], words) for place, words in PLACES.items()]
        kernel = ""
        if batches["pair_batch_ms"] is not None:
            kernel = (
                f"; batches at the joiner: multicast {batches['multicast_batch_ms']:.1f} ms, pairs "
                f"{batches['pair_batch_ms']:.1f} ms, routes {batches['route_batch_ms']:.1f} ms"
            )
        lines.append(f"{variant}, {size} members: {'; '.join(parts)}{kernel}")
    return lines


def _place(there: dict[str, Any], words: str) -> str:
    values = [there[name]["median_ms"] for name in ("multicast", "complete")]
    if None in values or there["ratio"] is None:
        return f"{words} incomplete"
    verdict = "within" if there["ratio"] <= FACTOR else "ABOVE"
    return (
        f"{words} multicast SAs after {values[0]:.0f} ms, all of unicast after {values[1]:.0f} ms "
        f"(n={there['complete']['n']}), {there['ratio']:.2f} times, {verdict} the paper's "
        f"{FACTOR:g}"
    )


def markdown(found: dict[str, Any]) -> list[str]:
    """Return lines for summary.md, none if there is nothing."""
    if not found:
        return []
    return ["", "## Unicast", "", *(f"* {line}" for line in text(found))]
